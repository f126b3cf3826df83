"""The pool: all that is begun is done, told of in the event loop, and nobody is woken more often than need be."""

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


@pytest.fixture
def pool() -> Iterator[FairThreadPool]:
    made = FairThreadPool(1, "test")
    yield made
    made.stop()


def test_each_gets_what_came_of_its_own(pool: FairThreadPool) -> None:
    async def scenario() -> list[int]:
        return await asyncio.gather(*(pool.run(partial(pow, number, 2)) for number in range(1000)))

    assert asyncio.run(scenario()) == [number * number for number in range(1000)]


def test_it_runs_elsewhere_and_what_is_raised_is_raised_here(pool: FairThreadPool) -> None:
    def fails() -> None:
        raise KeyError(threading.current_thread().name)

    async def scenario() -> str:
        with pytest.raises(KeyError, match="test_"):
            await pool.run(fails)
        return await pool.run(lambda: threading.current_thread().name)

    assert asyncio.run(scenario()).startswith("test_")


def test_two_run_side_by_side(pool: FairThreadPool) -> None:
    both = threading.Barrier(2)

    async def scenario() -> None:
        OWNER.set(Owner(None))
        await asyncio.wait_for(asyncio.gather(pool.run(both.wait), pool.run(both.wait)), 20)

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_not_begun(pool: FairThreadPool) -> None:
    gate, begun = threading.Event(), []

    async def scenario() -> None:
        OWNER.set(Owner(None))
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


class Picture:
    """Stands for what work keeps in memory."""


def use(_: Picture) -> None:
    """Work about a picture."""


def test_a_cancelled_caller_keeps_nothing_in_the_queue(pool: FairThreadPool) -> None:
    gate = threading.Event()

    async def scenario() -> list[bool]:
        OWNER.set(Owner(None))
        busy = [asyncio.ensure_future(pool.run(gate.wait)) for _ in range(2)]
        picture = Picture()
        kept = weakref.ref(picture)
        left = asyncio.create_task(pool.run(partial(use, picture)))
        del picture
        await asyncio.sleep(0)
        is_kept = [kept() is not None]
        left.cancel()
        await asyncio.wait([left])
        gc.collect()
        is_kept.append(kept() is not None)  # while both threads are busy still
        gate.set()
        await asyncio.gather(*busy)
        return is_kept

    assert asyncio.run(scenario()) == [True, False]


def test_a_caller_cancelled_during_the_first_part_keeps_no_second_part(pool: FairThreadPool) -> None:
    entered, gate, other_entered, other_gate = (threading.Event() for _ in range(4))

    def first(picture: Picture) -> Continuation[None]:
        entered.set()
        gate.wait()
        return Continuation(partial(use, picture))

    def other() -> None:
        other_entered.set()
        other_gate.wait()

    async def scenario() -> bool:
        picture = Picture()
        kept = weakref.ref(picture)
        left = begin(Owner("a"), pool, partial(first, picture), is_long=True)
        del picture
        await asyncio.to_thread(entered.wait)
        busy = begin(Owner("b"), pool, other, is_long=True)  # it comes before the second part
        left.cancel()
        await asyncio.wait([left])
        del left  # its traceback keeps the arguments of `begin`
        gate.set()
        await asyncio.to_thread(other_entered.wait)
        gc.collect()
        is_kept = kept() is not None
        other_gate.set()
        await busy
        return is_kept

    assert not asyncio.run(scenario())


def test_who_leaves_while_it_runs_hears_nothing_of_it(pool: FairThreadPool) -> None:
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
    pool, wakes = FairThreadPool(1, "test"), 0

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
    pool, done = FairThreadPool(1, "test"), []
    gate = threading.Event()

    async def scenario() -> None:
        OWNER.set(Owner(None))
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


async def as_owner(owner: Owner, pool: FairThreadPool, work: Callable[[], object], *, is_long: bool = False) -> object:
    OWNER.set(owner)
    return await pool.run(work, is_long=is_long)


def begin(
    owner: Owner, pool: FairThreadPool, work: Callable[[], object], *, is_long: bool = False
) -> asyncio.Task[object]:
    return asyncio.create_task(as_owner(owner, pool, work, is_long=is_long))


@pytest.mark.parametrize("how", ["said", "found out", "background", "so far"])
def test_long_work_never_keeps_all_threads(how: str) -> None:
    pool, gate, running, two = FairThreadPool(2, "test"), threading.Event(), [], threading.Event()

    def work() -> object:
        def rest() -> None:
            running.append(1)
            if len(running) == 2:
                two.set()
            gate.wait(60)

        if how == "found out":
            return Continuation(rest)
        rest()
        return None

    async def scenario() -> None:
        owners = [Owner(None, 2 * LONG_S if how == "so far" else 0.0) for _ in range(9)]
        if how == "background":
            tasks = [asyncio.ensure_future(pool.run(work)) for _ in range(9)]
        else:
            tasks = [begin(owner, pool, work, is_long=how == "said") for owner in owners]
        await asyncio.to_thread(two.wait, 60)
        for _ in range(50):
            assert await asyncio.wait_for(begin(Owner(None), pool, lambda: 7), 20) == 7
        assert len(running) == 2
        gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert len(running) == 9

    asyncio.run(scenario())
    pool.stop()


def test_callers_have_turns_and_so_have_the_requests_of_each() -> None:
    pool, gate, worker_gate = FairThreadPool(1, "test"), threading.Event(), threading.Event()
    order: list[str] = []
    alice, other_of_alice, bob = Owner("alice"), Owner("alice"), Owner("bob")

    async def scenario() -> None:
        # Both threads are busy, and one stays so: the order is that of the queue.
        worker = begin(Owner("nobody"), pool, lambda: worker_gate.wait(60), is_long=True)
        short = begin(Owner("nobody"), pool, lambda: gate.wait(60))
        await asyncio.sleep(0.1)
        sent = [(alice, "abcde"), (other_of_alice, "AB"), (bob, "xy")]
        tasks = [begin(owner, pool, partial(order.append, name)) for owner, names in sent for name in names]
        await asyncio.sleep(0.1)
        assert order == []
        gate.set()
        await asyncio.gather(short, *tasks)
        worker_gate.set()
        await worker

    asyncio.run(scenario())
    pool.stop()
    assert "".join(order) == "axAybBcde"


def test_work_that_became_long_while_it_waited_is_done() -> None:
    pool, gate = FairThreadPool(1, "test"), threading.Event()

    async def scenario() -> list[object]:
        blocking = [begin(Owner(None), pool, lambda: gate.wait(60)) for _ in range(2)]
        await asyncio.sleep(0.1)
        owner = Owner(None)
        waiting = begin(owner, pool, lambda: 7)
        await asyncio.sleep(0)
        owner.busy_s = 2 * LONG_S
        gate.set()
        return await asyncio.wait_for(asyncio.gather(waiting, *blocking), 60)

    assert asyncio.run(scenario())[0] == 7
    pool.stop()


def test_long_work_of_one_request_waits_while_that_of_another_has_its_turn() -> None:
    pool, gate = FairThreadPool(1, "test"), threading.Event()
    order: list[str] = []

    async def scenario() -> None:
        first = begin(Owner(None), pool, lambda: gate.wait(60), is_long=True)
        await asyncio.sleep(0.05)
        many, other = Owner(None), Owner(None)
        tasks = [begin(many, pool, partial(order.append, name), is_long=True) for name in "abc"]
        tasks.append(begin(other, pool, partial(order.append, "x"), is_long=True))
        await asyncio.sleep(0.05)
        assert order == []
        gate.set()
        await asyncio.gather(first, *tasks)

    asyncio.run(scenario())
    pool.stop()
    assert "".join(order) == "axbc"


def test_the_rest_of_long_work_may_raise_or_be_left() -> None:
    pool, begun = FairThreadPool(1, "test"), threading.Event()
    gate = threading.Event()

    def fails() -> object:
        numbers: dict[str, int] = {}
        return Continuation(lambda: numbers["no such key"])

    async def scenario() -> None:
        with pytest.raises(KeyError, match="no such key"):
            await pool.run(fails)
        blocking = begin(Owner(None), pool, lambda: gate.wait(60), is_long=True)
        await asyncio.sleep(0.05)
        left = begin(Owner(None), pool, lambda: Continuation(begun.set))
        await asyncio.sleep(0.05)
        left.cancel()
        gate.set()
        await asyncio.gather(blocking, left, return_exceptions=True)
        assert await pool.run(lambda: 3) == 3

    asyncio.run(scenario())
    pool.stop()
    assert not begun.is_set()
