"""What can be wrong with a training run, said so that whoever started it can put it right."""

from __future__ import annotations

from collections.abc import Mapping


class TrainingError(Exception):
    """The root: a command shows the message alone and exits with 1."""


class RecipeError(TrainingError):
    """A recipe that is not TOML, has unknown keys, or values that do not fit."""


class DataError(TrainingError):
    """A data set that is there but not as it should be; the message names the file and the row."""


class DatasetNotFoundError(TrainingError, FileNotFoundError):
    """No such data set; the message says what was looked for and where."""


class RunError(TrainingError):
    """A run's folder that is taken, or that cannot be resumed."""


class DivergedError(TrainingError):
    """A loss that is not a finite number any more."""


class CollapsedError(TrainingError):
    """A generator that draws a few pictures again and again; `figures` are those of the epoch it was seen in."""

    def __init__(self, message: str, figures: Mapping[str, float]):
        super().__init__(message)
        self.figures = dict(figures)
