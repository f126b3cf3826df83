"""What the service's background workers share: to run beside it, to hold a lease, to wait for more to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import structlog

log = structlog.get_logger()


@asynccontextmanager
async def running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """It is worked for as long as this lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _beat(keep: Callable[[], Awaitable[bool]], every_s: float) -> None:
    held = True
    while held:
        await asyncio.sleep(every_s)
        try:
            held = await keep()
        except Exception as error:  # noqa: BLE001  a full disk or queue; the next attempt may come before the lease ends
            log.warning("lease_not_renewed", error=str(error))


def kept(keep: Callable[[], Awaitable[bool]], every_s: float) -> AbstractAsyncContextManager[None]:
    """A lease is held for as long as this lasts, by calling `keep`, until that answers that it is lost."""
    return running(_beat(keep, every_s))


async def wait(event: asyncio.Event, most_s: float) -> None:
    """For the event, but not for longer: other processes take work in, too, and may die over theirs."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), most_s)
