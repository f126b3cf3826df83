"""The batcher, alone: no HTTP, no torch."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from app.inference import batcher as batching
from app.inference.batcher import PATIENCE, Batcher, Expired, Lane, QueueFull, Stopped, TooLarge

T = TypeVar("T")


class Model:
    """Doubles numbers, records batches, fails on what it is told to, and waits at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.fits = 1000
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        await self.gate.wait()
        if len(items) > self.fits:
            raise TooLarge(f"{len(items)} are too many")
        if self.poison & set(items):
            raise ValueError(f"poison in {list(items)}")
        return [2 * item for item in items]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def _blocked(model: Model, batcher: Batcher[int, int]) -> asyncio.Task[Any]:
    """Hold the worker at the gate with item 0."""
    model.gate.clear()
    task = asyncio.create_task(batcher.submit(0, 60))
    await model.entered.wait()
    return task


def test_a_lone_item_runs_at_once() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=10)
        result = await batcher.submit(21, 60)
        assert (result.output, result.size) == (42, 1)
        assert 0 <= result.queued_s < 1
        assert result.computed_s > 0
        await batcher.stop()

    run(scenario())


def test_what_arrives_meanwhile_forms_the_next_batches_in_order() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=4, capacity=10)
        first = await _blocked(model, batcher)
        rest = [asyncio.create_task(batcher.submit(i, 60)) for i in range(1, 7)]
        await asyncio.sleep(0)
        assert len(batcher) == 6
        model.gate.set()
        results = await asyncio.gather(first, *rest)
        assert [result.output for result in results] == [0, 2, 4, 6, 8, 10, 12]
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]
        await batcher.stop()

    run(scenario())


def test_the_queue_is_bounded() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=2, capacity=2)
        first = await _blocked(model, batcher)
        waiting = [asyncio.create_task(batcher.submit(i, 60)) for i in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await batcher.submit(3, 60)
        model.gate.set()
        await asyncio.gather(first, *waiting)
        await batcher.stop()

    run(scenario())


def test_only_the_culprit_gets_the_error() -> None:
    async def scenario() -> None:
        model = Model()
        model.poison = {2}
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        rest = [asyncio.create_task(batcher.submit(i, 60)) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        model.gate.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(results[2], ValueError)
        assert [r.output for r in results if not isinstance(r, BaseException)] == [0, 2, 6]
        assert model.batches == [[0], [1, 2, 3], [1], [2], [3]]
        await batcher.stop()

    run(scenario())


def test_a_function_that_loses_outputs_is_an_error() -> None:
    async def scenario() -> None:
        async def loses(items: Sequence[int]) -> list[int]:
            return []

        batcher = Batcher(loses, max_batch=8, capacity=10)
        with pytest.raises(RuntimeError, match="0 outputs for 1 items"):
            await batcher.submit(1, 60)
        await batcher.stop()

    run(scenario())


def test_a_caller_that_left_is_not_computed() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        left = asyncio.create_task(batcher.submit(1, 60))
        stays = asyncio.create_task(batcher.submit(2, 60))
        await asyncio.sleep(0)
        left.cancel()
        model.gate.set()
        assert (await stays).output == 4
        assert model.batches == [[0], [2]]
        await first
        await batcher.stop()

    run(scenario())


@pytest.mark.parametrize("poison", [set(), {0}])
def test_a_caller_that_leaves_during_the_computation_harms_nobody(poison: set[int]) -> None:
    async def scenario() -> None:
        model = Model()
        model.poison = poison
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        first.cancel()
        model.gate.set()
        assert (await batcher.submit(1, 60)).output == 2
        await batcher.stop()

    run(scenario())


def test_a_caller_that_leaves_gives_its_place_back() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=1, capacity=2)
        first = await _blocked(model, batcher)
        waiting = [asyncio.create_task(batcher.submit(i, 60)) for i in (1, 2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert len(batcher) == 1
        late = asyncio.create_task(batcher.submit(3, 60))
        model.gate.set()
        assert [result.output for result in await asyncio.gather(first, waiting[1], late)] == [0, 4, 6]
        assert model.batches == [[0], [2], [3]]
        await batcher.stop()

    run(scenario())


def test_a_caller_that_leaves_the_moment_its_batch_is_made_is_not_computed() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        left = asyncio.create_task(batcher.submit(1, 60))
        await asyncio.sleep(0)
        model.gate.set()  # the worker goes on before the caller learns that it is cancelled
        left.cancel()
        await first
        await asyncio.wait([left])
        assert left.cancelled()
        assert model.batches == [[0]]
        await batcher.stop()

    run(scenario())


def test_a_caller_that_left_is_not_tried_again() -> None:
    async def scenario() -> None:
        batches: list[list[int]] = []

        async def fails(items: Sequence[int]) -> list[int]:
            batches.append(list(items))
            tasks[0].cancel()  # its caller leaves while its batch is computed
            raise ValueError

        batcher = Batcher(fails, max_batch=8, capacity=10)
        tasks = await _lined_up(batcher, [1, 2], "interactive")
        left, stayed = await asyncio.gather(*tasks, return_exceptions=True)
        assert (type(left), type(stayed)) == (asyncio.CancelledError, ValueError)
        assert batches == [[1, 2], [2]]
        await batcher.stop()

    run(scenario())


async def _lined_up(batcher: Batcher[int, int], items: Sequence[int], lane: Lane) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(batcher.submit(item, 60, lane)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_who_waits_goes_before_the_background_which_is_not_left_out() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=2, capacity=100)
        tasks = [await _blocked(model, batcher)]
        tasks += await _lined_up(batcher, range(100, 105), "bulk")
        tasks += await _lined_up(batcher, range(1, 41), "interactive")
        model.gate.set()
        await asyncio.gather(*tasks)
        interactive = [[i, i + 1] for i in range(1, 41, 2)]
        assert model.batches == [
            [0],
            *interactive[:PATIENCE],
            [100, 101],
            *interactive[PATIENCE : 2 * PATIENCE],
            [102, 103],
            *interactive[2 * PATIENCE :],
            [104],
        ]
        await batcher.stop()

    run(scenario())


def test_the_background_takes_no_places_from_those_who_wait() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=2)
        tasks = [await _blocked(model, batcher)]
        tasks += await _lined_up(batcher, [100, 101], "bulk")
        with pytest.raises(QueueFull):
            await batcher.submit(102, 60, "bulk")
        tasks += await _lined_up(batcher, [1, 2], "interactive")
        assert len(batcher) == 4
        model.gate.set()
        await asyncio.gather(*tasks)
        assert model.batches == [[0], [1, 2], [100, 101]]
        await batcher.stop()

    run(scenario())


def test_an_expired_lane_does_not_end_the_work() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        late = asyncio.create_task(batcher.submit(1, -1))
        await asyncio.sleep(0)
        (bulk,) = await _lined_up(batcher, [100], "bulk")
        model.gate.set()
        with pytest.raises(Expired):
            await late
        assert (await bulk).output == 200
        await first
        await batcher.stop()

    run(scenario())


def test_what_is_too_large_is_halved_and_batches_stay_smaller_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CAUTION_S", 0.2)

    async def scenario() -> None:
        model = Model()
        model.fits = 3
        batcher = Batcher(model, max_batch=8, capacity=20)
        tasks = [await _blocked(model, batcher)]
        tasks += await _lined_up(batcher, range(1, 14), "interactive")
        model.gate.set()
        results = await asyncio.gather(*tasks)
        assert [result.output for result in results] == [2 * i for i in range(14)]
        # 8 do not fit, nor do 4, but 2 do; so the last 5 go by 2 at once.
        halves = [[1, 2, 3, 4], [1, 2], [3, 4], [5, 6, 7, 8], [5, 6], [7, 8]]
        assert model.batches == [[0], list(range(1, 9)), *halves, [9, 10], [11, 12], [13]]
        assert batcher.limit == 2
        await asyncio.sleep(0.25)
        assert batcher.limit == 8
        await batcher.stop()

    run(scenario())


def test_one_item_that_is_too_large_is_its_callers_error() -> None:
    async def scenario() -> None:
        model = Model()
        model.fits = 0
        batcher = Batcher(model, max_batch=8, capacity=20)
        with pytest.raises(TooLarge):
            await batcher.submit(1, 60)
        assert batcher.limit == 8
        await batcher.stop()

    run(scenario())


def test_there_is_a_task_only_while_there_is_work() -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        batcher = Batcher(Model(), max_batch=8, capacity=20)
        for _ in range(2):
            assert (await batcher.submit(1, 60)).output == 2
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
        batcher = Batcher(Model(), max_batch=8, capacity=20)
        await batcher.stop()  # before anything was asked
        gone = weakref.ref(batcher)
        del batcher
        gc.disable()
        try:
            assert gone() is None  # no cycle holds it either
        finally:
            gc.enable()

    run(scenario())


def test_an_item_past_its_deadline_is_not_computed() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=8, capacity=10)
        first = await _blocked(model, batcher)
        late = asyncio.create_task(batcher.submit(1, 0.01))
        await asyncio.sleep(0.05)
        model.gate.set()
        with pytest.raises(Expired):
            await late
        await first
        assert model.batches == [[0]]
        await batcher.stop()

    run(scenario())


def test_stopping_answers_what_waits_and_takes_no_more() -> None:
    async def scenario() -> None:
        model = Model()
        batcher = Batcher(model, max_batch=1, capacity=10)
        first = await _blocked(model, batcher)
        waiting = [asyncio.create_task(batcher.submit(i, 60)) for i in (1, 2)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(Stopped):
            await batcher.submit(3, 60)
        model.gate.set()
        results = await asyncio.gather(first, *waiting)
        assert [result.output for result in results] == [0, 2, 4]
        await stopping

    run(scenario())
