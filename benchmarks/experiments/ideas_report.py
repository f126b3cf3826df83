"""From the CSV of the runs to a plot and a table for each experiment; the runs themselves are not needed any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from benchmarks import tables
from benchmarks.experiments.ideas_cells import Cell, Experiment
from models.checkpoint import write_atomically
from training.evaluation.markdown import replaced
from training.evaluation.plots import COLOURS, blank, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = Path("docs/ideas.md")
PICTURES = Path("docs/pictures")

_LABEL_GAP = 4.6  # of a hundred parts of the vertical axis, between two labels' centres


@dataclass(frozen=True)
class Row:
    """One epoch of one run. Accuracies are 0..1; `lr` is the peak rate, `seconds` an epoch's mean over the run.

    Training figures are means over the epoch's steps, in training mode: with dropout and augmentation.
    """

    experiment: str
    cell: str
    seed: int
    epoch: int
    lr: float
    parameters: int
    macs: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """One cell's error in per cent after each epoch: the mean over its seeds, and their range."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def read(path: Path) -> list[Row]:
    """The rows of a CSV that `write` wrote; none where there is no file.

    Raises:
        ValidationError: a column is missing, or a value is not of its type.
    """
    return TypeAdapter(list[Row]).validate_python(tables.read(path))


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the CSV, whole or not at all."""
    tables.write(path, [field.name for field in fields(Row)], [asdict(row) for row in rows])


def of_experiment(rows: Sequence[Row], experiment: Experiment) -> dict[str, list[list[Row]]]:
    """Of each cell that has rows, in the experiment's order, each seed's rows by epoch."""
    found: dict[str, list[list[Row]]] = {}
    for cell in experiment.cells:
        mine = [row for row in rows if (row.experiment, row.cell) == (experiment.name, cell.name)]
        seeds = sorted({row.seed for row in mine})
        if seeds:
            found[cell.name] = [
                sorted((row for row in mine if row.seed == seed), key=lambda row: row.epoch) for seed in seeds
            ]
    return found


def curve(seeds: Sequence[Sequence[Row]], accuracy: str) -> Curve:
    """Of `accuracy`, `train_accuracy` or `validation_accuracy`, as far as all seeds have come."""
    errors = [[100 * (1 - getattr(row, accuracy)) for row in rows] for rows in seeds]
    epochs = list(zip(*errors, strict=False))
    return Curve(tuple(map(fmean, epochs)), tuple(map(min, epochs)), tuple(map(max, epochs)))


def draw(experiment: Experiment, rows: Sequence[Row]) -> bytes:
    """A PNG: error over epochs, dashed in training and solid on the validation split, a colour for each cell."""
    cells = of_experiment(rows, experiment)
    figure, axes = blank(
        experiment.title,
        f"dashed: training error, solid: validation error; {_seeds(cells)}",
        "epoch",
        "error on CIFAR-10 (trained on a fifth), %",
    )
    ends: list[tuple[float, str, str]] = []
    highest = 0.0
    for cell, colour in zip(experiment.cells, COLOURS, strict=False):
        if cell.name not in cells:
            continue
        for accuracy, style in (("train_accuracy", "--"), ("validation_accuracy", "-")):
            line = curve(cells[cell.name], accuracy)
            epochs = range(1, len(line.mean) + 1)
            axes.plot(epochs, line.mean, style, color=colour, linewidth=1.2 if style == "--" else 2)
            highest = max(highest, *line.high)
            axes.fill_between(epochs, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
        ends.append((line.mean[-1], f"{cell.label}  {line.mean[-1]:.1f}", colour))
    last = max(row.epoch for row in rows)
    axes.set_xlim(min(1, last - 1), last)
    axes.set_ylim(0, min(100, 10 * math.ceil(highest / 10)))
    axes.set_xticks([epoch for epoch in range(0, last + 1, 5 if last >= 10 else 1) if epoch])
    _label_ends(axes, ends)
    return png(figure)


def _seeds(cells: dict[str, list[list[Row]]]) -> str:
    seeds = sorted({row.seed for runs in cells.values() for rows in runs for row in rows})
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean of seeds {', '.join(map(str, seeds))}, their range shaded"


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """The places, in their order, moved apart as little as keeps `gap` between them and all of them below `top`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[list[float]] = []  # of neighbours that touch; less their own gaps they are all at the group's mean
    for rank, index in enumerate(order):
        groups.append([places[index] - rank * gap])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            upper = groups.pop()
            groups[-1] += upper
    level = [fmean(group) for group in groups for _ in group]
    moved = list(places)
    for rank, index in enumerate(order):
        moved[index] = min(level[rank], top - (len(order) - 1) * gap) + rank * gap
    return moved


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Each cell's name and its last validation error, right of the plot where its solid curve ends."""
    low, high = axes.get_ylim()
    places = spread([end for end, _, _ in ends], _LABEL_GAP * (high - low) / 100, high)
    for place, (_, text, colour) in zip(places, ends, strict=True):
        axes.annotate(
            text,
            (1, place),
            (8, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )


def markdown(experiment: Experiment, rows: Sequence[Row]) -> str:
    """The plot's link, and a table of where each cell ended."""
    cells = of_experiment(rows, experiment)
    each = ", each in brackets" if len({row.seed for row in rows}) > 1 else ""
    lines = [
        f"![{experiment.title}: training and validation error over epochs](pictures/ideas-{experiment.name}.png)",
        "",
        f"After {max(row.epoch for row in rows)} epochs; {_seeds(cells).partition(', their')[0]}{each}.",
        "",
        "| cell | peak rate | parameters | MMACs | training error, % | validation error, % | minutes a run |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_line(cell, cells[cell.name]) for cell in experiment.cells if cell.name in cells),
    ]
    return "\n".join(lines)


def _line(cell: Cell, seeds: Sequence[Sequence[Row]]) -> str:
    last = [rows[-1] for rows in seeds]
    minutes = fmean(sum(row.seconds for row in rows) / 60 for rows in seeds)
    columns = [
        cell.label,
        f"{last[0].lr:g}",
        f"{last[0].parameters:,}",
        f"{last[0].macs / 1e6:.1f}",
        _errors([row.train_accuracy for row in last]),
        _errors([row.validation_accuracy for row in last]),
        f"{minutes:.1f}",
    ]
    return f"| {' | '.join(columns)} |"


def _errors(accuracies: Sequence[float]) -> str:
    errors = [100 * (1 - accuracy) for accuracy in accuracies]
    each = ", ".join(f"{error:.1f}" for error in errors)
    return f"{fmean(errors):.1f} ({each})" if len(errors) > 1 else each


def report(experiments: Sequence[Experiment], rows: Sequence[Row], page: Path, pictures: Path) -> list[Path]:
    """Redraw and rewrite what there are rows of; the pictures that were written."""
    text = page.read_text(encoding="utf-8")
    written = []
    for experiment in experiments:
        mine = [row for row in rows if row.experiment == experiment.name]
        if not of_experiment(mine, experiment):
            continue
        path = pictures / f"ideas-{experiment.name}.png"
        write_atomically(path, draw(experiment, mine))
        text = replaced(text, experiment.name, markdown(experiment, mine))
        written.append(path)
    write_atomically(page, text.encode())
    return written
