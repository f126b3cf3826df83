"""A bounded number of requests that compute something; one more is refused before anything else is done about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.fair_share import OWNER, Owner
from app.auth.scopes import Guarded, Routes
from app.errors import Overloaded, error_response
from app.middleware.body_timeout import Arrival
from app.middleware.host_and_origin import readable_elsewhere
from app.middleware.request_log import UNLESS_SAID, request_id
from app.observability.metrics import Metrics
from app.settings import Settings

E = TypeVar("E", bound=Callable[..., Any])

_MARK = "takes_a_place"
# How many were refused is logged so often, in one line: a line for each would cost more than to refuse it.
TOLD_EVERY_S = 1.0

log = structlog.get_logger()


def admitted(endpoint: E) -> E:
    """Decorates what answers requests that take a place. A dependency would do, at ten times the cost of a refusal."""
    setattr(endpoint, _MARK, True)
    return endpoint


class Places:
    """How many there are."""

    def __init__(self, places: int, metrics: Metrics):
        self._free = places
        self._metrics = metrics
        self._arriving: dict[Arrival, None] = {}

    @property
    def are_taken(self) -> bool:
        """Whether there is none, not even that of a body which comes too slowly."""
        return self._free <= 0 and self._slow() is None

    def enter(self, arrival: Arrival | None = None) -> None:
        """Take a place; where there is none, that of a body which comes too slowly, whose request is over then."""
        if self._free <= 0 and (slow := self._slow()) is not None:
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

    def _slow(self) -> Arrival | None:
        for one in [*self._arriving]:
            if one.is_whole:  # so each is looked at few times, however many are refused meanwhile
                del self._arriving[one]
            elif one.is_slow:
                return one
        return None


def takes_a_place(found: Guarded | None) -> bool:
    """Whether requests for this route do."""
    return found is not None and getattr(found.route.endpoint, _MARK, False)


class Refusal:
    """Pure ASGI, outermost, for what is refused must cost next to nothing. Answers 429 where all places are taken.

    Nothing is awaited between here and `Admission`, so what passes has its place.
    """

    def __init__(self, app: ASGIApp, places: Places, routes: Routes, settings: Settings, metrics: Metrics):
        self.app = app
        self._places = places
        self._routes = routes
        self._metrics = metrics
        self._shed = metrics.shed.labels("admission", "")
        self._answers = {one: _answer(one) for one in routes.all if takes_a_place(one)}
        self._refuse = readable_elsewhere(self._answered, settings)
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when there is a place for it, or it needs none."""
        if scope["type"] == "http" and self._places.are_taken and takes_a_place(self._routes.find(scope)):
            await self._refuse(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.find(scope)
        assert found is not None  # noqa: S101  it takes a place
        self._shed.inc()
        self._metrics.requests.labels(found.route.path, scope["method"], Overloaded.status).inc()
        if not self._refused:
            asyncio.get_running_loop().call_later(TOLD_EVERY_S, self._tell)
        self._refused += 1
        headers, body = self._answers[found]
        headers = [*headers, (b"x-request-id", request_id(scope).encode())]
        await send({"type": "http.response.start", "status": Overloaded.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _tell(self) -> None:
        log.warning("overloaded", refused=self._refused, seconds=TOLD_EVERY_S)
        self._refused = 0


def _answer(found: Guarded) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The header and the body of a refusal, in the form that clients of this route read."""
    error = Overloaded("as many requests as fit are under way", {"Retry-After": "1"})
    answer = error_response(found.route.path or "", error)
    return [*answer.raw_headers, *UNLESS_SAID], bytes(answer.body)


class Admission:
    """Pure ASGI. A request that takes a place has it until it is answered; whose body is slow is told by `Patience`."""

    def __init__(self, app: ASGIApp, places: Places, routes: Routes):
        self.app = app
        self._places = places
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or not takes_a_place(self._routes.find(scope)):
            await self.app(scope, receive, send)
            return
        arrival: Arrival | None = scope["state"].get("arrival")
        OWNER.set(Owner(scope["state"].get("caller")))  # in the request's own task
        self._places.enter(arrival)
        try:
            await self.app(scope, receive, send)
        finally:
            self._places.leave(arrival)
