"""Losses and mining for faces, with and without pretraining, at an equal budget: what docs/face-losses.md shows.

    python -m benchmarks.experiments.face_losses run --jobs 2    train what is not trained yet, write the CSV files
    python -m benchmarks.experiments.face_losses report          from the CSV: the plot and the table in docs/

A cell sees `EPOCHS` epochs in all: one with pretraining spends `PRETRAINING` of them on that stage, which its cells
share. Cells are runs of `training.embed` by benchmarks/experiments/face-losses.toml with overrides; distillation needs
the vectors of `training.teach`. A cell that has ended is left alone, any other begins anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from torch import Tensor

from benchmarks import tables
from benchmarks.experiments.runs import RunFailedError, card_made_by
from models.card import ModelCard
from models.checkpoint import write_atomically
from training.core.export import begin, export
from training.core.trainer import fit
from training.embed import setup
from training.evaluation.markdown import put
from training.evaluation.plots import COLOURS, blank, png
from training.recipe.config import read_recipe, runs_folder
from training.recipe.embed_config import EmbedRecipe

RECIPE = Path("benchmarks/experiments/face-losses.toml")
RESULTS = Path("benchmarks/results/face_losses.csv")
ACTIVE = Path("benchmarks/results/face_losses_active.csv")
PAGE = Path("docs/face-losses.md")
PICTURE = Path("docs/pictures/face-losses-active.png")

EPOCHS, PRETRAINING = 2, 1
FIGURES = ("accuracy", "tar@fmr=0.01", "tar@fmr=0.001", "eer")
_WINDOW = 30  # steps that a point of the plot is the mean of

LOSSES = {
    "contrastive": ("loss.kind='contrastive'", "loss.mining='batch-all'", "loss.margin=1.0", "loss.squared=true"),
    "triplet, random": ("loss.mining='random'",),
    "triplet, semi-hard": ("loss.mining='semi-hard'",),
    "triplet, batch-hard": ("loss.mining='batch-hard'",),
}
STAGES = {"distillation": ("loss.kind='distillation'", "loss.teacher='dlib'")}

cli = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@dataclass(frozen=True)
class Cell:
    """A loss after a stage; no loss: the stage itself; no stage: from random weights."""

    loss: str = ""
    stage: str = ""

    @property
    def name(self) -> str:
        """Of the run's folder and of the exported network."""
        return "-".join(["face-losses", *f"{self.stage} {self.loss}".replace(",", "").split()])

    @property
    def epochs(self) -> int:
        """Its own, without those of the stage before."""
        if not self.loss:
            return PRETRAINING
        return EPOCHS - PRETRAINING if self.stage else EPOCHS

    @property
    def recipe(self) -> EmbedRecipe:
        """The common recipe with the cell's overrides."""
        changes = [f"name='{self.name}'", f"train.epochs={self.epochs}"]
        changes += LOSSES[self.loss] if self.loss else STAGES[self.stage]
        if self.loss and self.stage:
            changes += [f"model.init='{Cell(stage=self.stage).name}'", "train.lr=0.001"]
        return read_recipe(EmbedRecipe, RECIPE, changes)

    @property
    def folder(self) -> Path:
        """The run's."""
        return runs_folder() / self.name


def waves() -> list[list[Cell]]:
    """Every cell; the second wave goes on from the stages, which are in the first."""
    first = [*(Cell(stage=stage) for stage in STAGES), *(Cell(loss) for loss in LOSSES)]
    return [first, [Cell(loss, stage) for stage in STAGES for loss in LOSSES]]


def cells() -> list[Cell]:
    """Every cell, each after the one that it goes on from."""
    return [cell for wave in waves() for cell in wave]


def card_of(cell: Cell) -> ModelCard | None:
    """Of the network that this very recipe made, where it was made."""
    return card_made_by(cell.recipe, cell.folder)


@cli.command("cell", hidden=True)
def train(name: str) -> None:
    """Train one cell in this process; its active.json has the share of active triplets at every step."""
    recipe = next(cell for cell in cells() if cell.name == name).recipe
    task, run = begin(setup, recipe, overwrite=True)
    active: list[float] = []
    step = task.step

    def recorded(*place: Any) -> Mapping[str, Tensor]:
        values = step(*place)
        active.append(float(values["active"]))
        return values

    task.step = recorded  # type: ignore[assignment, method-assign]
    progress = fit(task, run, recipe.train, recipe.seed)
    (run.folder / "active.json").write_text(json.dumps(active))
    export(task, run, progress)


@cli.command()
def run(
    jobs: Annotated[int, typer.Option(min=1, help="Cells side by side, each on one thread.")] = 1,
) -> None:
    """Train what is not trained yet and write the CSV files."""
    try:
        with ThreadPoolExecutor(jobs) as pool:
            for wave in waves():
                list(pool.map(_start, wave))
                write_results()
    except RunFailedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def _start(cell: Cell) -> None:
    if card_of(cell):
        return
    command = [sys.executable, "-m", "benchmarks.experiments.face_losses", "cell", cell.name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RunFailedError(f"{cell.name} ended with {ended.returncode}: {ended.stderr.strip()[-400:]}")
    typer.echo(cell.name)


def write_results() -> None:
    """Both CSV files, from the runs that have ended."""
    rows: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    for cell in cells():
        card = card_of(cell)
        if card is None or card.training is None:
            continue
        about = {"loss": cell.loss, "pretraining": cell.stage}
        minutes = round(card.training.wall_time_s / 60, 1)
        figures = {metric.name: round(metric.value, 4) for metric in card.metrics}
        rows.append({**about, "epochs": cell.epochs, "minutes": minutes, **figures})
        if cell.loss.startswith("triplet"):
            shares = json.loads((cell.folder / "active.json").read_text())
            for first in range(0, len(shares), _WINDOW):
                share = round(fmean(shares[first : first + _WINDOW]), 4)
                curves.append({**about, "step": min(first + _WINDOW, len(shares)), "active": share})
    tables.write(RESULTS, ["loss", "pretraining", "epochs", "minutes", *FIGURES], rows)
    tables.write(ACTIVE, ["loss", "pretraining", "step", "active"], curves)


def draw(rows: list[dict[str, str]]) -> bytes:
    """A PNG of the share of active triplets over the steps of a cell's own: a colour a mining, a dash a pretraining."""
    figure, axes = blank(
        "Triplets that still teach",
        f"share with a loss above zero, {_WINDOW} steps' mean; dashed: after distillation",
        "step",
        "active triplets",
    )
    styles = dict(zip(("", *STAGES), ("-", "--"), strict=True))
    for loss, colour in zip([loss for loss in LOSSES if loss.startswith("triplet")], COLOURS, strict=False):
        for stage, style in styles.items():
            curve = [row for row in rows if row["loss"] == loss and row["pretraining"] == stage]
            places, shares = [int(row["step"]) for row in curve], [float(row["active"]) for row in curve]
            axes.plot(places, shares, style, color=colour, linewidth=1.6, label=loss if not stage else None)
    axes.set_ylim(0, 1.02)  # room for half a line
    axes.legend(frameon=False)
    return png(figure)


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a line for each cell, the stages by themselves last."""
    lines = [
        "| loss | pretraining | epochs, before | accuracy | TAR at FMR 1e-2 | TAR at FMR 1e-3 | EER | minutes |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: not row["loss"]):
        before = PRETRAINING if row["pretraining"] and row["loss"] else 0
        figures = [f"{float(row[name]):.4f}" for name in FIGURES]
        epochs = f"{int(row['epochs']) + before}, {before or '-'}"
        columns = [row["loss"] or "(the stage alone)", row["pretraining"] or "-", epochs, *figures, row["minutes"]]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


@cli.command()
def report() -> None:
    """Redraw the plot and rewrite the table, from the CSV files."""
    write_atomically(PICTURE, draw(tables.read(ACTIVE)))
    put(PAGE, "face-losses", table(tables.read(RESULTS)), heading="Losses for faces, side by side")


if __name__ == "__main__":
    cli()
