"""The tables of docs/gallery-peers.md, from the rows of the CSV files; a step of `benchmarks.gallery.peers`."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[dict[str, str]]

# Headings of the peers' table, and how the columns are written.
COLUMNS = {
    "recall@1": ("recall_1", ".4f"),
    "of enrolled": ("recall_1_enrolled", ".4f"),
    "recall@10": ("recall_10", ".4f"),
    "p50 ms": ("p50_ms", ".2f"),
    "p99 ms": ("p99_ms", ".2f"),
    "1 client /s": ("per_s_1", ",.0f"),
    "8 clients /s": ("per_s_8", ",.0f"),
    "load /s": ("load_per_s", ",.0f"),
    "load + build s": ("total_s", ",.1f"),
    "memory MB": ("anonymous_mb", ",.0f"),
    "with files MB": ("peak_mb", ",.0f"),
    "when building MB": ("build_anonymous_mb", ",.0f"),
    "disk MB": ("disk_mb", ",.0f"),
    "ready s": ("ready_s", ".2f"),
}


def peers_table(rows: Rows) -> str:
    """Markdown: for each number of vectors a table of engines, and a line on what the gallery adds to FAISS."""
    sizes = sorted({int(row["vectors"]) for row in rows})
    return "\n\n".join(_of_one_size([row for row in rows if int(row["vectors"]) == size], size) for size in sizes)


def _of_one_size(rows: Rows, size: int) -> str:
    lines = [
        f"**{size:,} vectors**, {', '.join(sorted({row['machine'] for row in rows}))}:",
        "",
        f"| engine | {' | '.join(COLUMNS)} |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [format(float(row[name]), form) if row[name] else "-" for name, form in COLUMNS.values()]
        lines.append(f"| {row['engine']} | {' | '.join(cells)} |")
    lines.append("")
    lines += [_about(row) for row in rows]
    lines += [_pair(row) for row in rows if row["over_raw"]]
    return "\n".join(lines)


def _about(row: dict[str, str]) -> str:
    breadth = f", breadth {row['breadth']}" if row["breadth"] else ""
    failed = "" if row["status"] == "ok" else f" **Not measured to the end: {row['status']}.**"
    settings = f": {row['settings']}{breadth}" if row["settings"] else ""
    return f"- {row['engine']} ({row['versions']}, {row['date']}){settings}.{failed}"


def _pair(row: dict[str, str]) -> str:
    ours, index, raw, more = (float(row[name]) for name in ("pair_ms", "pair_index_ms", "pair_raw_ms", "over_raw_ms"))
    return (
        "\nThe same questions to the gallery and to FAISS alone with the very same index, in turn, in one process, p50:"
        f" {ours:.3f} ms against {raw:.3f} ms, {more:+.3f} ms or {100 * float(row['over_raw']):+.1f} %; the gallery's"
        f" index without ledger and subjects takes {index:.3f} ms."
    )


def ingest_table(rows: Rows) -> str:
    """Markdown: a line for each figure."""
    lines = ["| vectors | what | seen | wanted at least |", "|--:|---|--:|--:|"]
    for row in rows:
        wanted = f"{float(row['wanted']):,.0f}" if row["wanted"] else ""
        lines.append(
            f"| {int(row['vectors']):,} | {row['measure']} | {float(row['value']):,.5g} {row['unit']} | {wanted} |"
        )
    about = sorted({f"{row['machine']}; {row['versions']}; {row['date']}" for row in rows})
    return "\n".join([*lines, "", *(f"On {one}." for one in about)])
