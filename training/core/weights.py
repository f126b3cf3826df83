"""Read and update the weights folder of a model for a given task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from models import checkpoint
from models.card import Metric, ModelCard
from models.registry import Task
from training.core.errors import DataError


def read_card(folder: Path, task: Task) -> ModelCard:
    """Return the card of a model for `task`.

    Raises:
        CheckpointError: see `checkpoint.read_card`. DataError: the model is for another task.
    """
    card = checkpoint.read_card(folder)
    if card.task != task:
        raise DataError(f"{folder} is a network to {card.task}, not to {task}")
    return card


def load(folder: Path, task: Task) -> tuple[nn.Module, ModelCard]:
    """Return the network, in evaluation mode on the CPU, and the card of a model for `task`.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: the model is for another task.
    """
    read_card(folder, task)
    return checkpoint.load(folder)


def update_metrics(folder: Path, metrics: Sequence[Metric]) -> None:
    """Write figures into a model's card, in place of those with the same name and data."""
    card = checkpoint.read_card(folder)
    measured = {(metric.name, metric.data) for metric in metrics}
    kept = [metric for metric in card.metrics if (metric.name, metric.data) not in measured]
    checkpoint.write_card(folder, card.model_copy(update={"metrics": (*kept, *metrics)}))
