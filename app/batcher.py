"""Bounded, work-conserving micro-batching: whenever the worker is free and something waits, it runs.

No timer holds a lone item back: batches form from what arrives while the one before is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class QueueFull(Exception):
    """As many items wait as may."""


class Expired(Exception):
    """The item's deadline passed while it waited."""


class Stopped(Exception):
    """The batcher takes nothing more."""


@dataclass(frozen=True)
class Batched(Generic[Out]):
    """One item's output and what it cost, in seconds; `size` is the batch it ran in."""

    output: Out
    queued_s: float
    computed_s: float
    size: int


@dataclass
class _Waiting(Generic[In, Out]):
    item: In
    deadline: float
    since: float
    future: asyncio.Future[Batched[Out]]


class Batcher(Generic[In, Out]):
    """Collects items of many callers for a function that is faster on many at once.

    `run` takes 1..max_batch items and answers as many outputs in order; one call is under way at a time. Times are
    those of the event loop's clock.
    """

    def __init__(self, run: Callable[[Sequence[In]], Awaitable[Sequence[Out]]], max_batch: int, capacity: int):
        self._run = run
        self._max_batch = max_batch
        self._capacity = capacity
        self._waiting: deque[_Waiting[In, Out]] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._worker = asyncio.create_task(self._work())

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def submit(self, item: In, wait_s: float) -> Batched[Out]:
        """The item's output.

        Raises:
            QueueFull, Stopped: at once. Expired: it still waited after `wait_s` seconds. Or what `run` raised for it.
        """
        if self._stopping:
            raise Stopped
        if len(self._waiting) >= self._capacity:
            raise QueueFull
        loop = asyncio.get_running_loop()
        now = loop.time()
        future: asyncio.Future[Batched[Out]] = loop.create_future()
        self._waiting.append(_Waiting(item, now + wait_s, now, future))
        self._wake.set()
        return await future

    async def stop(self) -> None:
        """Take nothing more, finish what waits, and return when all of it is answered."""
        self._stopping = True
        self._wake.set()
        await self._worker

    async def _work(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                await self._answer(batch)
            elif self._stopping:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _next_batch(self) -> list[_Waiting[In, Out]]:
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[In, Out]] = []
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
            if waiting.future.done():  # its caller was cancelled
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
        """A failed batch is tried again one by one, once, so that only the culprit gets the error."""
        if len(batch) > 1:
            for waiting in batch:
                await self._answer([waiting])
        elif not batch[0].future.done():
            batch[0].future.set_exception(error)
