"""When a call is made again, and how long it waits first."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_FIRST_S = 0.5
_SPREAD = 0.25  # so that clients that were refused together do not come back together


@dataclass(frozen=True)
class Retries:
    """At most `times` more attempts where the status is one of `statuses`, if the wait is at most `longest_s`.

    The wait is what `Retry-After` says, or without it half a second that doubles; and up to a quarter more. A 429 was
    refused before anything was done, so it is safe to ask again; 503 may last, and is left to the caller.
    """

    times: int = 3
    statuses: Collection[int] = (429,)
    longest_s: float = 30.0

    def wait(self, response: httpx.Response, attempt: int) -> float | None:
        """Seconds until attempt number `attempt` + 1, counted from 0; None: there is none."""
        if attempt >= self.times or response.status_code not in self.statuses:
            return None
        told = retry_after(response)
        seconds = _FIRST_S * 2**attempt if told is None else told
        if seconds > self.longest_s:
            return None
        return seconds * random.uniform(1, 1 + _SPREAD)  # noqa: S311  no secret


WHEN_BUSY = Retries()
NEVER = Retries(times=0)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that `Retry-After` says, as a number or as a date; None: it says nothing that can be read."""
    told = response.headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        when = parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
