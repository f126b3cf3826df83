"""What a server does when it is asked for too much, for what it cannot do, or is killed; docs/serving.md says how.

    python -m benchmarks.serving.faults run                                            ours, by all faults
    python -m benchmarks.serving.faults run --only mosec,litserve --faults bad,burst,kill --python PEERS/bin/python
    python -m benchmarks.serving.faults report                                         the table in docs/serving.md

Each fault has a new server of its own. Rows of benchmarks/results/faults.csv are written in place of those of the same
server and fault, as soon as that fault is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import tables
from benchmarks.serving.fault_kinds import FAULTS, PEERS, Figure, Trial
from benchmarks.serving.models import CASES
from benchmarks.serving.peers import PAGE, Only, Port, Python, Results, Work, bench, chosen, coffee
from benchmarks.serving.report import faults_table
from benchmarks.serving.servers import KINDS, Running, ServerError
from benchmarks.tables import machine

RESULTS = Path("benchmarks/results")
OF_PEERS = ",".join(PEERS)
OF_ALL = ",".join(FAULTS)

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Row:
    """One figure. `wanted` is in words; `note` says why there is none, or what else was seen."""

    server: str
    fault: str
    measure: str
    value: float | None
    unit: str = ""
    wanted: str = ""
    note: str = ""
    versions: str = ""
    machine: str = ""
    date: str = ""


@cli.command()
def run(  # noqa: PLR0913, PLR0917  an option each
    only: Only = "vestibule",
    faults: Annotated[str, typer.Option(help=f"With commas between; peers have {OF_PEERS} only.")] = OF_ALL,
    case: Annotated[
        str, typer.Option(help="The model of all faults but the reloads, which have LeNet-5.")
    ] = "resnet64",
    seconds: Annotated[float, typer.Option(min=1, help="Of overload.")] = 60,
    reloads: Annotated[int, typer.Option(min=1)] = 500,
    python: Python = sys.executable,
    work: Work = None,
    port: Port = 8600,
    results: Results = RESULTS,
) -> None:
    """Measure faults, one after another."""
    place, picture = bench(work, python), coffee()
    for name in chosen(only, list(KINDS)):
        about = Row(name, "", "", None, machine=machine(), date=time.strftime("%Y-%m-%d"))
        about = replace(about, versions=place.versions(KINDS[name]))
        for fault in chosen(faults, list(FAULTS)):
            if name != "vestibule" and fault not in PEERS:
                continue
            model = CASES["lenet" if fault == "reload" else case]
            trial = Trial(partial(Running, name, place, model, port), picture, seconds, reloads)
            rows = of(about, fault, trial, FAULTS[fault])
            put(results / "faults.csv", name, fault, rows)
            for row in rows:
                typer.echo(f"{row.server}, {row.fault}: {row.measure} {row.value} {row.unit} {row.note}")


def of(about: Row, fault: str, trial: Trial, measure: Callable[[Trial], Iterable[Figure]]) -> list[Row]:
    """The rows of a fault; where it could not be measured, one that says why."""
    about = replace(about, fault=fault)
    try:
        return [replace(about, **vars(figure)) for figure in measure(trial)]
    except ServerError as error:
        return [replace(about, measure="not measured", note=str(error))]
    finally:
        trial.end()


def put(path: Path, server: str, fault: str, rows: Iterable[Row]) -> None:
    """Write the rows in place of all that the file has of the same server and fault."""
    old = [row for row in tables.read(path) if (row["server"], row["fault"]) != (server, fault)]
    columns = [*Row.__dataclass_fields__]
    new = [{name: "" if value is None else str(value) for name, value in vars(row).items()} for row in rows]
    tables.write(path, columns, [*old, *new])


@cli.command()
def report(results: Results = RESULTS, page: Path = PAGE) -> None:
    """Rewrite the table of the page, from the CSV file."""
    from training.evaluation.markdown import put as put_into

    put_into(page, "faults", faults_table(tables.read(results / "faults.csv")), heading="Serving, side by side")


if __name__ == "__main__":
    cli()
