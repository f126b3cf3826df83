"""A bounded number of requests that compute something; one more is refused before anything of it is looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Overloaded, error_response
from app.metrics import Metrics
from app.patience import Arrival
from app.scopes import Routes

E = TypeVar("E", bound=Callable[..., Any])

_MARK = "takes_a_place"
CROWDED_TURN_S = 0.0002


def admitted(endpoint: E) -> E:
    """Decorates what answers requests that take a place. A dependency would do, at ten times the cost of a refusal."""
    setattr(endpoint, _MARK, True)
    return endpoint


class Places:
    """How many there are.

    Where more comes than can be answered, the event loop always has something to do, and threads that decode and
    compute would wait 5 ms for each turn of theirs: while requests are refused it gives way sooner, which at other
    times costs more than it is worth.
    """

    def __init__(self, places: int, metrics: Metrics):
        self._free = self._all = places
        self._usual_turn_s: float | None = None
        self._metrics = metrics
        self._arriving: dict[Arrival, None] = {}

    def enter(self, arrival: Arrival | None = None) -> None:
        """Take a place; where there is none, that of a body which comes too slowly, whose request is over then.

        Raises:
            Overloaded: there is none of these either.
        """
        if self._free <= 0:
            slow = next((one for one in self._arriving if one.is_slow), None)
            if slow is None:
                self._metrics.shed.labels("admission", "").inc()
                self._give_way()
                raise Overloaded("as many requests as fit are under way", {"Retry-After": "1"})
            self._metrics.shed.labels("slow-body", "").inc()
            del self._arriving[slow]
            slow.give_way()
        if arrival is not None:
            self._arriving[arrival] = None
        self._free -= 1
        self._metrics.in_flight.inc()

    def leave(self, arrival: Arrival | None = None) -> None:
        """Give the place back."""
        if arrival is not None:
            self._arriving.pop(arrival, None)
        self._free += 1
        self._metrics.in_flight.dec()
        if self._usual_turn_s is not None and self._free > self._all / 2:
            sys.setswitchinterval(self._usual_turn_s)
            self._usual_turn_s = None

    def _give_way(self) -> None:
        if self._usual_turn_s is None:
            self._usual_turn_s = sys.getswitchinterval()
            sys.setswitchinterval(CROWDED_TURN_S)


class Admission:
    """Pure ASGI. Answers 429 where all places are taken; whose body is slow is told by `Patience`, before it."""

    def __init__(self, app: ASGIApp, places: Places, routes: Routes):
        self.app = app
        self._places = places
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it has a place, or needs none."""
        found = self._routes.find(scope) if scope["type"] == "http" else None
        if found is None or not getattr(found.route.endpoint, _MARK, False):
            await self.app(scope, receive, send)
            return
        arrival: Arrival | None = scope["state"].get("arrival")
        try:
            self._places.enter(arrival)
        except Overloaded as error:
            scope["route"] = found.route  # so that the refusal is counted as this route's
            await error_response(scope["path"], error)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self._places.leave(arrival)
