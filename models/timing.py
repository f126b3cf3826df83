"""Measure the durations of calls side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Protocol, TypeVar

Key = TypeVar("Key")
T = TypeVar("T")

_WARM_UP = 3


class RunWork(Protocol):
    """A function that runs work, possibly after waiting, and returns its result."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Run `work` and return its result."""
        ...


def run_directly(work: Callable[[], T]) -> T:
    """Run `work` without waiting and return its result."""
    return work()


def interleaved_medians(
    calls: Mapping[Key, Callable[[], object]], rounds: int, run: RunWork = run_directly
) -> dict[Key, float]:
    """Median seconds of each call over `rounds` rounds in which each call runs once, after a warm-up.

    Interleaving makes a temporary slowdown affect all calls alike. The time that `run` waits is not counted.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for number in range(_WARM_UP + rounds):
        for key, call in calls.items():
            duration = run(partial(_seconds, call))
            if number >= _WARM_UP:
                seconds[key].append(duration)
    return {key: statistics.median(values) for key, values in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started
