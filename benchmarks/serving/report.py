"""The tables of docs/serving.md, from the rows of the CSV files; a step of `benchmarks.serving.peers` and `.faults`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from training.evaluation.markdown import table

Rows = Sequence[dict[str, str]]

TITLES = {
    "lenet": "LeNet-5 (what serving itself costs)",
    "resnet64": "ResNet-18 at 64 x 64",
    "resnet224": "ResNet-18 at 224 x 224",
}
OURS = "vestibule"
STAGES = ("receive", "decode", "queue", "infer", "app")  # of `Server-Timing`, which together are its total


def run_tables(rows: Rows) -> str:
    """Markdown: a table for each case, and what each server is."""
    if not rows:
        return ""
    cases = [case for case in TITLES if any(row["case"] == case for row in rows)]
    parts = [_of_case([row for row in rows if row["case"] == case], case) for case in cases]
    return "\n\n".join([*parts, _about(rows)])


def run_picture(rows: Rows) -> bytes:
    """A PNG: requests a second with the most clients, the median as a bar and each round as a dot, case by case."""
    from matplotlib.figure import Figure

    from training.evaluation.plots import ACCENT, INK, PALE, png

    cases = [case for case in TITLES if any(row["case"] == case for row in rows)]
    figure = Figure(figsize=(8, 0.4 + 2.8 * len(cases)), dpi=150, layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        most = max(int(row["clients"]) for row in rows if row["case"] == case)
        found: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if row["case"] == case and int(row["clients"]) == most and row["status"] == "ok":
                found[row["server"]].append(float(row["per_s"]))
        names = sorted(found, key=lambda name: median(found[name]))
        colours = [ACCENT if name.startswith(OURS) else PALE for name in names]
        axes.barh(names, [median(found[name]) for name in names], color=colours, height=0.7)
        for name in names:
            axes.plot(found[name], [name] * len(found[name]), ".", color=INK, markersize=4)
        axes.set_title(f"{TITLES[case]}: requests/s, {most} clients", loc="left", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, length=0)
    return png(figure)


def _of_case(rows: Rows, case: str) -> str:
    clients = sorted({int(row["clients"]) for row in rows if int(row["clients"])})
    windows: dict[tuple[str, int], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok" and row["per_s"]:
            windows[row["server"], int(row["clients"])].append(row)
    servers = sorted({row["server"] for row in rows}, key=lambda name: -_median(windows[name, clients[-1]], "per_s"))
    heads = ["server", *(f"{count} client{'s'[: count > 1]}: requests/s | p50 ms | p99 ms" for count in clients)]
    heads = " | ".join([*heads, f"ours, {clients[-1]} clients, over it", "failed", "rounds"]).split(" | ")
    ours = windows[OURS, clients[-1]]
    lines = [_line(name, [windows[name, count] for count in clients], ours) for name in servers]
    where = ", ".join(sorted({row["machine"] for row in rows}))
    return f"**{TITLES[case]}**, {where}; medians of the rounds:\n\n{table(heads, lines)}"


def _line(name: str, loads: Sequence[Rows], ours: Rows) -> list[str]:
    cells = [name]
    for windows in loads:
        forms = (("per_s", ",.0f"), ("p50_ms", ",.1f"), ("p99_ms", ",.1f"))
        cells += [format(_median(windows, column), form) if windows else "-" for column, form in forms]
    theirs = _median(loads[-1], "per_s")
    ratio = f"{_median(ours, 'per_s') / theirs:.2f}" if ours and theirs else "-"
    failed = sum(int(row["failed"]) for windows in loads for row in windows)
    return [*cells, ratio, f"{failed:,}", str(len(loads[-1]))]


def _median(rows: Rows, column: str) -> float:
    return median(float(row[column]) for row in rows) if rows else 0.0


def _about(rows: Rows) -> str:
    lines = {}
    for row in rows:
        failed = "" if row["status"] == "ok" else f" **Not measured: {row['status']}.**"
        lines[row["server"], failed] = (
            f"- {row['server']} ({row['versions']}; {row['date']}): {row['settings']}.{failed}"
        )
    runtimes = sorted({(row["case"], row["runtime"]) for row in rows if row["server"] == OURS and row["runtime"]})
    chosen = "; ".join(f"{TITLES[case]}: {runtime}" for case, runtime in runtimes)
    return "\n".join([*lines.values(), *([f"\nVestibule chose to compute with: {chosen}."] if chosen else [])])


def same_table(rows: Rows) -> str:
    """Markdown: how far each server's answers are from torch's."""
    if not rows:
        return ""
    lines = []
    for row in rows:
        told = row["status"] == "ok" and row["same_top1"] and row["furthest"]
        cells = [f"{float(row['same_top1']):.2%}", f"{float(row['furthest']):.4f}"] if told else [row["status"], "-"]
        lines.append([f"{row['case']}, {row['server']}", row["pictures"], *cells, row["failed"] or "-"])
    heads = ["case, server", "real pictures", "same likeliest class", "furthest probability", "failed"]
    return f"Answers beside those of torch in float32:\n\n{table(heads, lines)}"


def limit_table(rows: Rows) -> str:
    """Markdown: ours against the runtime in a loop, round by round and in the median."""
    lines, ratios = [], []
    for number in sorted({int(row["round"]) for row in rows}):
        of = {row["server"]: row for row in rows if int(row["round"]) == number and row["per_s"]}
        if {OURS, "bare runtime"} <= of.keys():
            ours, bare = (float(of[name]["per_s"]) for name in (OURS, "bare runtime"))
            ratios.append(ours / bare)
            cells = [f"{ours:,.1f}", f"{bare:,.1f}", of["bare runtime"]["settings"], f"{ours / bare:.3f}"]
            lines.append([str(number), *cells])
    if not lines:
        return ""
    row = rows[0]
    lines.append(["median", "", "", "", f"{median(ratios):.3f}"])
    said = f"{TITLES[row['case']]}, {row['clients']} clients, {row['runtime']}, {row['machine']}, {row['date']}"
    heads = ["round", "ours, requests/s", "the runtime in a loop, pictures/s", "its best", "ours / loop"]
    return f"**Against the bare runtime**: {said}:\n\n{table(heads, lines)}"


def parts_table(rows: Rows) -> str:
    """Markdown: what `Server-Timing` explains of the client's latency."""
    if not rows:
        return ""
    columns = dict.fromkeys(["latency_ms", *(f"{stage}_ms" for stage in STAGES)], ".2f")
    lines = []
    for clients in sorted({int(row["clients"]) for row in rows}):
        of = [row for row in rows if int(row["clients"]) == clients]
        cells = [format(_median(of, name), form) for name, form in columns.items()]
        shares = [f"{_median(of, name):.1%}" for name in ("explained", "within")]
        lines.append([str(clients), *cells, *shares, str(len(of))])
    heads = [
        "clients",
        "latency ms",
        *STAGES,
        "all stages of latency",
        "within 10 %",
        "rounds",
    ]
    return f"**Server-Timing**, {TITLES[rows[0]['case']]}, medians:\n\n{table(heads, lines)}"


def generator_line(rows: Rows) -> str:
    """A sentence on what the generator can do by itself."""
    said = [
        f"{float(row['per_s']):,.0f} requests/s by {row['clients']} client{'s'[: int(row['clients']) > 1]}"
        f" ({1e6 * float(row['generator_cores']) / float(row['per_s']):.0f} µs of a core each)"
        for row in rows
        if float(row["per_s"])
    ]
    return f"The generator against a server that computes nothing: {', '.join(said)}." if said else ""


def faults_table(rows: Rows) -> str:
    """Markdown: a line for each figure, a column for each server."""
    if not rows:
        return ""
    servers = list(dict.fromkeys(row["server"] for row in rows))
    faults = list(dict.fromkeys(row["fault"] for row in rows))
    figures = sorted(dict.fromkeys(map(_figure, rows)), key=lambda figure: faults.index(figure[0]))
    lines = []
    for figure in figures:
        cells = []
        for server in servers:
            of = [row for row in rows if row["server"] == server and _figure(row) == figure and row["value"]]
            cells.append(f"{_median(of, 'value'):,.4g}" if of else "-")
        fault, measure, unit, wanted = figure
        lines.append([f"{fault}: {measure}{f', {unit}' if unit else ''}", wanted or "", *cells])
    notes = [f"- {row['server']}, {row['fault']}: {row['note']}." for row in rows if row["note"]]
    measured: dict[str, dict[str, None]] = {}
    for row in rows:
        measured.setdefault(f"on {row['machine']}, {row['date']}", {})[row["fault"]] = None
    about = [f"\n{', '.join(names).capitalize()}: {where}." for where, names in measured.items()]
    return "\n".join([table(["what", "wanted", *servers], lines), "", *notes, *about])


def _figure(row: dict[str, str]) -> tuple[str, str, str, str]:
    return row["fault"], row["measure"], row["unit"], row["wanted"]
