"""Run coroutine functions as tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")

TIMEOUT_S = 300.0


def async_test(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Return a test that runs the coroutine function in an event loop of its own, for TIMEOUT_S at most."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(function(*args, **kwargs), TIMEOUT_S))

    return run


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, for a minute at most."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the condition has no event
            await asyncio.sleep(0.001)
