"""The owner of a task: thread pools divide their time fairly between API keys, and between the requests of a key."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

# Seconds. The work of a request that has used more thread time than this counts as long.
LONG_S = 0.25


@dataclass(eq=False)
class Owner:
    """The request for which a thread works.

    `caller`: the id of its API key, None while the service has no keys. `busy_s`: thread time used so far, in seconds.
    """

    caller: str | None
    busy_s: float = 0.0


OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)
