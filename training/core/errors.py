"""Errors of the training commands, and how a command reports them.

TrainingError
├── RecipeError
├── DataError
├── DatasetNotFoundError   also a FileNotFoundError
├── RunError
├── DivergedError
└── CollapsedError
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer

from models.checkpoint import CheckpointError


class TrainingError(Exception):
    """Base class. A command prints the message and exits with 1."""


class RecipeError(TrainingError):
    """The recipe is not TOML, or has unknown keys or invalid values."""


class DataError(TrainingError):
    """The data set exists and is invalid; the message names the file and the row."""


class DatasetNotFoundError(TrainingError, FileNotFoundError):
    """The data set does not exist; the message lists the places that were searched."""


class RunError(TrainingError):
    """The run's folder is in use by another run, or the run cannot be resumed."""


class DivergedError(TrainingError):
    """The loss is not finite."""


class CollapsedError(TrainingError):
    """The generator draws only a few different images; `figures` are those of the epoch at which this was detected."""

    def __init__(self, message: str, figures: Mapping[str, float]):
        super().__init__(message)
        self.figures = dict(figures)


@contextmanager
def exit_on_error(*further: type[Exception]) -> Iterator[None]:
    """Turn a TrainingError, a CheckpointError or an error of the types `further` into a message and exit code 1."""
    expected: tuple[type[Exception], ...] = (TrainingError, CheckpointError, *further)
    try:
        yield
    except expected as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
