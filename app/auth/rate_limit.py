"""Limits of one API key: requests per minute, and requests in progress at once."""

from __future__ import annotations

from collections import deque

from index.protocol import Quota

MINUTE_S = 60.0


class KeyUsage:
    """Counts the requests of one key against its limits (None: no limit). A `with` block is one request in progress.

    A sliding window log: exactly at most `per_minute` requests in any interval of a minute. It stores the times of the
    last `per_minute` requests. A fixed window would allow twice as many around its reset, a full token bucket as well.
    `quota`: counts the requests per minute instead, together with other replicas.
    """

    def __init__(self, per_minute: int | None, concurrency: int | None, quota: Quota | None = None):
        self.per_minute = per_minute
        self._quota = quota
        self.concurrency = concurrency
        self._times: deque[float] = deque(maxlen=per_minute or 0)
        self._in_progress = 0

    @property
    def is_full(self) -> bool:
        """Whether the number of requests in progress has reached `concurrency`."""
        return self.concurrency is not None and self._in_progress >= self.concurrency

    def count(self, now: float) -> float:
        """Count a request and return 0, or return the seconds until the next is allowed. `now` must not decrease."""
        if self._quota is not None:
            return self._quota.take()
        if len(self._times) == self.per_minute and (wait := self._times[0] + MINUTE_S - now) > 0:
            return wait
        self._times.append(now)
        return 0.0

    def __enter__(self) -> None:
        self._in_progress += 1

    def __exit__(self, *_: object) -> None:
        self._in_progress -= 1
