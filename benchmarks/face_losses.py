"""Losses and mining for faces, with and without pretraining, at an equal budget: what docs/face-losses.md shows.

    python -m benchmarks.face_losses run --jobs 2    train what is not trained yet, write the CSV files
    python -m benchmarks.face_losses report          from the CSV: the plot and the table in docs/

A cell sees `EPOCHS` epochs in all: one with pretraining spends `PRETRAINING` of them on that stage, which its cells
share. Cells are runs of `training.embed` by benchmarks/face-losses.toml with overrides; distillation needs
the vectors of `training.teach`. A cell that has ended is left alone, any other begins anew.
"""

from __future__ import annotations

import csv
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

from models.card import ModelCard
from models.checkpoint import write_atomically
from training.config import EmbedRecipe, read_recipe, runs_folder
from training.drawing import COLOURS, blank, png
from training.embed import export, setup
from training.loop import fit
from training.pages import put

RECIPE = Path("benchmarks/face-losses.toml")
RESULTS = Path("benchmarks/results/face_losses.csv")
ACTIVE = Path("benchmarks/results/face_losses_active.csv")
PAGE = Path("docs/face-losses.md")
PICTURE = Path("docs/pictures/face-losses-active.png")

EPOCHS, PRETRAINING = 2, 1
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
    """Every cell; each wave has the stage that the next one's cells go on from."""
    stages = list(STAGES)
    before = [[Cell(stage=stage)] for stage in stages]
    return [
        [*following, *(Cell(loss, stage) for loss in LOSSES)]
        for stage, following in zip(["", *stages], [*before, []], strict=True)
    ]


def cells() -> list[Cell]:
    """Every cell, each after the one that it goes on from."""
    return [cell for wave in waves() for cell in wave]


def card_of(cell: Cell) -> ModelCard | None:
    """Of the network that this very recipe made, where it was made."""
    path = cell.folder / "export" / cell.name / "card.json"
    if not path.is_file():
        return None
    card = ModelCard.model_validate_json(path.read_bytes())
    return card if card.training and card.training.recipe == cell.recipe.model_dump(mode="json") else None


def train(name: str) -> None:
    """One cell; active.json beside its history has the share of active triplets at every step."""
    cell = next(cell for cell in cells() if cell.name == name)
    recipe = cell.recipe
    task, run = setup(recipe, None, resume=False, overwrite=True)
    active: list[float] = []
    step = task.step

    def recorded(*place: Any) -> Mapping[str, Tensor]:
        values = step(*place)
        active.append(float(values["active"]))
        return values

    task.step = recorded  # type: ignore[assignment, method-assign]
    progress = fit(task, run, recipe.train, seed=recipe.seed, accelerator=task.accelerator, resume=False)
    (run.folder / "active.json").write_text(json.dumps(active))
    export(task, run, progress)


@cli.command("cell", hidden=True)
def one(name: str) -> None:
    """Train one cell in this process."""
    train(name)


@cli.command()
def run(
    jobs: Annotated[int, typer.Option(min=1, help="Cells side by side, each on one thread.")] = 1,
) -> None:
    """Train what is not trained yet and write the CSV files."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(cell: Cell) -> None:
        if card_of(cell):
            return
        command = [sys.executable, "-m", "benchmarks.face_losses", "cell", cell.name]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise typer.BadParameter(f"{cell.name} failed: {ended.stderr.strip()[-400:]}")
        typer.echo(cell.name)

    with ThreadPoolExecutor(jobs) as pool:
        for wave in waves():
            list(pool.map(start, wave))
            write_results()


def write_results() -> None:
    """Both CSV files, from the runs that have ended."""
    rows: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    for cell in cells():
        card = card_of(cell)
        if card is None or card.training is None:
            continue
        figures = {metric.name: round(metric.value, 4) for metric in card.metrics}
        about = {"loss": cell.loss, "pretraining": cell.stage}
        minutes = round(card.training.wall_time_s / 60, 1)
        rows.append({**about, "epochs": cell.epochs, "minutes": minutes, **figures})
        shares = json.loads((cell.folder / "active.json").read_text())
        if not cell.loss.startswith("triplet"):
            continue
        for first in range(0, len(shares), _WINDOW):
            share = round(fmean(shares[first : first + _WINDOW]), 4)
            curves.append({**about, "step": min(first + _WINDOW, len(shares)), "active": share})
    _write(RESULTS, rows)
    _write(ACTIVE, curves)


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
        figures = [f"{float(row[name]):.4f}" for name in ("accuracy", "tar@fmr=0.01", "tar@fmr=0.001", "eer")]
        epochs = f"{int(row['epochs']) + before}, {before or '-'}"
        columns = [row["loss"] or "(the stage alone)", row["pretraining"] or "-", epochs, *figures, row["minutes"]]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


@cli.command()
def report() -> None:
    """Redraw the plot and rewrite the table, from the CSV files."""
    write_atomically(PICTURE, draw(_read(ACTIVE)))
    put(PAGE, "face-losses", table(_read(RESULTS)), heading="Losses for faces, side by side")


if __name__ == "__main__":
    cli()
