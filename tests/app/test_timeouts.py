"""Shared timeouts, compared with `asyncio.timeout` and the loop's own timers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from app.timeouts import Timeouts
from tests.app.async_test import async_test

Limit = Callable[[float], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def shared(seconds: float) -> AsyncIterator[object]:
    with Timeouts(seconds).limit() as limit:
        yield limit


LIMITS = pytest.mark.parametrize("limit", [shared, asyncio.timeout])


@async_test
async def test_timeouts_end_in_order_with_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, ended, timers = asyncio.get_running_loop(), list[tuple[int, float]](), list[float]()
    call_at = loop.call_at

    def counted(when: float, *arguments: object, **options: object) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_at", counted)
    timeouts = Timeouts(0.05)
    due = []
    for number in range(100):
        due.append(loop.time() + 0.05)
        timeout = timeouts.start(lambda number=number: ended.append((number, loop.time())))  # type: ignore[misc]
        if number % 10:
            timeout.cancel()
    assert len(timers) == 1
    await asyncio.sleep(0.1)
    assert [number for number, _ in ended] == list(range(0, 100, 10))
    assert all(due[number] <= at < due[number] + 0.04 for number, at in ended)
    timeouts.start(lambda: ended.append((100, 0.0)))
    await asyncio.sleep(0.1)
    assert ended[-1] == (100, 0.0)


@async_test
async def test_a_callback_that_fails_delays_no_other() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    timeouts, ended = Timeouts(0.02), list[str]()

    def fail() -> None:
        timeouts.start(lambda: ended.append("started by it"))
        raise ValueError

    timeouts.start(fail)
    timeouts.start(lambda: ended.append("next"))
    await asyncio.sleep(0.2)
    assert ended == ["next", "started by it"]


def test_timeouts_serve_one_loop_after_another() -> None:
    timeouts, ended = Timeouts(0.01), list[int]()

    async def leave() -> None:
        timeouts.start(lambda: ended.append(1))

    async def wait() -> None:
        timeouts.start(lambda: ended.append(2))
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    asyncio.run(wait())
    assert ended == [2]


@LIMITS
@async_test
async def test_a_limit_ends_what_takes_longer(limit: Limit) -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError) as caught:
        async with limit(0.02):
            await asyncio.sleep(60)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert not task.cancelling()
    async with limit(60):
        await asyncio.sleep(0)
    with pytest.raises(KeyError):  # an error is passed on
        async with limit(60):
            raise KeyError


@LIMITS
@async_test
async def test_a_cancelled_task_ends_as_cancelled(limit: Limit) -> None:
    async def work(seconds: float) -> None:
        async with limit(seconds):
            await asyncio.sleep(60)

    outside = asyncio.create_task(work(60))
    await asyncio.sleep(0.01)
    outside.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outside
    both = asyncio.create_task(work(0))
    await asyncio.sleep(0)
    both.cancel()  # and its limit ends before it runs again
    with pytest.raises(asyncio.CancelledError):
        await both


@LIMITS
@async_test
async def test_the_inner_of_two_limits_ends_first(limit: Limit) -> None:
    async with limit(60):
        with pytest.raises(TimeoutError):
            async with limit(0.02):
                await asyncio.sleep(60)
    with pytest.raises(TimeoutError):
        async with limit(0.02), limit(60):
            await asyncio.sleep(60)


@async_test
async def test_a_limit_can_be_ended_early_and_twice() -> None:
    async def work() -> None:
        with Timeouts(60).limit() as limit:
            asyncio.get_running_loop().call_soon(limit.end)
            asyncio.get_running_loop().call_soon(limit.end)
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await work()
