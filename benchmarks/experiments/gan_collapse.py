"""A run that is set up to collapse, and the Wasserstein version of the same run; does the monitor tell them apart?

`python -m benchmarks.experiments.gan_collapse` trains both (at most five minutes of one core each), writes
benchmarks/results/gan_collapse.csv and docs/pictures/gan-collapse.png, and exits with 1 unless the first was stopped
as collapsed and the second was not. `--draw-only` draws the picture anew from the CSV file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks import tables
from models.checkpoint import write_atomically
from training import gan
from training.core.errors import CollapsedError
from training.core.export import begin, export
from training.core.trainer import fit
from training.evaluation.plots import COLOURS, INK, PALE, png
from training.recipe.config import read_recipe, runs_folder
from training.recipe.gan_config import GanRecipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECIPE = Path("benchmarks/experiments/gan-collapse.toml")
RESULTS = Path("benchmarks/results/gan_collapse.csv")
PICTURE = Path("docs/pictures/gan-collapse.png")

# What each run changes in the recipe. With the minimax loss a discriminator that is sure gives its generator nothing to
# go by; a critic's slope of 1 gives it the same pull however sure it is.
RUNS: dict[str, list[str]] = {"minimax": ["game.loss=minimax", "game.penalty=0"], "wasserstein": []}

FIGURES = ("classes", "modes", "diversity", "recall", "frechet")
COLUMNS = ("run", "epoch", *FIGURES, "generator_gradient", "stopped", "seconds")


def recipe_of(run: str) -> GanRecipe:
    """The recipe with the run's changes in it."""
    return read_recipe(GanRecipe, RECIPE, [*RUNS[run], f"name=gan-collapse-{run}"])


def train(recipe: GanRecipe) -> None:
    """Train and export.

    Raises:
        CollapsedError: the run is stopped.
    """
    task, run = begin(gan.setup, recipe, overwrite=True)
    export(task, run, fit(task, run, recipe.train, recipe.seed))


def play(run: str) -> list[dict[str, object]]:
    """Train it; a row for each epoch, the last of them with the monitor's message where it was stopped.

    `generator_gradient` is the mean over the epoch, which a run that is stopped at its end does not tell.
    """
    recipe, started = recipe_of(run), time.process_time()
    last: Mapping[str, float] = {}
    message = ""
    try:
        train(recipe)
    except CollapsedError as error:
        last, message = error.figures, str(error)
    seconds = round(time.process_time() - started, 1)
    history = json.loads((runs_folder() / recipe.name / "history.json").read_text())
    rows = [_row(run, int(row["epoch"]), _validated(row), row["train/generator_gradient"]) for row in history]
    if message:
        rows.append(_row(run, len(rows) + 1, last, None))
    rows[-1] |= {"stopped": message, "seconds": seconds}
    return rows


def _validated(row: Mapping[str, float]) -> dict[str, float]:
    return {name.partition("/")[2]: value for name, value in row.items() if name.startswith("validation/")}


def _row(run: str, epoch: int, figures: Mapping[str, float], gradient: float | None) -> dict[str, object]:
    measured = {name: f"{figures[name]:.4g}" for name in FIGURES}
    shown = "" if gradient is None else f"{gradient:.3g}"
    return {"run": run, "epoch": epoch, **measured, "generator_gradient": shown, "stopped": "", "seconds": ""}


def draw(rows: Sequence[Mapping[str, str]]) -> bytes:
    """A PNG with a panel for each figure that the monitor judges by and one for the generator's gradient."""
    from matplotlib.figure import Figure

    watch = recipe_of("wasserstein").watch
    figure = Figure(figsize=(11, 6.4), dpi=130, layout="constrained")
    figure.suptitle("One game, two losses: which generator collapses?", x=0.01, ha="left", color=INK, weight="bold")
    panels = {
        "classes": ("classes of 10 that are drawn", watch.coverage * 10),
        "modes": (f"kinds of pictures of {watch.modes} that are drawn", watch.modes_covered * watch.modes),
        "diversity": ("variety within a class, real = 1", watch.diversity),
        "generator_gradient": ("gradient that reaches the generator", None),
    }
    for number, (name, (title, limit)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(2, 2, number)
        _panel(axes, rows, name, limit)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return png(figure)


def _panel(axes: Axes, rows: Sequence[Mapping[str, str]], name: str, limit: float | None) -> None:
    """Both runs' curves; a cross where one was stopped; a dashed line where the monitor takes exception."""
    for (run, _), colour in zip(RUNS.items(), (COLOURS[1], COLOURS[0]), strict=True):
        curve = [row for row in rows if row["run"] == run and row[name]]
        epochs, values = [int(row["epoch"]) for row in curve], [float(row[name]) for row in curve]
        axes.plot(epochs, values, color=colour, marker=".", label=run)
        if curve and curve[-1]["stopped"]:
            axes.plot(epochs[-1:], values[-1:], "X", color=colour, markersize=11)
            axes.annotate("stopped", (epochs[-1], values[-1]), (9, 4), textcoords="offset points", color=colour)
    if limit is None:
        axes.set_yscale("log")
    else:
        axes.axhline(limit, color=PALE, linestyle="--", linewidth=1, label="monitor's limit")
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch", color=INK)
    axes.grid(color="#e6e8ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def main(
    draw_only: Annotated[bool, typer.Option("--draw-only", help="From the CSV file that is there.")] = False,
) -> None:
    """Both runs, the table, the picture."""
    if not draw_only:
        tables.write(RESULTS, COLUMNS, [row for run in RUNS for row in play(run)])
    rows = tables.read(RESULTS)
    write_atomically(PICTURE, draw(rows))
    stopped = {run: next((row["stopped"] for row in rows if row["run"] == run and row["stopped"]), "") for run in RUNS}
    for run, message in stopped.items():
        typer.echo(f"{run}: {message or 'ran to its end'}")
    raise typer.Exit(int(not (stopped["minimax"] and not stopped["wasserstein"])))


if __name__ == "__main__":
    typer.run(main)
