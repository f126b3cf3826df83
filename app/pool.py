"""Threads for what takes less time than waking a thread does."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Job(Generic[T]):
    """A piece of work, and then what came of it."""

    def __init__(self, work: Callable[[], T], future: asyncio.Future[T]):
        self._work: Callable[[], T] | None = work
        self._future = future
        self._error: BaseException | None = None

    def run(self) -> None:
        """In a thread."""
        work, self._work = self._work, None
        if work is None or self._future.cancelled():
            return
        try:
            self._result = work()
        except BaseException as error:  # noqa: BLE001  it is the caller's
            self._error = error

    def tell(self) -> None:
        """In the event loop."""
        if self._future.done():
            return
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._future.set_result(self._result)


class Pool:
    """So many threads beside one event loop, begun with the first piece of work.

    With an executor each piece costs a thread, and then the event loop, an awakening, which on a virtual machine may
    take as long as to decode a small picture. Here whoever is busy finds what came meanwhile without being woken.
    """

    def __init__(self, threads: int, name: str):
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._done: deque[_Job[Any]] = deque()
        self._told = False  # the event loop is about to look
        self._names = [f"{name}_{number}" for number in range(threads)]
        self._threads: list[threading.Thread] = []

    async def run(self, work: Callable[[], T]) -> T:
        """What comes of it. Who is cancelled does not wait for it any more."""
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, args=(loop,), name=name, daemon=True) for name in self._names
            ]
            for thread in self._threads:
                thread.start()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, future))
        return await future

    def stop(self) -> None:
        """End the threads when all that was begun is done."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            self._done.append(job)
            if not self._told:
                self._told = True
                loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False  # before it looks: what is done from now on is told of anew
        while self._done:
            self._done.popleft().tell()
