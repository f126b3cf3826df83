"""Timeouts that cost little to start and to cancel.

A request has several, and nearly always ends before them. A timer of the event loop for each took an eighth of the time
of a small request, most of it `asyncio.timeout` and the loop's cancellation of the timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Timeouts:
    """Timeouts of the same length, `seconds`, which share one timer of the event loop."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[Timeout, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def start(self, callback: Callable[[], object]) -> Timeout:
        """Call `callback` after `seconds`, unless the returned timeout is cancelled before."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the timeouts of a loop that has ended are forgotten with it
            self._loop, self._pending, self._timer = loop, {}, None
        timeout = Timeout(self._pending, loop.time() + self.seconds, callback)
        self._pending[timeout] = None
        if self._timer is None:
            self._timer = loop.call_at(timeout.due, self._end)
        return timeout

    def limit(self) -> TimeLimit:
        """Return a context that ends with TimeoutError after `seconds`."""
        return TimeLimit(self)

    def _end(self) -> None:
        """End the timeouts that are due, and set the timer for the oldest that is not."""
        assert self._loop is not None  # noqa: S101  its timer called this
        now = self._loop.time()
        try:
            while self._pending and (oldest := next(iter(self._pending))).due <= now:
                oldest.end()
        finally:
            self._timer = self._loop.call_at(next(iter(self._pending)).due, self._end) if self._pending else None


class Timeout:
    """One of `Timeouts`. `due`: when it ends, in seconds of the event loop's clock."""

    __slots__ = ("_callback", "_pending", "due")

    def __init__(self, pending: dict[Timeout, None], due: float, callback: Callable[[], object]):
        self._pending = pending
        self._callback = callback
        self.due = due

    def cancel(self) -> None:
        """Forget the timeout; no effect if it has ended or is cancelled."""
        self._pending.pop(self, None)

    def end(self) -> None:
        """End the timeout now."""
        self.cancel()
        self._callback()


class TimeLimit:
    """A context in a task, whose work is cancelled and which raises TimeoutError when the time is over.

    Like `asyncio.timeout`: if the task is cancelled for another reason as well, CancelledError is raised.
    """

    def __init__(self, timeouts: Timeouts):
        self._timeouts = timeouts
        self._is_over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in one
        self._task, self._cancelling = task, task.cancelling()
        self._timeout = self._timeouts.start(self._cancel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timeout.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """End the time now."""
        if not self._is_over:
            self._timeout.end()

    def _cancel(self) -> None:
        self._is_over = True
        self._task.cancel()
