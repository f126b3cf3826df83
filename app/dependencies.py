"""What the middleware keeps in a request's state for endpoints: its timings and its caller.

These are plain functions: each of FastAPI's dependencies takes a twentieth of the time of a small request. The getter
of a domain's service is in that domain.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from app.settings import Settings

T = TypeVar("T")


class Timings:
    """The durations of a request's stages, in seconds, for `Server-Timing`. Of parallel stages the longest counts.

    `app` is the rest: the framework, and time in which the event loop ran other tasks.
    """

    def __init__(self) -> None:
        self._stages: dict[str, float] = {}

    def record(self, stage: str, seconds: float) -> None:
        """Record that `stage` took so long."""
        self._stages[stage] = max(seconds, self._stages.get(stage, 0.0))

    def header(self, total: float) -> str:
        """Return the header's value; durations in milliseconds."""
        rest = max(0.0, total - sum(self._stages.values()))
        stages = {**self._stages, "app": rest, "total": total}
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())


def timings(request: Request) -> Timings:
    """Return the timings of this request."""
    value: Timings = request.state.timings
    return value


def caller(request: Request) -> str | None:
    """Return the id of the request's API key; None while the service has no keys."""
    value: str | None = request.state.caller
    return value


def max_images(request: Request) -> int:
    """Return the largest number of images that a request may have."""
    settings: Settings = request.app.state.settings
    return settings.max_images


async def timed_receive(request: Request, reading: Awaitable[T]) -> T:
    """Await the reading of the request body, record its time as `receive`, and return its result."""
    started = time.perf_counter()
    body = await reading
    timings(request).record("receive", time.perf_counter() - started)
    return body
