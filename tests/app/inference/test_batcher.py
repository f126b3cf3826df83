"""The batcher alone, without HTTP and torch."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from app.inference import batcher as batcher_module
from app.inference.batcher import INTERACTIVE_BATCHES, Batcher, Expired, Priority, QueueFull, Stopped, TooLarge
from tests.app.async_test import async_test


class Model:
    """Doubles numbers; records its batches; fails for `faulty` numbers and batches over `memory`; blocks while `gate`
    is closed.
    """

    def __init__(self, faulty: Iterable[int] = (), memory: int = 1000) -> None:
        self.batches: list[list[int]] = []
        self.faulty = set(faulty)
        self.memory = memory
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        await self.gate.wait()
        if len(items) > self.memory:
            raise TooLarge(f"{len(items)} are too many")
        if self.faulty & set(items):
            raise ValueError(f"a faulty item in {list(items)}")
        return [2 * item for item in items]


Tasks = list[asyncio.Task[Any]]


async def submit(batcher: Batcher[int, int], items: Iterable[int], priority: Priority = "interactive") -> Tasks:
    """Return the tasks of the queued items."""
    tasks = [asyncio.create_task(batcher.submit(item, 60, priority)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def block(model: Model, batcher: Batcher[int, int]) -> Tasks:
    """Start item 0 with the gate closed, so that later items are queued, and return its task."""
    model.gate.clear()
    tasks = await submit(batcher, [0])
    await model.entered.wait()
    return tasks


async def outputs(tasks: Tasks) -> list[int]:
    return [result.output for result in await asyncio.gather(*tasks)]


@async_test
async def test_single_item_runs_at_once() -> None:
    batcher = Batcher(Model(), max_batch=8, capacity=10)
    result = await batcher.submit(21, 60)
    assert (result.output, result.size) == (42, 1)
    assert 0 <= result.queued_s < 1
    assert result.computed_s > 0


@async_test
async def test_queued_items_form_the_next_batches_in_order() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=4, capacity=10)
    tasks = await block(model, batcher) + await submit(batcher, range(1, 7))
    assert len(batcher) == 6
    model.gate.set()
    assert await outputs(tasks) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


@async_test
async def test_only_the_faulty_item_of_a_batch_gets_the_error() -> None:
    model = Model(faulty={2})
    batcher = Batcher(model, max_batch=8, capacity=10)
    tasks = await block(model, batcher) + await submit(batcher, (1, 2, 3))
    model.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], ValueError)
    assert [result.output for result in results if not isinstance(result, BaseException)] == [0, 2, 6]
    assert model.batches == [[0], [1, 2, 3], [1], [2], [3]]


@async_test
async def test_missing_outputs_are_an_error() -> None:
    async def lose(items: Sequence[int]) -> list[int]:
        return []

    batcher = Batcher(lose, max_batch=8, capacity=10)
    with pytest.raises(RuntimeError, match="0 outputs for 1 items"):
        await batcher.submit(1, 60)


@pytest.mark.parametrize("caller_runs_first", [True, False])
@async_test
async def test_cancelled_item_is_not_computed(*, caller_runs_first: bool) -> None:
    """Also if the worker runs before the caller handles its cancellation."""
    model = Model()
    batcher = Batcher(model, max_batch=8, capacity=2)
    tasks = await block(model, batcher) + await submit(batcher, (1, 2))
    if not caller_runs_first:
        model.gate.set()
    tasks[1].cancel()
    if caller_runs_first:
        await asyncio.wait([tasks[1]])
        assert len(batcher) == 1  # its place in the queue is free
        tasks += await submit(batcher, [3])
        model.gate.set()
    del tasks[1]
    assert await outputs(tasks) == [0, 4, 6][: len(tasks)]
    assert model.batches == [[0], [2, 3][: len(tasks) - 1]]


@pytest.mark.parametrize("faulty", [set(), {0}])
@async_test
async def test_cancelling_a_running_item_does_not_affect_others(faulty: set[int]) -> None:
    model = Model(faulty)
    batcher = Batcher(model, max_batch=8, capacity=10)
    (task,) = await block(model, batcher)
    task.cancel()
    model.gate.set()
    assert (await batcher.submit(1, 60)).output == 2


@async_test
async def test_item_cancelled_in_a_failing_batch_is_not_retried() -> None:
    batches: list[list[int]] = []

    async def fail(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        tasks[0].cancel()
        raise ValueError

    batcher = Batcher(fail, max_batch=8, capacity=10)
    tasks = await submit(batcher, [1, 2])
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, ValueError]
    assert batches == [[1, 2], [2]]


@async_test
async def test_background_items_get_a_fixed_share_of_the_batches() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=2, capacity=100)
    tasks = await block(model, batcher)
    tasks += await submit(batcher, range(100, 105), "background")
    tasks += await submit(batcher, range(1, 41))
    model.gate.set()
    await asyncio.gather(*tasks)
    interactive = [[i, i + 1] for i in range(1, 41, 2)]
    assert model.batches == [
        [0],
        *interactive[:INTERACTIVE_BATCHES],
        [100, 101],
        *interactive[INTERACTIVE_BATCHES : 2 * INTERACTIVE_BATCHES],
        [102, 103],
        *interactive[2 * INTERACTIVE_BATCHES :],
        [104],
    ]


@async_test
async def test_each_priority_has_its_own_capacity() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8, capacity=2)
    tasks = await block(model, batcher) + await submit(batcher, [100, 101], "background")
    with pytest.raises(QueueFull):
        await batcher.submit(102, 60, "background")
    tasks += await submit(batcher, [1, 2])
    with pytest.raises(QueueFull):
        await batcher.submit(3, 60)
    assert len(batcher) == 4
    model.gate.set()
    await asyncio.gather(*tasks)
    assert model.batches == [[0], [1, 2], [100, 101]]


@async_test
async def test_expired_item_is_not_computed_and_the_worker_goes_on() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=8, capacity=10)
    tasks = await block(model, batcher)
    late = asyncio.create_task(batcher.submit(1, 0.01))
    await asyncio.sleep(0.05)
    tasks += await submit(batcher, [100], "background")
    model.gate.set()
    with pytest.raises(Expired):
        await late
    assert await outputs(tasks) == [0, 200]
    assert model.batches == [[0], [100]]


@async_test
async def test_batch_over_memory_is_halved_and_later_ones_stay_smaller_for_a_while() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batcher_module, "REDUCED_SIZE_S", 0.2)
        model = Model(memory=3)
        batcher = Batcher(model, max_batch=8, capacity=20)
        tasks = await block(model, batcher) + await submit(batcher, range(1, 14))
        model.gate.set()
        assert await outputs(tasks) == [2 * i for i in range(14)]
    # Neither 8 nor 4 items fit, but 2 do, so the last 5 run in batches of 2.
    halves = [[1, 2, 3, 4], [1, 2], [3, 4], [5, 6, 7, 8], [5, 6], [7, 8]]
    assert model.batches == [[0], list(range(1, 9)), *halves, [9, 10], [11, 12], [13]]
    assert batcher.limit == 2
    await asyncio.sleep(0.25)
    assert batcher.limit == 8


@async_test
async def test_single_item_over_memory_gets_the_error() -> None:
    batcher = Batcher(Model(memory=0), max_batch=8, capacity=20)
    with pytest.raises(TooLarge):
        await batcher.submit(1, 60)
    assert batcher.limit == 8


@async_test
async def test_task_exists_only_while_items_wait() -> None:
    before = asyncio.all_tasks()
    batcher = Batcher(Model(), max_batch=8, capacity=20)
    for _ in range(2):
        assert (await batcher.submit(1, 60)).output == 2
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
    batcher = Batcher(Model(), max_batch=8, capacity=20)
    await batcher.stop()  # before any item was submitted
    reference = weakref.ref(batcher)
    gc.disable()
    try:
        del batcher
        assert reference() is None  # without a reference cycle
    finally:
        gc.enable()


@async_test
async def test_stopping_finishes_queued_items_and_rejects_new_ones() -> None:
    model = Model()
    batcher = Batcher(model, max_batch=1, capacity=10)
    tasks = await block(model, batcher) + await submit(batcher, (1, 2))
    stopping = asyncio.create_task(batcher.stop())
    await asyncio.sleep(0)
    with pytest.raises(Stopped):
        await batcher.submit(3, 60)
    model.gate.set()
    assert await outputs(tasks) == [0, 2, 4]
    await stopping
