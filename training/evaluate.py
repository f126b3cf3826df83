"""Measure exported weights on a test split, which nothing else here opens.

`python -m training.evaluate classify weights/lenet5-mnist --data mnist --write`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models import checkpoint
from training.compare import compare
from training.errors import TrainingError
from training.measure_faces import faces
from training.metrics import measure_classifier

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


cli.command()(compare)
cli.command()(faces)


if __name__ == "__main__":
    cli()
