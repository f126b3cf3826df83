"""Time measured so that it is fair to all that are compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Protocol, TypeVar

Key = TypeVar("Key")
T = TypeVar("T")

_WARM_UP = 3


class Turn(Protocol):
    """Lets work be done when it is its turn, and answers what came of it."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Wait for the turn, do the work."""
        ...


def at_once(work: Callable[[], T]) -> T:
    """The turn of who has nobody to wait for."""
    return work()


def interleaved_medians(
    calls: Mapping[Key, Callable[[], object]], rounds: int, turn: Turn = at_once
) -> dict[Key, float]:
    """Median seconds of each call over `rounds` rounds in which each is made once, after a warm-up.

    A machine that is slow for a while is so for all of them, and the median forgets it. What a call waits for its
    `turn` does not count.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for number in range(_WARM_UP + rounds):
        for key, call in calls.items():
            taken = turn(partial(_seconds, call))
            if number >= _WARM_UP:
                seconds[key].append(taken)
    return {key: statistics.median(values) for key, values in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started
