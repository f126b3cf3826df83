"""The papers' ideas, each by short runs that differ in it alone: what docs/ideas.md shows.

    python -m benchmarks.experiments.ideas plan            what each cell costs
    python -m benchmarks.experiments.ideas run --jobs 2    train missing runs, write benchmarks/results/ideas*.csv
    python -m benchmarks.experiments.ideas plot            write the plots and the tables of docs/ideas.md

Every cell is a run of `training.classify` in VESTIBULE_RUNS/ideas/, by benchmarks/experiments/ideas-cifar10.toml with
overrides. A run that has ended is left alone, one that was killed is resumed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import tables
from benchmarks.experiments.ideas_cells import PILOT_EPOCHS, Experiment, Job, cost, find, minutes, pilots, runs
from benchmarks.experiments.ideas_report import PAGE, PICTURES, Row, read, report, write
from benchmarks.experiments.runs import RunFailedError, card_made_by
from training.recipe.config import runs_folder

RESULTS = Path("benchmarks/results/ideas.csv")
PILOTS = Path("benchmarks/results/ideas-pilots.csv")

cli = typer.Typer(add_completion=False, no_args_is_help=True)
Only = Annotated[list[str] | None, typer.Option("--only", help="An experiment's name; repeatable.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each cell, with seeds 1, 2, ...")]


def folder_of(job: Job) -> Path:
    """The run's folder."""
    return runs_folder() / "ideas" / job.name


def is_done(job: Job) -> bool:
    """Whether there is the model that this very recipe makes."""
    return card_made_by(job.recipe, folder_of(job)) is not None


def command(job: Job) -> list[str]:
    """Resuming what has begun: training itself refuses to go on with another recipe's run."""
    begun = (folder_of(job) / "last.pt").exists()
    changes = [part for override in job.overrides for part in ("--set", override)]
    arguments = [
        str(job.experiment.recipe),
        "--run",
        f"ideas/{job.name}",
        "--resume" if begun else "--overwrite",
        *changes,
    ]
    return [sys.executable, "-m", "training.classify", *arguments]


def train(job: Job, threads: int) -> None:
    """Train unless it is done. A pilot may diverge: its rate is then known to be too high.

    Raises:
        RunFailedError: any other end without a model.
    """
    if is_done(job):
        return
    log = folder_of(job).with_name(f"{job.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command(job), env=environment, capture_output=True, text=True, check=False)
    log.write_text(ended.stdout + ended.stderr)
    diverged = job.pilot and "error: the loss is" in ended.stderr
    if ended.returncode and not diverged:
        raise RunFailedError(f"{job.name} ended with {ended.returncode}, see {log}: {ended.stderr.strip()[-300:]}")


def train_all(jobs: Sequence[Job], at_once: int, threads: int, after_each: Callable[[], None]) -> None:
    """Train `at_once` side by side, in their order.

    Raises:
        RunFailedError: for the first that failed; those not yet begun are not begun then.
    """
    pool = ThreadPoolExecutor(at_once)
    try:
        futures = {pool.submit(train, job, threads): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            future.result()
            after_each()
            print(f"{number}/{len(jobs)} {futures[future].name}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def history(job: Job) -> list[dict[str, float]]:
    """The run's rows, one for each epoch."""
    rows: list[dict[str, float]] = json.loads((folder_of(job) / "history.json").read_text())
    return rows


def rows_of(job: Job) -> list[Row]:
    """The CSV's rows of a run that is done."""
    card = card_made_by(job.recipe, folder_of(job))
    assert card is not None
    assert card.training is not None
    network, epochs = cost(job.recipe), history(job)
    return [
        Row(
            experiment=job.experiment.name,
            cell=job.cell.name,
            seed=job.seed,
            epoch=int(row["epoch"]),
            lr=job.lr,
            parameters=network.parameters,
            macs=network.macs,
            train_loss=round(row["train/loss"], 5),
            train_accuracy=round(row["train/accuracy"], 5),
            validation_loss=round(row["validation/loss"], 5),
            validation_accuracy=round(row["validation/accuracy"], 5),
            seconds=round(card.training.wall_time_s / len(epochs), 2),
        )
        for row in epochs
    ]


def pilot_loss(job: Job) -> float:
    """The training loss of the pilot's last epoch, infinite where it diverged.

    Validation would choose the rate of a network that does not learn by chance; what does not fit cannot generalise.
    """
    return history(job)[-1]["train/loss"] if is_done(job) else math.inf


def choose_rates(experiments: Sequence[Experiment]) -> dict[tuple[str, str], float]:
    """Each cell's peak learning rate, once the pilots are done."""
    rates = {(one.name, cell.name): cell.rates[0] for one in experiments for cell in one.cells}
    best: dict[tuple[str, str], float] = {}
    for job in (job for experiment in experiments for job in pilots(experiment)):
        place, loss = (job.experiment.name, job.cell.name), pilot_loss(job)
        if loss < best.get(place, math.inf):
            best[place], rates[place] = loss, job.lr
    return rates


def write_pilots(experiments: Sequence[Experiment]) -> None:
    """What the rates were chosen by, in place of these experiments' rows before."""
    names = {experiment.name for experiment in experiments}
    kept = [row for row in tables.read(PILOTS) if row["experiment"] not in names]
    new = [
        {
            "experiment": job.experiment.name,
            "cell": job.cell.name,
            "lr": f"{job.lr:g}",
            "epochs": str(PILOT_EPOCHS),
            "train_loss": f"{pilot_loss(job):.4f}",
        }
        for experiment in experiments
        for job in pilots(experiment)
    ]
    tables.write(PILOTS, ["experiment", "cell", "lr", "epochs", "train_loss"], kept + new)


def collect(experiments: Sequence[Experiment], jobs: Sequence[Job]) -> None:
    """Put the rows of all jobs that are done into the CSV, in place of these experiments' rows before."""
    names = {experiment.name for experiment in experiments}
    kept = [row for row in read(RESULTS) if row.experiment not in names]
    write(RESULTS, kept + [row for job in jobs if is_done(job) for row in rows_of(job)])


def _chosen(only: list[str] | None) -> list[Experiment]:
    try:
        return find(only or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@cli.command()
def plan(
    only: Only = None,
    seeds: Seeds = 2,
    gflops: Annotated[float, typer.Option(min=1, help="What a core is said to do, in 1e9 operations a second.")] = 150,
) -> None:
    """What each cell costs in minutes of one core: if it did `gflops`, and at the rate that was measured."""
    experiments = _chosen(only)
    print(f"{'run':<30} {'parameters':>10} {'MMACs':>6} {'epochs':>6} {'min':>6} {'measured':>8}  (seeds: {seeds})")
    total = [0.0, 0.0]
    rates = {(experiment.name, cell.name): cell.rates[0] for experiment in experiments for cell in experiment.cells}
    shorts = [job for experiment in experiments for job in pilots(experiment)]
    for job in [*runs(experiments, seeds, rates), *shorts]:
        times = minutes(job, gflops), minutes(job, job.cell.gflops)
        total = [sum(pair) for pair in zip(total, times, strict=True)]
        network, epochs = cost(job.recipe), job.recipe.train.epochs
        print(
            f"{job.name:<30} {network.parameters:>10,} {network.macs / 1e6:>6.1f} {epochs:>6}"
            f" {times[0]:>6.1f} {times[1]:>8.1f}"
        )
    print(f"{'all':<54} {total[0]:>7.1f} {total[1]:>8.1f}")


@cli.command()
def run(
    only: Only = None,
    seeds: Seeds = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of each run.")] = 1,
) -> None:
    """Pilots, then every cell with every seed; the CSV is written after each run that ends."""
    experiments = _chosen(only)
    try:
        shorts = [job for experiment in experiments for job in pilots(experiment)]
        train_all(shorts, jobs, threads, lambda: None)
        write_pilots(experiments)
        cells = list(runs(experiments, seeds, choose_rates(experiments)))
        train_all(cells, jobs, threads, lambda: collect(experiments, cells))
    except RunFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@cli.command()
def plot(only: Only = None) -> None:
    """Redraw docs/pictures/ideas-*.png and rewrite the tables of docs/ideas.md from the CSV."""
    written = report(_chosen(only), read(RESULTS), PAGE, PICTURES)
    print("\n".join(map(str, written)) or f"{RESULTS} has no rows of them")


if __name__ == "__main__":
    cli()
