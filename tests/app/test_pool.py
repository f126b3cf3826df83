"""The pool: all that is begun is done, told of in the event loop, and nobody is woken more often than need be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from app.pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(2, "test")
    yield made
    made.stop()


def test_each_gets_what_came_of_its_own(pool: Pool) -> None:
    async def scenario() -> list[int]:
        return await asyncio.gather(*(pool.run(partial(pow, number, 2)) for number in range(1000)))

    assert asyncio.run(scenario()) == [number * number for number in range(1000)]


def test_it_runs_elsewhere_and_what_is_raised_is_raised_here(pool: Pool) -> None:
    def fails() -> None:
        raise KeyError(threading.current_thread().name)

    async def scenario() -> str:
        with pytest.raises(KeyError, match="test_"):
            await pool.run(fails)
        return await pool.run(lambda: threading.current_thread().name)

    assert asyncio.run(scenario()).startswith("test_")


def test_two_run_side_by_side(pool: Pool) -> None:
    both = threading.Barrier(2)

    async def scenario() -> None:
        await asyncio.wait_for(asyncio.gather(pool.run(both.wait), pool.run(both.wait)), 20)

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_not_begun(pool: Pool) -> None:
    gate, begun = threading.Event(), []

    async def scenario() -> None:
        busy = [asyncio.ensure_future(pool.run(gate.wait)) for _ in range(2)]
        left = asyncio.ensure_future(pool.run(lambda: begun.append("left")))
        stays = asyncio.ensure_future(pool.run(lambda: begun.append("stays")))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*busy, stays)
        with pytest.raises(asyncio.CancelledError):
            await left

    asyncio.run(scenario())
    assert begun == ["stays"]


def test_who_leaves_while_it_runs_hears_nothing_of_it(pool: Pool) -> None:
    gate, entered = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        gate.wait()
        raise KeyError

    async def scenario() -> int:
        left = asyncio.ensure_future(pool.run(work))
        await asyncio.to_thread(entered.wait)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gate.set()
        return await pool.run(lambda: 7)

    assert asyncio.run(scenario()) == 7


def test_what_is_done_meanwhile_is_told_of_at_once() -> None:
    pool, wakes = Pool(1, "test"), 0

    async def scenario() -> None:
        nonlocal wakes
        loop = asyncio.get_running_loop()
        original: Callable[..., object] = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *given: object) -> object:
            nonlocal wakes
            wakes += 1
            return original(callback, *given)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment]
        done = threading.Event()
        waits: list[Awaitable[object]] = [asyncio.ensure_future(pool.run(lambda: None)) for _ in range(99)]
        waits.append(asyncio.ensure_future(pool.run(done.set)))
        await asyncio.sleep(0)  # all are begun
        done.wait(20)  # and the event loop is busy until all are done
        await asyncio.gather(*waits)

    asyncio.run(scenario())
    pool.stop()
    assert wakes <= 2


def test_stopping_waits_for_what_was_begun_and_it_may_begin_anew() -> None:
    pool, done = Pool(1, "test"), []
    gate = threading.Event()

    async def scenario() -> None:
        waits = [asyncio.ensure_future(pool.run(gate.wait)), asyncio.ensure_future(pool.run(lambda: done.append(1)))]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.to_thread(pool.stop)
        assert done == [1]
        await asyncio.gather(*waits)
        assert await pool.run(lambda: 3) == 3

    asyncio.run(scenario())
    pool.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test_")]
