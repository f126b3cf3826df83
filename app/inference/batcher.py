"""Bounded, work-conserving micro-batching: a batch starts whenever the model is free and an item waits.

There is no batching timer: a batch consists of the items that arrived while the previous one was computed. Interactive
items go before background ones, which still get a fixed share of the batches.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

In = TypeVar("In")
Out = TypeVar("Out")

Priority = Literal["interactive", "background"]

# Interactive batches between two background ones while items of both priorities wait.
INTERACTIVE_BATCHES = 8
# Seconds for which batches stay smaller after one did not fit into memory.
REDUCED_SIZE_S = 60.0


class QueueFull(Exception):
    """The queue has reached its capacity."""


class Expired(Exception):
    """The item's deadline passed while it waited."""


class Stopped(Exception):
    """The batcher accepts no more items."""


class TooLarge(Exception):
    """Raised by `run` if the batch does not fit into memory; a smaller one may."""


@dataclass(frozen=True)
class BatchResult(Generic[Out]):
    """One item's output, its times in seconds, and the `size` of the batch that it ran in."""

    output: Out
    queued_s: float
    computed_s: float
    size: int


@dataclass(eq=False)
class _QueuedItem(Generic[In, Out]):
    item: In
    deadline: float
    queued_at: float
    future: asyncio.Future[BatchResult[Out]]


class Batcher(Generic[In, Out]):
    """Collects items of many callers for a function that is faster on a batch than on single items.

    `run` is called with 1..max_batch items of one priority and returns as many outputs in the same order; calls do not
    overlap.
    Each priority has a queue of `capacity` items. Times are those of the event loop's clock. A task exists only while
    items wait or run, so that an unused batcher can be garbage-collected.
    """

    def __init__(self, run: Callable[[Sequence[In]], Awaitable[Sequence[Out]]], max_batch: int, capacity: int):
        self._run = run
        self._max_batch = max_batch
        self._capacity = capacity
        self._queues: dict[Priority, deque[_QueuedItem[In, Out]]] = {name: deque() for name in get_args(Priority)}
        self._interactive_batches = 0  # number since the last background batch
        self._reduced_size, self._reduced_until = max_batch, 0.0
        self._stopping = False
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return sum(map(len, self._queues.values()))

    @property
    def limit(self) -> int:
        """The current maximum batch size."""
        return self._reduced_size if asyncio.get_running_loop().time() < self._reduced_until else self._max_batch

    async def submit(self, item: In, wait_s: float, priority: Priority = "interactive") -> BatchResult[Out]:
        """Return the item's output. Cancelling the caller removes the item from the queue at once.

        Raises:
            QueueFull, Stopped: at once. Expired: if it still waits after `wait_s` seconds. Any error of `run`.
        """
        if self._stopping:
            raise Stopped
        queue = self._queues[priority]
        if len(queue) >= self._capacity:
            raise QueueFull
        loop = asyncio.get_running_loop()
        now = loop.time()
        queued = _QueuedItem[In, Out](item, now + wait_s, now, loop.create_future())
        queue.append(queued)
        if self._worker is None:
            # In an empty context: the worker must not run other callers' items in the context of this one.
            self._worker = loop.create_task(self._work(), context=Context())
        try:
            return await queued.future
        except asyncio.CancelledError:
            with suppress(ValueError):  # if the item has already left the queue
                queue.remove(queued)
            raise

    async def stop(self) -> None:
        """Accept no more items, and return when all waiting ones are done."""
        self._stopping = True
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while len(self):
            if batch := self._take_batch(self._queues[self._next_priority()]):
                await self._run_batch(batch)
        self._worker = None

    def _next_priority(self) -> Priority:
        if not self._queues["background"]:
            return "interactive"
        if self._queues["interactive"] and self._interactive_batches < INTERACTIVE_BATCHES:
            self._interactive_batches += 1
            return "interactive"
        self._interactive_batches = 0
        return "background"

    def _take_batch(self, queue: deque[_QueuedItem[In, Out]]) -> list[_QueuedItem[In, Out]]:
        now, limit = asyncio.get_running_loop().time(), self.limit
        batch: list[_QueuedItem[In, Out]] = []
        while queue and len(batch) < limit:
            queued = queue.popleft()
            if queued.future.done():  # cancelled, but its caller has not run since
                continue
            if queued.deadline < now:
                queued.future.set_exception(Expired())
                continue
            batch.append(queued)
        return batch

    async def _run_batch(self, batch: list[_QueuedItem[In, Out]]) -> None:
        started = asyncio.get_running_loop().time()
        try:
            clock = time.perf_counter()
            outputs = await self._run([queued.item for queued in batch])
            computed = time.perf_counter() - clock
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(outputs)} outputs for {len(batch)} items")
        except Exception as error:  # noqa: BLE001  every error is passed on to the callers
            await self._retry_once(batch, error)
            return
        for queued, output in zip(batch, outputs, strict=True):
            if not queued.future.done():
                queued.future.set_result(BatchResult(output, started - queued.queued_at, computed, len(batch)))

    async def _retry_once(self, batch: list[_QueuedItem[In, Out]], error: Exception) -> None:
        """Run the items of a failed batch one by one, so that only the faulty one gets the error. A batch that was too
        large is run in halves.
        """
        if len(batch) == 1:
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        size = 1
        if isinstance(error, TooLarge):
            size = self._reduced_size = (len(batch) + 1) // 2
            self._reduced_until = asyncio.get_running_loop().time() + REDUCED_SIZE_S
        for first in range(0, len(batch), size):
            # Callers may have been cancelled meanwhile.
            if retried := [queued for queued in batch[first : first + size] if not queued.future.done()]:
                await self._run_batch(retried)
