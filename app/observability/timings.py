"""How long each stage of the current request took, for the `Server-Timing` response header."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


# The longest duration of each stage of the current request, in seconds.
Stages = dict[str, float]
_CURRENT: ContextVar[Stages | None] = ContextVar("timings", default=None)


def start() -> Stages:
    """Return a new record, to which `record` adds from now on in this context and in the tasks created in it."""
    stages: Stages = {}
    _CURRENT.set(stages)
    return stages


def record(stage: str, seconds: float) -> None:
    """Record the stage's duration for the current request; do nothing outside a request, as in background work.

    Of several images processed side by side, the slowest counts.
    """
    if (stages := _CURRENT.get()) is not None:
        stages[stage] = max(seconds, stages.get(stage, 0.0))


def header(stages: Stages, total: float) -> str:
    """Return the header's value, with durations in milliseconds; `total` in seconds.

    `app` is the part of `total` outside all stages: the framework, and waiting for the event loop.
    """
    rest = max(0.0, total - sum(stages.values()))
    shown = {**stages, "app": rest, "total": total}
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in shown.items())


async def timed(stage: str, work: Awaitable[T]) -> T:
    """Await `work`, record its time as that of the stage, and return its result."""
    started = time.perf_counter()
    result = await work
    record(stage, time.perf_counter() - started)
    return result
