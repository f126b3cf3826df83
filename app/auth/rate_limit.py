"""Limits of one API key: requests per minute, and requests in progress at once."""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0


class SlidingWindow:
    """A sliding window log: at most `limit` events in any interval of `seconds`, exactly.

    It stores the times of the last `limit` events. A fixed window or a token bucket would let twice as many pass around
    the moment it is reset or full. The caller passes the time.
    """

    def __init__(self, limit: int, seconds: float = MINUTE_S):
        self._seconds = seconds
        self._times: deque[float] = deque(maxlen=limit)

    def take(self, now: float) -> float:
        """Count an event and return 0, or return the seconds until the next may happen. `now` never decreases."""
        if len(self._times) == self._times.maxlen and (wait := self._times[0] + self._seconds - now) > 0:
            return wait
        self._times.append(now)
        return 0.0


class KeyUsage:
    """Requests of one key, counted against its limits. A limit of None means no limit."""

    def __init__(self, per_minute: int | None, concurrency: int | None):
        self.per_minute = per_minute
        self.concurrency = concurrency
        self._window = SlidingWindow(per_minute) if per_minute else None
        self._in_progress = 0

    @property
    def is_full(self) -> bool:
        """Whether the key has as many requests in progress as it may have."""
        return self.concurrency is not None and self._in_progress >= self.concurrency

    def take(self, now: float) -> float:
        """Count a request in this minute and return 0, or return the seconds until the next may begin."""
        return self._window.take(now) if self._window else 0.0

    def begin(self) -> None:
        """Count a request as in progress."""
        self._in_progress += 1

    def end(self) -> None:
        """Count it as finished."""
        self._in_progress -= 1
