"""Threads for short work, such as decoding a picture, fair between requests and between API keys.

Work that takes long never keeps all threads, so that short work waits for short work only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# Seconds. The work of a request that has kept threads for longer than this counts as long.
LONG_S = 0.25


@dataclass(eq=False)
class Owner:
    """A request, for which work is done. `caller`: the id of its API key, None while the service is open; `busy_s`: for
    how long it has kept threads.
    """

    caller: str | None
    busy_s: float = 0.0


OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)


@dataclass(frozen=True)
class Long(Generic[T]):
    """What work returns in place of its result where it turns out to take long: the rest of it."""

    rest: Callable[[], T]


class _Job(Generic[T]):
    """A piece of work, and then its result."""

    def __init__(self, work: Callable[[], T | Long[T]], future: asyncio.Future[T], owner: Owner, *, is_long: bool):
        self._work: Callable[[], T | Long[T]] | None = work
        self._future = future
        self._error: BaseException | None = None
        self._is_long = is_long
        self.owner = owner

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
    """Jobs in turns: of callers, of each caller's requests in turn, and of a request in the order of their arrival.

    At most `most_long` long jobs are taken at a time.
    """

    def __init__(self, most_long: int):
        self._most_long = most_long
        self._long = 0
        self._callers: dict[str | None, dict[Owner, deque[_Job[Any]]]] = {}
        self._lock = threading.Lock()

    def put(self, job: _Job[Any], *, first: bool = False) -> None:
        """Add a job, at the end of its request's or at the beginning."""
        with self._lock:
            jobs = self._callers.setdefault(job.owner.caller, {}).setdefault(job.owner, deque())
            (jobs.appendleft if first else jobs.append)(job)

    def take(self) -> tuple[_Job[Any], bool] | None:
        """The next job that may run now, and whether it counts as long; None where there is none."""
        with self._lock:
            for caller, owners in self._callers.items():
                for owner, jobs in owners.items():
                    is_long = jobs[0].is_long
                    if not is_long or self._long < self._most_long:
                        self._long += is_long
                        return self._taken(caller, owner), is_long
        return None

    def done(self, *, is_long: bool) -> None:
        """A job that was taken is over."""
        with self._lock:
            self._long -= is_long

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
    """Threads beside one event loop, started with the first piece of work: one more than `long_threads`, which is how
    many pieces of long work run at a time.

    With an executor each piece costs a thread, and then the event loop, an awakening, which on a virtual machine may
    take as long as to decode a small picture. Here a busy thread finds what came meanwhile without being woken.
    """

    def __init__(self, long_threads: int, name: str):
        self._queue = _Queue(long_threads)
        self._wakes: SimpleQueue[bool] = SimpleQueue()  # True: a job may be there; False: end
        self._done: deque[_Job[Any]] = deque()
        self._told = False  # the event loop is about to look
        self._names = [f"{name}_{number}" for number in range(long_threads + 1)]
        self._threads: list[threading.Thread] = []
        self._background = Owner(None, busy_s=2 * LONG_S)

    async def run(self, work: Callable[[], T | Long[T]], *, is_long: bool = False) -> T:
        """Run `work` in the pool, as the request's that `OWNER` names, and return its result.

        A cancelled caller stops waiting, and work that has not begun by then is dropped. Work of no request counts as
        long.
        """
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._serve, args=(loop,), name=name, daemon=True) for name in self._names
            ]
            for thread in self._threads:
                thread.start()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Job(work, future, OWNER.get() or self._background, is_long=is_long))
        return await future

    def stop(self) -> None:
        """End the threads when all that was begun is done."""
        for _ in self._threads:
            self._wakes.put(False)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _put(self, job: _Job[Any], *, first: bool = False) -> None:
        self._queue.put(job, first=first)
        self._wakes.put(True)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        goes_on = True
        while goes_on:
            goes_on = self._wakes.get()
            # Long jobs that may not run now are left to the threads that run such, which look here after each.
            while (taken := self._queue.take()) is not None:
                job, is_long = taken
                job.run()
                self._queue.done(is_long=is_long)
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
