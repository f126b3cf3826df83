"""A gallery of millions beside raw FAISS and other vector indexes and databases; docs/gallery-peers.md says how.

    python -m benchmarks.gallery.peers run --vectors 1000000 --python PEERS/bin/python
    python -m benchmarks.gallery.peers ingest --vectors 1000000
    python -m benchmarks.gallery.peers report        from the CSV files: the tables in docs/

`run` and `ingest` write rows of benchmarks/results/gallery_peers.csv and gallery_ingest.csv in place of those of the
same engine or measure and the same number of vectors. What cannot be measured is in its row with the reason.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import tables
from benchmarks.gallery.clustered import Clustered, questions
from benchmarks.gallery.databases import ENGINES
from benchmarks.gallery.group import Plan, measured
from benchmarks.gallery.ingest import measure
from benchmarks.gallery.report import ingest_table, peers_table
from benchmarks.gallery.worker import Bounds
from benchmarks.tables import machine, merge

RESULTS = Path("benchmarks/results/gallery_peers.csv")
INGEST = Path("benchmarks/results/gallery_ingest.csv")
PAGE = Path("docs/gallery-peers.md")

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


Vectors = Annotated[int, typer.Option(min=100, help="How many are in the gallery.")]
Work = Annotated[Path | None, typer.Option(help="Where the galleries lie meanwhile; default: a temporary folder.")]


@cli.command()
def run(  # noqa: PLR0913, PLR0917  an option each
    vectors: Vectors = 1_000_000,
    queries: Annotated[int, typer.Option(min=20)] = 2000,
    engines: Annotated[str, typer.Option(help="Names, with commas between.")] = ",".join(ENGINES),
    python: Annotated[str, typer.Option(help="Of the environment that has the peers.")] = sys.executable,
    at_once: Annotated[int, typer.Option(min=1, help="Engines that are open side by side.")] = len(ENGINES),
    seconds: Annotated[float, typer.Option(help="For recall, for all rounds of 1 or 8 clients, each.")] = 120,
    limit_s: Annotated[float, typer.Option(help="What building may take.")] = 7200,
    memory_gb: Annotated[float, typer.Option(help="What one engine may take, besides mapped files.")] = 16,
    work: Work = None,
    results: Path = RESULTS,
) -> None:
    """Measure engines side by side."""
    names = engines.split(",")
    if unknown := set(names) - set(ENGINES):
        raise typer.BadParameter(f"no engine {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no engine stays behind
    with tempfile.TemporaryDirectory(prefix="gallery-peers-", dir=work) as folder:
        os.chmod(folder, 0o755)  # PostgreSQL serves as another user
        data = Clustered(vectors)
        asked = questions(data, queries, strangers=0.5, folder=work or Path(folder))
        bounds = Bounds(limit_s, 1000 * memory_gb)
        plan = Plan(data, queries, asked.resolve(), Path(folder).resolve(), seconds, bounds, python)
        for first in range(0, len(names), at_once):
            rows = measured(plan, names[first : first + at_once], machine())
            merge(results, rows, ("engine", "vectors"))
            for row in rows:
                typer.echo(" ".join(f"{name}={value}" for name, value in asdict(row).items() if value is not None))


@cli.command()
def ingest(
    vectors: Vectors = 1_000_000,
    seconds: Annotated[float, typer.Option(help="Of single enrolments.")] = 20,
    work: Work = None,
    results: Path = INGEST,
) -> None:
    """Measure durable enrolment, and searches while the index is built."""
    with tempfile.TemporaryDirectory(prefix="gallery-ingest-", dir=work) as folder:
        rows = measure(Clustered(vectors), Path(folder), seconds, machine())
    merge(results, rows, ("measure", "vectors"))
    for row in rows:
        typer.echo(f"{row.measure}: {row.value:g} {row.unit}")


@cli.command()
def report() -> None:
    """Rewrite the tables of the page, from the CSV files."""
    from training.evaluation.markdown import put  # with it comes torch

    both = f"{peers_table(tables.read(RESULTS))}\n\n{ingest_table(tables.read(INGEST))}"
    put(PAGE, "gallery-peers", both, heading="A gallery of millions, side by side")


if __name__ == "__main__":
    cli()
