"""Vestibule's serving beside LitServe, mosec, BentoML, Ray Serve, KServe and plain FastAPI; docs/serving.md says how.

    python -m benchmarks.serving.peers models                          make the models; needs VESTIBULE_DATASETS
    python -m benchmarks.serving.peers same --python PEERS/bin/python  check that all servers answer the same
    python -m benchmarks.serving.peers run --python PEERS/bin/python   requests per second and latency, in rounds
    python -m benchmarks.serving.peers limit                           the bare runtime; the sum of Server-Timing
    python -m benchmarks.serving.peers generator                       the load generator's own limit
    python -m benchmarks.serving.peers report                          write the tables of docs/serving.md

`run` goes on where it broke off: what has a row of this machine in the CSV is not measured again without `--again`.
"""

from __future__ import annotations

import io
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
import uvloop
from PIL import Image

from benchmarks import tables
from benchmarks.serving import load_generator
from benchmarks.serving.agreement import Same, compared, expected
from benchmarks.serving.bare_runtime import bare, chosen_runtime
from benchmarks.serving.models import CASES, Case, pictures
from benchmarks.serving.report import (
    STAGES,
    generator_line,
    limit_table,
    parts_table,
    run_picture,
    run_tables,
    same_table,
)
from benchmarks.serving.servers import HOST, KINDS, Bench, Running, ServerError
from benchmarks.tables import machine, merge
from training.recipe.config import runs_folder

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/serving.md")
ALL = ",".join(KINDS)
SIDE = 224  # pixels of the picture that is sent

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Window:
    """One server for some seconds. `place` is its place in the round, `failed` what was not answered with 200.

    `generator_cores` is what wrk took of the machine. A server that could not be started has one row, of round 0, and
    its `status` says why.
    """

    case: str
    server: str
    clients: int
    round: int
    place: int = 0
    status: str = "ok"
    requests: int | None = None
    failed: int | None = None
    seconds: float | None = None
    per_s: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    generator_cores: float | None = None
    started_s: float | None = None
    runtime: str = ""
    settings: str = ""
    versions: str = ""
    machine: str = ""
    date: str = ""


@dataclass(frozen=True)
class Parts:
    """A round of requests to ours, by what `Server-Timing` says of them: medians, in ms.

    `explained` is the sum of all stages as a share of the client's latency, `within` the share of requests where that
    sum is within a tenth of it.
    """

    case: str
    clients: int
    round: int
    requests: int
    latency_ms: float
    receive_ms: float
    decode_ms: float
    queue_ms: float
    infer_ms: float
    app_ms: float
    explained: float
    within: float
    machine: str
    date: str


KEY = ("case", "server", "clients", "round")

Only = Annotated[str, typer.Option(help="Names of servers, with commas between.")]
Names = Annotated[str, typer.Option(help="Of cases, with commas between.")]
Python = Annotated[str, typer.Option(help="Of the environment that has the peers.")]
Work = Annotated[Path | None, typer.Option(help="For models, logs and compiled networks; VESTIBULE_RUNS/serving.")]
Port = Annotated[int, typer.Option(help="The first; each server that is open has one.")]
Rounds = Annotated[int, typer.Option(min=1)]
Seconds = Annotated[float, typer.Option(min=1, help="Of a window.")]
Warm = Annotated[float, typer.Option(help="Seconds of load before a window.")]
Results = Annotated[Path, typer.Option(help="The folder of the CSV files.")]


def bench(work: Path | None, python: str = sys.executable) -> Bench:
    """Where servers are started; a signal to end lets none of them stay behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = (work or runs_folder() / "serving").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(folder, python)


def chosen(names: str, known: Sequence[str]) -> list[str]:
    """The names, each of which is known."""
    found = names.split(",")
    if unknown := set(found) - set(known):
        raise typer.BadParameter(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return found


def coffee(side: int = SIDE) -> bytes:
    """The middle of examples/coffee.jpg as a square JPEG."""
    with Image.open("examples/coffee.jpg") as picture:
        edge = min(picture.size)
        left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
        square = picture.crop((left, top, left + edge, top + edge)).resize((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    square.save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def started(running: Running, picture: bytes) -> Iterator[Running]:
    """A server that answers, and has decided what it computes with; ended afterwards.

    Raises:
        ServerError: it did not start.
    """
    try:
        running.start(picture)
        running.chosen()
        yield running
    finally:
        running.end()


@cli.command()
def models(work: Work = None) -> None:
    """Make the models that are not there yet."""
    place = bench(work)
    for case in CASES.values():
        typer.echo(place.model(case))


@cli.command()
def same(
    only: Only = ALL,
    cases: Names = "lenet,resnet64",
    count: Annotated[int, typer.Option(min=10, help="Pictures of the test split.")] = 400,
    python: Python = sys.executable,
    work: Work = None,
    port: Port = 8600,
    results: Results = RESULTS,
) -> None:
    """Compare what servers answer to real pictures with torch in float32; exit 1 if they differ by too much."""
    place, picture, bad = bench(work, python), coffee(), False
    for name in chosen(cases, list(CASES)):
        case = CASES[name]
        shown = [data for data, _ in pictures(case.dataset, "test", count)]
        wanted = expected(place.model(case), shown)
        for server in chosen(only, list(KINDS)):
            running = Running(server, place, case, port)
            row = Same(name, server, len(shown), machine=machine(), date=time.strftime("%Y-%m-%d"))
            try:
                with started(running, picture):
                    requests = [running.kind.request(data).encoded(port) for data in shown]
                    replies = uvloop.run(load_generator.in_turn(port, requests, 16))
                    row = compared(row, running.kind, replies, wanted)
                    row = replace(row, runtime=running.chosen())
            except ServerError as error:
                row = replace(row, status=str(error))
            merge(results / "serving_same.csv", [row], ("case", "server"))
            typer.echo(row)
            bad |= not row.good
    raise typer.Exit(bad)


@cli.command()
def run(  # noqa: PLR0913, PLR0917  an option each
    only: Only = ALL,
    cases: Names = "lenet,resnet64",
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas between.")] = "1,16,64",
    rounds: Rounds = 5,
    seconds: Seconds = 4,
    warm: Warm = 1,
    again: Annotated[bool, typer.Option(help="Measure what was measured before, too.")] = False,
    python: Python = sys.executable,
    work: Work = None,
    port: Port = 8600,
    results: Results = RESULTS,
) -> None:
    """Measure servers in rounds, in each of which every one has its turn; the others are stopped meanwhile.

    LeNet-5 is measured with the largest number of clients alone.
    """
    place, csv = bench(work, python), results / "serving.csv"
    numbers = [int(number) for number in clients.split(",")]
    for name in chosen(cases, list(CASES)):
        loads = [max(numbers)] if name == "lenet" else numbers
        wanted = [
            Window(name, server, load, number)
            for number in range(1, rounds + 1)
            for server in in_order(chosen(only, list(KINDS)), name, number)
            for load in loads
        ]
        done = {tuple(row[part] for part in KEY) for row in tables.read(csv) if row["machine"] == machine()}
        left = (
            wanted if again else [one for one in wanted if tuple(str(getattr(one, part)) for part in KEY) not in done]
        )
        for window in measured(place, left, CASES[name], port, (seconds, warm)):
            merge(csv, [window], KEY)
            typer.echo(window)


def in_order(servers: Sequence[str], case: str, number: int) -> list[str]:
    """The servers in the order of that round: by lot, always the same."""
    return random.Random(f"{case} {number}").sample(servers, len(servers))


def measured(
    place: Bench, windows: Sequence[Window], case: Case, port: int, times: tuple[float, float]
) -> Iterator[Window]:
    """The windows, measured one after another; all their servers are open, and all but one stopped."""
    picture, servers = coffee(), list(dict.fromkeys(window.server for window in windows))
    open_now: dict[str, Window] = {}
    running = {name: Running(name, place, case, port + index) for index, name in enumerate(servers)}
    try:
        for name, server in running.items():
            about = Window(
                windows[0].case,
                name,
                0,
                0,
                settings=server.kind.settings,
                versions=place.versions(server.kind),
                machine=machine(),
                date=time.strftime("%Y-%m-%d"),
            )
            try:
                server.start(picture)
                open_now[name] = replace(about, runtime=server.chosen(), started_s=round(server.started_s, 2))
                server.pause()
            except ServerError as error:
                yield replace(about, status=str(error))
        places: dict[tuple[int, str], int] = {}
        for window in windows:
            if window.server in open_now:
                turn = places.setdefault(
                    (window.round, window.server), 1 + sum(key[0] == window.round for key in places)
                )
                about = replace(open_now[window.server], clients=window.clients, round=window.round, place=turn)
                yield one_window(running[window.server], about, picture, place.work, times)
    finally:
        for server in running.values():
            server.end()


def one_window(server: Running, about: Window, picture: bytes, folder: Path, times: tuple[float, float]) -> Window:
    """Some seconds of load on one server, after some that do not count."""
    request, (seconds, warm) = server.kind.request(picture), times
    server.resume()
    try:
        server.answers_within(30, picture)
        load_generator.closed(server.port, request, about.clients, warm, folder)
        load = load_generator.closed(server.port, request, about.clients, seconds, folder)
    except ServerError as error:
        return replace(about, status=str(error))
    finally:
        server.pause()
    return seen(about, load)


def seen(about: Window, load: load_generator.Load) -> Window:
    """The window with what wrk saw; more digits than these say nothing."""
    figures = {name: round(value, 4) for name, value in (vars(load) | {"per_s": load.per_s}).items()}
    return replace(about, **figures)


@cli.command()
def limit(  # noqa: PLR0913, PLR0917  an option each
    case_name: Annotated[str, typer.Option("--case")] = "resnet224",
    clients: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Rounds = 5,
    seconds: Seconds = 6,
    requests: Annotated[int, typer.Option(min=20, help="By whose Server-Timing the parts are known.")] = 300,
    work: Work = None,
    port: Port = 8600,
    results: Results = RESULTS,
) -> None:
    """Ours against the runtime that it chose, called in a loop on tensors at its best batch; then Server-Timing."""
    place, case, picture = bench(work), CASES[case_name], coffee()
    about = Window(case_name, "", clients, 0, machine=machine(), date=time.strftime("%Y-%m-%d"))
    with started(Running("vestibule", place, case, port), picture) as server:
        about = replace(about, runtime=server.chosen(), versions=place.versions(server.kind))
        runtime = chosen_runtime(place.model(case), place.state / "compiled")
        for number in range(1, rounds + 1):
            window = replace(about, server="vestibule", round=number, place=1)
            ours = one_window(server, window, picture, place.work, (seconds, 1))
            batch, per_s = bare(runtime, case.size, seconds)
            loop = replace(
                window, server="bare runtime", place=2, per_s=round(per_s, 4), settings=f"in batches of {batch}"
            )
            merge(results / "serving_limit.csv", [ours, loop], KEY)
            typer.echo(f"{ours.per_s or 0:.1f}/s; {about.runtime} in a loop, in batches of {batch}: {per_s:.1f}/s")
            server.resume()
            rows = [parts(server, picture, load, number, requests) for load in (1, clients)]
            merge(results / "serving_parts.csv", rows, ("case", "clients", "round"))
            for row in rows:
                typer.echo(row)


def parts(server: Running, picture: bytes, clients: int, number: int, requests: int) -> Parts:
    """What `Server-Timing` says of so many requests.

    Raises:
        ServerError: one of them failed.
    """
    request = server.kind.request(picture).encoded(server.port)
    replies = uvloop.run(load_generator.in_turn(server.port, [request] * requests, clients))
    if failed := sum(reply.status != 200 for reply in replies):
        raise ServerError(f"{failed} of {requests} requests failed")
    stages = [server_timing(reply.headers["server-timing"]) for reply in replies]
    latencies = [1000 * reply.seconds for reply in replies]
    explained = [
        sum(times[name] for name in STAGES) / latency for times, latency in zip(stages, latencies, strict=True)
    ]
    named = {f"{name}_ms": median(times[name] for times in stages) for name in STAGES}
    return Parts(
        next(name for name, case in CASES.items() if case == server.case),
        clients,
        number,
        requests,
        median(latencies),
        **named,
        explained=median(explained),
        within=sum(abs(1 - share) <= 0.1 for share in explained) / requests,
        machine=machine(),
        date=time.strftime("%Y-%m-%d"),
    )


def server_timing(header: str) -> dict[str, float]:
    """The stages and their durations in ms."""
    stages = (stage.partition(";dur=") for stage in header.split(", "))
    return {name: float(duration) for name, _, duration in stages}


@cli.command()
def generator(seconds: Seconds = 4, work: Work = None, port: Port = 8600, results: Results = RESULTS) -> None:
    """Let wrk ask a server that computes nothing."""
    place, request = bench(work), KINDS["vestibule"].request(coffee())
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serving.trivial_server", str(port)])
    try:
        listens(port)
        rows = []
        for clients in (1, 64):
            load = load_generator.closed(port, request, clients, seconds, place.work)
            about = Window("nothing", "trivial", clients, 1, machine=machine(), date=time.strftime("%Y-%m-%d"))
            rows.append(seen(about, load))
            typer.echo(rows[-1])
    finally:
        process.terminate()
        process.wait()
    merge(results / "serving_generator.csv", rows, KEY)


def listens(port: int) -> None:
    """Return when somebody takes connections on this port."""
    while True:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=10):
            return
        time.sleep(0.1)


@cli.command()
def report(results: Results = RESULTS, page: Path = PAGE) -> None:
    """Rewrite the tables of the page, from the CSV files."""
    from training.evaluation.markdown import put

    read = {
        name: tables.read(results / f"serving{name}.csv") for name in ("", "_same", "_limit", "_parts", "_generator")
    }
    picture = page.parent / "pictures" / "serving.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(run_picture(read[""]))
    written = [
        "![Requests a second, server by server](pictures/serving.png)",
        run_tables(read[""]),
        same_table(read["_same"]),
        limit_table(read["_limit"]),
        parts_table(read["_parts"]),
        generator_line(read["_generator"]),
    ]
    put(page, "serving", "\n\n".join(filter(None, written)), heading="Serving, side by side")


if __name__ == "__main__":
    cli()
