"""Whose work a piece of work is, so that thread pools can be fair between requests and API keys."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

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
