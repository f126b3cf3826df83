"""How much one key may ask for: so many requests a minute, and so many at once."""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0


class SlidingWindow:
    """A sliding window log: at most `limit` in any `seconds`, exactly, whenever those begin.

    It remembers when each of the last `limit` was; a counter that is reset, or a bucket that fills, would let twice as
    many pass around the moment that it is full again. Pure: who asks says what time it is.
    """

    def __init__(self, limit: int, seconds: float = MINUTE_S):
        self._seconds = seconds
        self._taken: deque[float] = deque(maxlen=limit)

    def take(self, now: float) -> float:
        """0 where one more may pass, which then counts; else how many seconds until one may. `now` never goes back."""
        if len(self._taken) == self._taken.maxlen and (wait := self._taken[0] + self._seconds - now) > 0:
            return wait
        self._taken.append(now)
        return 0.0


class Share:
    """What one key has taken of what it may; None: as much as it likes."""

    def __init__(self, per_minute: int | None, at_once: int | None):
        self.per_minute = per_minute
        self.at_once = at_once
        self._window = SlidingWindow(per_minute) if per_minute else None
        self._under_way = 0

    @property
    def is_full(self) -> bool:
        """Whether as many requests are under way as may be."""
        return self.at_once is not None and self._under_way >= self.at_once

    def wait(self, now: float) -> float:
        """0 where one more request may begin, which then counts for its minute; else the seconds until one may."""
        return self._window.take(now) if self._window else 0.0

    def begin(self) -> None:
        """A request is under way."""
        self._under_way += 1

    def end(self) -> None:
        """It is over."""
        self._under_way -= 1
