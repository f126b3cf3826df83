"""Measure exported weights on a test split, which nothing else here opens.

`python -m training.evaluate classify weights/lenet5-mnist --data mnist --write`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from models import checkpoint
from models.card import Metric, ModelCard
from models.runtime import prepare
from models.tta import VIEWS
from training import data
from training.compare import compare
from training.errors import DataError, TrainingError
from training.metrics import classification, predict, probabilities

cli = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@cli.callback()
def _measure() -> None:
    """One command for each task."""


@cli.command()
def classify(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS.")],
    write: Annotated[bool, typer.Option("--write", help="Put the figures into the card.")] = False,
) -> None:
    """Accuracy, NLL and ECE of a classifier, at its card's temperature; `_tta` with its test-time augmentation."""
    try:
        card, metrics = measure_classifier(folder, dataset)
    except (TrainingError, checkpoint.CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for metric in metrics:
        typer.echo(f"{metric.name:16} {metric.value:.4f}  {metric.data}")
    if write:
        measured = {(metric.name, metric.data) for metric in metrics}
        kept = [metric for metric in card.metrics if (metric.name, metric.data) not in measured]
        checkpoint.write_card(folder, card.model_copy(update={"metrics": (*kept, *metrics)}))


def measure_classifier(folder: Path, dataset: str) -> tuple[ModelCard, list[Metric]]:
    """The model's card and its figures on the data set's test split.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: see `data.load`; other classes than the card's.
    """
    module, card = checkpoint.load(folder)
    test = data.load(dataset, "test", card.preprocess)
    if test.classes != card.classes:
        raise DataError(f"{dataset} has the classes {test.classes}, the card {card.classes}")
    runtime, rows = prepare(module), np.arange(len(test.labels))
    logits = predict(runtime, test, rows, card.preprocess, tta=card.tta)
    labels = torch.from_numpy(test.labels)
    figures = classification(probabilities(logits[: VIEWS["none"]], card.temperature), labels)
    if card.tta != "none":
        averaged = classification(probabilities(logits, card.temperature), labels)
        figures |= {f"{name}_tta": value for name, value in averaged.items()}
    where = f"{dataset} test ({len(test.labels):,})"
    return card, [Metric(name=name, value=value, data=where) for name, value in figures.items()]


cli.command()(compare)


if __name__ == "__main__":
    cli()
