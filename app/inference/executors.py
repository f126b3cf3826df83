"""The service's threads: a fair pool for the CPU work of requests, and an executor for each other kind of work."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from app.auth.fair_share import LONG_S, OWNER, Owner

T = TypeVar("T")

IO_THREADS = 8
BACKGROUND_THREADS = 4  # bulk enrolment and re-embedding: for each a step, and the renewal of its lease
NICENESS = 5  # added to threads that compute


@dataclass(frozen=True)
class Continuation(Generic[T]):
    """The rest of a task. A function returns it in place of a result when it finds that its task takes long."""

    function: Callable[[], T]


class _Task(Generic[T]):
    """A function to be run, and later its result."""

    def __init__(
        self, function: Callable[[], T | Continuation[T]], future: asyncio.Future[T], owner: Owner, *, is_long: bool
    ):
        self._function: Callable[[], T | Continuation[T]] | None = function
        self._future = future
        self._is_long = is_long
        self.owner = owner

    @property
    def is_long(self) -> bool:
        """Whether the task may take more than a fraction of a second."""
        return self._is_long or self.owner.busy_s > LONG_S

    @property
    def is_pending(self) -> bool:
        """Whether there is a function left to run."""
        return self._function is not None

    def cancel(self) -> None:
        """Release the function, and with it the image that it holds, before a thread takes the task. Called in the
        event loop after the future was cancelled.
        """
        self._function = None

    def run(self) -> None:
        """Run the function, in a thread."""
        function, self._function = self._function, None
        if function is None or self._future.cancelled():
            return
        started = time.perf_counter()
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  passed on to the caller
            self._set_outcome = partial(self._future.set_exception, error)
        else:
            if isinstance(result, Continuation):
                self._function, self._is_long = result.function, True
                if self._future.cancelled():  # checked after the assignment, which may follow `cancel`
                    self._function = None
            else:
                self._set_outcome = partial(self._future.set_result, result)
        self.owner.busy_s += time.perf_counter() - started

    def resolve(self) -> None:
        """Set the future's result or exception, in the event loop."""
        if not self._future.done():
            self._set_outcome()


class _FairQueue:
    """Task queue that is round-robin between callers, then between a caller's requests; FIFO within a request."""

    def __init__(self) -> None:
        self._callers: dict[str | None, dict[Owner, deque[_Task[Any]]]] = {}
        self._lock = threading.Lock()

    def put(self, task: _Task[Any], *, first: bool = False) -> None:
        """Add a task at the end of its request's tasks, or at their beginning."""
        with self._lock:
            tasks = self._callers.setdefault(task.owner.caller, {}).setdefault(task.owner, deque())
            (tasks.appendleft if first else tasks.append)(task)

    @property
    def is_empty(self) -> bool:
        """Whether there are no tasks, neither short nor long."""
        return not self._callers

    def take(self, *, only_short: bool) -> _Task[Any] | None:
        """Remove and return the next task, or the next short one; None if there is none."""
        with self._lock:
            for caller, owners in self._callers.items():
                for owner, tasks in owners.items():
                    if not (only_short and tasks[0].is_long):
                        return self._take_first(caller, owner)
        return None

    def _take_first(self, caller: str | None, owner: Owner) -> _Task[Any]:
        """Remove and return the request's first task; move the request and its caller to the end of their queues."""
        owners = self._callers.pop(caller)
        tasks = owners.pop(owner)
        task = tasks.popleft()
        if tasks:
            owners[owner] = tasks
        if owners:
            self._callers[caller] = owners
        return task


class FairThreadPool:
    """A thread pool that is fair between requests and between API keys, for one event loop.

    One thread runs short tasks only, so that they never wait for long ones; `workers` threads run all tasks, after
    `initializer`. All threads start with the first task. A busy thread takes new tasks without being woken, and the
    event loop is woken once for all finished ones. A ThreadPoolExecutor is as fast (1.02 of the requests/s of LeNet-5
    with 1 client, 1.01 with 64; 5 interleaved rounds, 2 cores of an AMD EPYC), but takes tasks in the order of their
    arrival, so that one caller's large images delay everybody's.
    """

    def __init__(self, workers: int, name: str, initializer: Callable[[], object] = lambda: None):
        self._queue = _FairQueue()
        # True: a task may be waiting; False: stop.
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._short_wakes: SimpleQueue[bool] = SimpleQueue()
        self._short_is_idle = False
        self._finished: deque[_Task[Any]] = deque()
        self._resolve_scheduled = False
        self._name = name
        self._workers = workers
        self._initializer = initializer
        self._threads: list[threading.Thread] = []
        self._background = Owner(None, busy_s=2 * LONG_S)

    async def run(self, function: Callable[[], T | Continuation[T]], *, is_long: bool = False) -> T:
        """Run the function in the pool, on behalf of the request in `OWNER`, and return its result.

        A cancelled caller stops waiting, and a task that has not started by then is dropped. Tasks outside any request
        count as long.
        """
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._start(loop)
        future: asyncio.Future[T] = loop.create_future()
        task = _Task(function, future, OWNER.get() or self._background, is_long=is_long)
        del function  # else a kept traceback of this call would keep what `cancel` releases
        self._put(task)
        try:
            return await future
        except asyncio.CancelledError:
            task.cancel()
            raise

    def stop(self) -> None:
        """Finish all tasks and end the threads."""
        self._short_wakes.put(False)
        for _ in range(self._workers):
            self._wakes.put(False)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        targets = [self._serve_short, *[self._serve] * self._workers]
        self._threads = [
            threading.Thread(target=target, args=(loop,), name=f"{self._name}_{number}", daemon=True)
            for number, target in enumerate(targets)
        ]
        for thread in self._threads:
            thread.start()

    def _put(self, task: _Task[Any], *, first: bool = False) -> None:
        self._queue.put(task, first=first)
        if self._short_is_idle and not task.is_long:
            self._short_is_idle = False
            self._short_wakes.put(True)
        else:
            self._wakes.put(True)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        self._initializer()
        running = True
        while running:
            running = self._wakes.get()
            self._run_tasks(loop, only_short=False)

    def _serve_short(self, loop: asyncio.AbstractEventLoop) -> None:
        running = True
        while running:
            self._short_is_idle = True
            running = self._short_wakes.get()
            self._run_tasks(loop, only_short=True)
            if not self._queue.is_empty:
                self._wakes.put(True)  # the task that woke this thread may count as long by now

    def _run_tasks(self, loop: asyncio.AbstractEventLoop, *, only_short: bool) -> None:
        """Run tasks until none is left."""
        while (task := self._queue.take(only_short=only_short)) is not None:
            task.run()
            if task.is_pending:
                self._put(task, first=True)
                continue
            self._finished.append(task)
            if not self._resolve_scheduled:
                self._resolve_scheduled = True
                loop.call_soon_threadsafe(self._resolve_finished)

    def _resolve_finished(self) -> None:
        self._resolve_scheduled = False  # first, so that tasks which finish from now on schedule another call
        while self._finished:
            self._finished.popleft().resolve()


def _lower_priority() -> None:
    """Give this thread and those that it starts a lower priority. Batches are larger if requests are read and images
    decoded before networks run; on an idle machine this costs a network nothing.
    """
    os.nice(NICENESS)


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Executors:
    """All threads of the service, in separate pools, so that one kind of work does not delay another."""

    def __init__(self) -> None:
        # One batch at a time: a network uses all cores, and two networks side by side would compete for them.
        self.compute = ThreadPoolExecutor(1, "compute", initializer=_lower_priority)
        # Loading weights delays neither requests nor the compilation of a runtime.
        self.load = ThreadPoolExecutor(1, "load")
        self.select_runtime = ThreadPoolExecutor(1, "choose", initializer=_lower_priority)
        self._cpu = FairThreadPool(_available_cores(), "decode", _lower_priority)
        self._io = ThreadPoolExecutor(IO_THREADS, "store")
        # Separate from `_io`: on a slow disk, background commits must not delay the reads of requests.
        self._background = ThreadPoolExecutor(BACKGROUND_THREADS, "work")

    async def run_cpu(self, function: Callable[[], T | Continuation[T]], *, is_long: bool = False) -> T:
        """Run CPU work of a request, such as decoding an image; see `FairThreadPool.run`."""
        return await self._cpu.run(function, is_long=is_long)

    async def run_io(self, function: Callable[[], T]) -> T:
        """Run a function that reads files for a request."""
        return await asyncio.get_running_loop().run_in_executor(self._io, function)

    async def run_background(self, function: Callable[[], T]) -> T:
        """Run a step of background work, which may wait for files to be written."""
        return await asyncio.get_running_loop().run_in_executor(self._background, function)

    def stop(self) -> None:
        """Finish all submitted work and end the threads."""
        self._cpu.stop()
        for executor in (self.compute, self.load, self.select_runtime, self._io, self._background):
            executor.shutdown()
