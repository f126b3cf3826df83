"""How long each stage of the current request took, for the `Server-Timing` response header."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class Timings:
    """Durations of one request's stages, in seconds. Of several images processed side by side, the slowest counts."""

    def __init__(self) -> None:
        self._stages: dict[str, float] = {}

    def record(self, stage: str, seconds: float) -> None:
        """Set the stage's duration, unless a longer one has been recorded."""
        self._stages[stage] = max(seconds, self._stages.get(stage, 0.0))

    def header(self, total: float) -> str:
        """Return the header's value, with durations in milliseconds.

        `app` is the part of `total` outside all stages: the framework, and waiting for the event loop.
        """
        rest = max(0.0, total - sum(self._stages.values()))
        stages = {**self._stages, "app": rest, "total": total}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())


_CURRENT: ContextVar[Timings | None] = ContextVar("timings", default=None)


def start() -> Timings:
    """Return new timings, to which `record` adds from now on in this context and in the tasks created in it."""
    timings = Timings()
    _CURRENT.set(timings)
    return timings


def record(stage: str, seconds: float) -> None:
    """Record the stage's duration for the current request; do nothing outside a request, as in background work."""
    if (timings := _CURRENT.get()) is not None:
        timings.record(stage, seconds)


async def timed(stage: str, work: Awaitable[T]) -> T:
    """Await `work`, record its time as that of the stage, and return its result."""
    started = time.perf_counter()
    result = await work
    record(stage, time.perf_counter() - started)
    return result
