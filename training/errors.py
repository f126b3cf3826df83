"""What can be wrong with a training run, said so that whoever started it can put it right."""

from __future__ import annotations


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
