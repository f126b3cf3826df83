"""Background tasks: run one, renew a lease while it works, wait for new work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import structlog

log = structlog.get_logger()


@asynccontextmanager
async def background_task(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` beside the body of the `async with` statement, then cancel it and wait for its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lease_renewal(renew: Callable[[], Awaitable[bool]], every_s: float) -> AbstractAsyncContextManager[None]:
    """Call `renew` every `every_s` seconds until the `async with` statement ends or `renew` returns False."""
    return background_task(_renew_repeatedly(renew, every_s))


async def _renew_repeatedly(renew: Callable[[], Awaitable[bool]], every_s: float) -> None:
    is_held = True
    while is_held:
        await asyncio.sleep(every_s)
        try:
            is_held = await renew()
        except Exception as error:  # noqa: BLE001  a full disk or queue; the next attempt may come before the lease ends
            log.warning("lease_not_renewed", error=str(error))


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the event, at most `timeout_s`: other processes add work, or leave it unfinished, without setting it."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)
