"""Values of a request that several domains need; the getter of a domain's service is in that domain.

These are plain functions: each of FastAPI's dependencies takes a twentieth of the time of a small request.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from app.observability import timings
from app.settings import Settings

T = TypeVar("T")


def caller(request: Request) -> str | None:
    """Return the id of the request's API key; None while the service has no keys."""
    value: str | None = request.state.caller
    return value


def max_images(request: Request) -> int:
    """Return the largest number of images that a request may have."""
    settings: Settings = request.app.state.settings
    return settings.max_images


async def timed_receive(reading: Awaitable[T]) -> T:
    """Await the reading of the request body, record its time as `receive`, and return its result."""
    started = time.perf_counter()
    body = await reading
    timings.record("receive", time.perf_counter() - started)
    return body
