"""Bounded, work-conserving micro-batching: whenever the worker is free and something waits, it runs.

No timer holds a lone item back: batches form from what arrives while the one before is computed. Who waits for an
answer goes before what is done in the background, which is never left out for good.
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

Lane = Literal["interactive", "bulk"]

# So many batches of those who wait go before one of the background's, where there is something of both.
PATIENCE = 8
# Seconds for which batches stay smaller after one was too large.
CAUTION_S = 60.0


class QueueFull(Exception):
    """As many items wait as may."""


class Expired(Exception):
    """The item's deadline passed while it waited."""


class Stopped(Exception):
    """The batcher takes nothing more."""


class TooLarge(Exception):
    """What `run` raises where the batch has no place in memory: fewer items may have."""


@dataclass(frozen=True)
class Batched(Generic[Out]):
    """One item's output and what it cost, in seconds; `size` is the batch it ran in."""

    output: Out
    queued_s: float
    computed_s: float
    size: int


@dataclass(eq=False)
class _Waiting(Generic[In, Out]):
    item: In
    deadline: float
    since: float
    future: asyncio.Future[Batched[Out]]


class Batcher(Generic[In, Out]):
    """Collects items of many callers for a function that is faster on many at once.

    `run` takes 1..max_batch items and answers as many outputs in order; one call is under way at a time. A batch is of
    one lane, each of which has `capacity` places. Times are those of the event loop's clock. There is a task only while
    there is something to do: what is not used any more can be let go of.
    """

    def __init__(self, run: Callable[[Sequence[In]], Awaitable[Sequence[Out]]], max_batch: int, capacity: int):
        self._run = run
        self._max_batch = max_batch
        self._capacity = capacity
        self._lanes: dict[Lane, deque[_Waiting[In, Out]]] = {lane: deque() for lane in get_args(Lane)}
        self._passed = 0
        self._largest, self._cautious_until = max_batch, 0.0
        self._stopping = False
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many items wait."""
        return sum(map(len, self._lanes.values()))

    @property
    def limit(self) -> int:
        """How many items go into a batch now."""
        return self._largest if asyncio.get_running_loop().time() < self._cautious_until else self._max_batch

    async def submit(self, item: In, wait_s: float, lane: Lane = "interactive") -> Batched[Out]:
        """The item's output. A caller that is cancelled gives its place back at once.

        Raises:
            QueueFull, Stopped: at once. Expired: it still waited after `wait_s` seconds. Or what `run` raised for it.
        """
        if self._stopping:
            raise Stopped
        places = self._lanes[lane]
        if len(places) >= self._capacity:
            raise QueueFull
        loop = asyncio.get_running_loop()
        now = loop.time()
        waiting = _Waiting[In, Out](item, now + wait_s, now, loop.create_future())
        places.append(waiting)
        if self._worker is None:
            # In a context of its own: that of one caller is not the others'.
            self._worker = loop.create_task(self._work(), context=Context())
        try:
            return await waiting.future
        except asyncio.CancelledError:
            with suppress(ValueError):  # it is computed already
                places.remove(waiting)
            raise

    async def stop(self) -> None:
        """Take nothing more, finish what waits, and return when all of it is answered."""
        self._stopping = True
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while batch := self._next_batch():
            await self._answer(batch)
        self._worker = None

    def _next_batch(self) -> list[_Waiting[In, Out]]:
        batch: list[_Waiting[In, Out]] = []
        while not batch and len(self):
            batch = self._taken(self._lanes[self._next_lane()])
        return batch

    def _next_lane(self) -> Lane:
        if not self._lanes["bulk"]:
            return "interactive"
        if self._lanes["interactive"] and self._passed < PATIENCE:
            self._passed += 1
            return "interactive"
        self._passed = 0
        return "bulk"

    def _taken(self, places: deque[_Waiting[In, Out]]) -> list[_Waiting[In, Out]]:
        now, limit = asyncio.get_running_loop().time(), self.limit
        batch: list[_Waiting[In, Out]] = []
        while places and len(batch) < limit:
            waiting = places.popleft()
            if waiting.future.done():  # its caller was cancelled this moment
                continue
            if waiting.deadline < now:
                waiting.future.set_exception(Expired())
                continue
            batch.append(waiting)
        return batch

    async def _answer(self, batch: list[_Waiting[In, Out]]) -> None:
        started = asyncio.get_running_loop().time()
        try:
            clock = time.perf_counter()
            outputs = await self._run([waiting.item for waiting in batch])
            computed = time.perf_counter() - clock
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(outputs)} outputs for {len(batch)} items")
        except Exception as error:  # noqa: BLE001  whatever it is belongs to the callers
            await self._blame(batch, error)
            return
        for waiting, output in zip(batch, outputs, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Batched(output, started - waiting.since, computed, len(batch)))

    async def _blame(self, batch: list[_Waiting[In, Out]], error: Exception) -> None:
        """A failed batch is tried again one by one, once, so that only the culprit gets the error; one that was too
        large in halves.
        """
        if len(batch) == 1:
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        size = 1
        if isinstance(error, TooLarge):
            size = self._largest = (len(batch) + 1) // 2
            self._cautious_until = asyncio.get_running_loop().time() + CAUTION_S
        for first in range(0, len(batch), size):
            # Some may have left meanwhile.
            if again := [waiting for waiting in batch[first : first + size] if not waiting.future.done()]:
                await self._answer(again)
