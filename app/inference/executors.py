"""Threads for short work, such as decoding a picture, fair between requests and between API keys.

Work that takes long never keeps all threads, so that short work waits for short work only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from app.auth.fair_share import LONG_S, OWNER, Owner

T = TypeVar("T")


@dataclass(frozen=True)
class Long(Generic[T]):
    """The rest of a piece of work. Work that turns out to take long returns this in place of its result."""

    rest: Callable[[], T]


class _Job(Generic[T]):
    """A piece of work, and then its result."""

    def __init__(self, work: Callable[[], T | Long[T]], future: asyncio.Future[T], owner: Owner, *, is_long: bool):
        self._work: Callable[[], T | Long[T]] | None = work
        self._future = future
        self._error: BaseException | None = None
        self._is_long = is_long
        self.owner = owner

    def drop(self) -> None:
        """In the event loop, once the future is cancelled: forget the work, and with it the picture that it is about,
        before a thread comes to it.
        """
        self._work = None

    @property
    def is_long(self) -> bool:
        """Whether it may take more than a fraction of a second."""
        return self._is_long or self.owner.busy_s > LONG_S

    @property
    def is_pending(self) -> bool:
        """Whether something of it is to be run."""
        return self._work is not None

    def run(self) -> None:
        """In a thread."""
        work, self._work = self._work, None
        if work is None or self._future.cancelled():
            return
        started = time.perf_counter()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  it is the caller's
            self._error = error
        else:
            if isinstance(result, Long):
                self._work, self._is_long = result.rest, True
                if self._future.cancelled():  # after the assignment, which may come later than `drop`
                    self._work = None
            else:
                self._result = result
        self.owner.busy_s += time.perf_counter() - started

    def tell(self) -> None:
        """In the event loop."""
        if self._future.done():
            return
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._future.set_result(self._result)


class _Queue:
    """Jobs in turns: of callers, of each caller's requests in turn, and of a request in the order of their arrival."""

    def __init__(self) -> None:
        self._callers: dict[str | None, dict[Owner, deque[_Job[Any]]]] = {}
        self._lock = threading.Lock()

    def put(self, job: _Job[Any], *, first: bool = False) -> None:
        """Add a job, at the end of its request's or at the beginning."""
        with self._lock:
            jobs = self._callers.setdefault(job.owner.caller, {}).setdefault(job.owner, deque())
            (jobs.appendleft if first else jobs.append)(job)

    @property
    def is_empty(self) -> bool:
        """Whether there is no job, not even a long one."""
        return not self._callers

    def take(self, *, only_short: bool) -> _Job[Any] | None:
        """The next job, or the next that is short; None where there is none."""
        with self._lock:
            for caller, owners in self._callers.items():
                for owner, jobs in owners.items():
                    if not (only_short and jobs[0].is_long):
                        return self._taken(caller, owner)
        return None

    def _taken(self, caller: str | None, owner: Owner) -> _Job[Any]:
        """The owner's first job; others have their turns before the next one of the same caller, or owner."""
        owners = self._callers.pop(caller)
        jobs = owners.pop(owner)
        job = jobs.popleft()
        if jobs:
            owners[owner] = jobs
        if owners:
            self._callers[caller] = owners
        return job


class Pool:
    """Threads beside one event loop, started with the first piece of work: one for short work only, and so many
    `workers` for all work, each of which begins with `initializer`.

    With an executor each piece costs a thread, and then the event loop, an awakening, which on a virtual machine may
    take as long as to decode a small picture. Here a busy thread finds what came meanwhile without being woken.
    """

    def __init__(self, workers: int, name: str, initializer: Callable[[], object] = lambda: None):
        self._queue = _Queue()
        # True: a job may be there; False: end.
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._short_wakes: SimpleQueue[bool] = SimpleQueue()
        self._short_is_idle = False
        self._done: deque[_Job[Any]] = deque()
        self._told = False  # the event loop is about to look
        self._name = name
        self._workers = workers
        self._initializer = initializer
        self._threads: list[threading.Thread] = []
        self._background = Owner(None, busy_s=2 * LONG_S)

    async def run(self, work: Callable[[], T | Long[T]], *, is_long: bool = False) -> T:
        """Run `work` in the pool, as the request's that `OWNER` names, and return its result.

        A cancelled caller stops waiting, and work that has not begun by then is dropped. Work of no request counts as
        long.
        """
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._begin(loop)
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(work, future, OWNER.get() or self._background, is_long=is_long)
        del work  # else this call keeps what `drop` forgets, as long as its traceback is kept
        self._put(job)
        try:
            return await future
        except asyncio.CancelledError:
            job.drop()
            raise

    def stop(self) -> None:
        """End the threads when all that was begun is done."""
        self._short_wakes.put(False)
        for _ in range(self._workers):
            self._wakes.put(False)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        targets = [self._serve_short, *[self._serve] * self._workers]
        self._threads = [
            threading.Thread(target=target, args=(loop,), name=f"{self._name}_{number}", daemon=True)
            for number, target in enumerate(targets)
        ]
        for thread in self._threads:
            thread.start()

    def _put(self, job: _Job[Any], *, first: bool = False) -> None:
        self._queue.put(job, first=first)
        if self._short_is_idle and not job.is_long:
            self._short_is_idle = False
            self._short_wakes.put(True)
        else:
            self._wakes.put(True)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._initializer()
        goes_on = True
        while goes_on:
            goes_on = self._wakes.get()
            self._work(loop, only_short=False)

    def _serve_short(self, loop: asyncio.AbstractEventLoop) -> None:
        goes_on = True
        while goes_on:
            self._short_is_idle = True
            goes_on = self._short_wakes.get()
            self._work(loop, only_short=True)
            if not self._queue.is_empty:
                self._wakes.put(True)  # what this thread was woken for may count as long by now

    def _work(self, loop: asyncio.AbstractEventLoop, *, only_short: bool) -> None:
        """Run jobs until there is none."""
        while (job := self._queue.take(only_short=only_short)) is not None:
            job.run()
            if job.is_pending:
                self._put(job, first=True)
            else:
                self._tell_of(job, loop)

    def _tell_of(self, job: _Job[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._done.append(job)
        if not self._told:
            self._told = True
            loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False  # before it looks: what is done from now on is told of anew
        while self._done:
            self._done.popleft().tell()
