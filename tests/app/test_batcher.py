"""The batcher, alone: no HTTP, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from app.batcher import Batcher, Expired, QueueFull, Stopped

T = TypeVar("T")


class Model:
    """Doubles numbers, records batches, fails on what it is told to, and waits at a gate."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        await self.gate.wait()
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
