"""The fair thread pool: results, cancellation, wake-ups; fairness between callers, requests, short and long tasks."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from app.auth.fair_share import LONG_S, OWNER, Owner
from app.inference.executors import Continuation, FairThreadPool
from tests.app.async_test import async_test


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    """A pool of one thread for all tasks and one for short tasks."""
    pool = FairThreadPool(1, "test")
    yield pool
    pool.stop()


async def run_as(
    owner: Owner, pool: FairThreadPool, function: Callable[[], object], *, is_long: bool = False
) -> object:
    OWNER.set(owner)
    return await pool.run(function, is_long=is_long)


def start(
    owner: Owner, pool: FairThreadPool, function: Callable[[], object], *, is_long: bool = False
) -> asyncio.Task[object]:
    """Run the function on behalf of a request."""
    return asyncio.create_task(run_as(owner, pool, function, is_long=is_long))


@async_test
async def test_callers_get_their_own_results() -> None:
    pool = FairThreadPool(1, "test")
    results = await asyncio.gather(*(pool.run(partial(pow, number, 2)) for number in range(1000)))
    assert results == [number * number for number in range(1000)]
    pool.stop()


def raise_thread_name() -> object:
    raise KeyError(threading.current_thread().name)


@pytest.mark.parametrize("function", [raise_thread_name, lambda: Continuation(raise_thread_name)])
@async_test
async def test_error_in_a_thread_of_the_pool_is_raised_to_the_caller(
    pool: FairThreadPool, function: Callable[[], object]
) -> None:
    with pytest.raises(KeyError, match="test_"):
        await pool.run(function)


@async_test
async def test_two_short_tasks_run_concurrently(pool: FairThreadPool) -> None:
    barrier = threading.Barrier(2)
    await asyncio.gather(*(start(Owner(None), pool, barrier.wait) for _ in range(2)))


@async_test
async def test_task_cancelled_in_the_queue_is_not_run(pool: FairThreadPool) -> None:
    gate, started = threading.Event(), []
    owner = Owner(None)
    busy = [start(owner, pool, gate.wait) for _ in range(2)]
    cancelled = start(owner, pool, lambda: started.append("cancelled"))
    other = start(owner, pool, lambda: started.append("other"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*busy, other)
    assert cancelled.cancelled()
    assert started == ["other"]


class Memory:
    """Stands for an image that a task holds in memory."""


def use(_: Memory) -> None:
    """A task that holds memory."""


@async_test
async def test_cancelled_task_releases_its_memory_while_it_is_queued(pool: FairThreadPool) -> None:
    gate = threading.Event()
    busy = [start(Owner(None), pool, gate.wait) for _ in range(2)]
    memory = Memory()
    reference = weakref.ref(memory)
    cancelled = asyncio.create_task(pool.run(partial(use, memory)))
    del memory
    await asyncio.sleep(0)
    assert reference() is not None
    cancelled.cancel()
    await asyncio.wait([cancelled])
    gc.collect()
    assert reference() is None  # while both threads are busy still
    gate.set()
    await asyncio.gather(*busy)


@async_test
async def test_task_cancelled_while_it_runs_does_not_queue_its_continuation(pool: FairThreadPool) -> None:
    entered, gate, other_entered, other_gate = (threading.Event() for _ in range(4))

    def first_part(memory: Memory) -> Continuation[None]:
        entered.set()
        gate.wait()
        return Continuation(partial(use, memory))

    def other() -> None:
        other_entered.set()
        other_gate.wait()

    memory = Memory()
    reference = weakref.ref(memory)
    cancelled = start(Owner("a"), pool, partial(first_part, memory), is_long=True)
    del memory
    await asyncio.to_thread(entered.wait)
    busy = start(Owner("b"), pool, other, is_long=True)  # would run before the continuation
    cancelled.cancel()
    await asyncio.wait([cancelled])
    del cancelled  # its traceback holds the arguments of `run_as`
    gate.set()
    await asyncio.to_thread(other_entered.wait)
    gc.collect()
    assert reference() is None
    other_gate.set()
    await busy


@async_test
async def test_error_of_a_cancelled_task_is_ignored(pool: FairThreadPool) -> None:
    gate, entered = threading.Event(), threading.Event()

    def fail() -> None:
        entered.set()
        gate.wait()
        raise KeyError

    cancelled = asyncio.create_task(pool.run(fail))
    await asyncio.to_thread(entered.wait)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.set()
    assert await pool.run(lambda: 7) == 7


@async_test
async def test_event_loop_is_woken_once_for_tasks_that_finish_while_it_is_busy(pool: FairThreadPool) -> None:
    wakes = 0
    loop = asyncio.get_running_loop()
    original: Callable[..., object] = loop.call_soon_threadsafe

    def count(callback: Callable[..., object], *arguments: object) -> object:
        nonlocal wakes
        wakes += 1
        return original(callback, *arguments)

    loop.call_soon_threadsafe = count  # type: ignore[assignment]
    finished = threading.Event()
    tasks: list[Awaitable[object]] = [asyncio.ensure_future(pool.run(lambda: None)) for _ in range(99)]
    tasks.append(asyncio.ensure_future(pool.run(finished.set)))
    await asyncio.sleep(0)  # all tasks are queued
    finished.wait(20)  # blocks the event loop until all are finished
    await asyncio.gather(*tasks)
    assert wakes <= 2


@async_test
async def test_stopping_finishes_queued_tasks_and_the_pool_can_start_again() -> None:
    pool, finished, gate = FairThreadPool(1, "restarted"), [], threading.Event()
    OWNER.set(Owner(None))
    tasks = [asyncio.ensure_future(pool.run(gate.wait)), asyncio.ensure_future(pool.run(lambda: finished.append(1)))]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.to_thread(pool.stop)
    assert finished == [1]
    await asyncio.gather(*tasks)
    assert await pool.run(lambda: 3) == 3
    pool.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("restarted_")]


@pytest.mark.parametrize("reason", ["flag", "continuation", "outside a request", "busy request"])
@async_test
async def test_long_tasks_leave_a_thread_for_short_ones(reason: str) -> None:
    pool, gate, running, two = FairThreadPool(2, "test"), threading.Event(), [], threading.Event()

    def block() -> None:
        running.append(1)
        if len(running) == 2:
            two.set()
        gate.wait(60)

    function: Callable[[], object] = (lambda: Continuation(block)) if reason == "continuation" else block
    if reason == "outside a request":
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(pool.run(function)) for _ in range(9)]
    else:
        owners = [Owner(None, 2 * LONG_S if reason == "busy request" else 0.0) for _ in range(9)]
        tasks = [start(owner, pool, function, is_long=reason == "flag") for owner in owners]
    await asyncio.to_thread(two.wait, 60)
    for _ in range(50):
        assert await asyncio.wait_for(start(Owner(None), pool, lambda: 7), 20) == 7
    assert len(running) == 2
    gate.set()
    await asyncio.gather(*tasks)
    assert len(running) == 9
    pool.stop()


@pytest.mark.parametrize("is_long", [False, True])
@async_test
async def test_callers_take_turns_and_so_do_the_requests_of_each(pool: FairThreadPool, *, is_long: bool) -> None:
    gates, order = (threading.Event(), threading.Event()), list[str]()
    # Both threads are busy until the gate of one opens, so that the order is the queue's.
    busy = [start(Owner("other"), pool, partial(gates[kind].wait, 60), is_long=kind) for kind in (True, False)]
    await asyncio.sleep(0.1)
    requests = [(Owner("alice"), "abcde"), (Owner("alice"), "AB"), (Owner("bob"), "xy")]
    calls = [(owner, partial(order.append, name)) for owner, names in requests for name in names]
    tasks = [start(owner, pool, call, is_long=is_long) for owner, call in calls]
    await asyncio.sleep(0.1)
    assert order == []
    gates[is_long].set()
    await asyncio.gather(*tasks)
    gates[not is_long].set()
    await asyncio.gather(*busy)
    assert "".join(order) == "axAybBcde"


@async_test
async def test_task_whose_request_becomes_long_while_it_waits_is_run(pool: FairThreadPool) -> None:
    gate, owner = threading.Event(), Owner(None)
    busy = [start(Owner(None), pool, lambda: gate.wait(60)) for _ in range(2)]
    await asyncio.sleep(0.1)
    task = start(owner, pool, lambda: 7)
    await asyncio.sleep(0)
    owner.busy_s = 2 * LONG_S
    gate.set()
    assert await task == 7
    await asyncio.gather(*busy)
