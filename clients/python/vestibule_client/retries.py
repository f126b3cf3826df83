"""When a call is retried, and after which wait."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

_FIRST_S = 0.5
_SPREAD = 0.25  # random part of the wait, so that clients do not retry simultaneously


@dataclass(frozen=True)
class Retries:
    """At most `times` retries if the status is one of `statuses` and the wait is at most `longest_s`.

    The wait is `Retry-After`, or without it half a second, doubled for each attempt, plus up to a quarter. A 429 is
    refused before any work, so that it is safe to retry; 503 may last long and is left to the caller.
    """

    times: int = 3
    statuses: Collection[int] = (429,)
    longest_s: float = 30.0

    def wait(self, response: httpx.Response, attempt: int) -> float | None:
        """Seconds to wait before attempt `attempt` + 1, counted from 0; None: do not retry."""
        if attempt >= self.times or response.status_code not in self.statuses:
            return None
        requested = retry_after(response)
        seconds = _FIRST_S * 2**attempt if requested is None else requested
        if seconds > self.longest_s:
            return None
        return seconds * random.uniform(1, 1 + _SPREAD)  # noqa: S311  not a secret


WHEN_BUSY = Retries()
NEVER = Retries(times=0)


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of `Retry-After`, a number or a date; None if it is missing or unreadable."""
    header = response.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
