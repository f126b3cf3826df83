"""Bound the number of requests that compute at once, and refuse further ones at the lowest possible cost.

`CapacityGuard` counts requests after authentication, so that a request without a key neither uses capacity nor aborts
a slow request that has a key. `LoadShedding` refuses requests before that: the HTTP protocol asks it as soon as a head
is complete, and writes the prepared response without starting the application, and without parsing a simple request.
On one core of an AMD EPYC that takes 20 µs, sockets included, and 31 µs with the parser (medians of 5 interleaved
rounds of 64 clients).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import cache

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.fair_share import OWNER, Owner
from app.errors import Overloaded, error_response
from app.middleware.host_and_origin import cors_headers, without_prefix
from app.middleware.request_body import BodyArrival
from app.middleware.request_log import DEFAULT_HEADERS, request_id
from app.middleware.routing import ProtectedRoute, RouteTable
from app.observability.metrics import Metrics
from app.settings import Settings

# Refusals are logged as a count, one line per interval: a line for each would cost more than the refusal.
LOG_INTERVAL_S = 1.0
# The least time between two searches for a body that arrives too slowly: one among 256 bodies takes as long as two
# refusals.
SLOW_BODY_INTERVAL_S = 0.05

# The default headers that a refusal has; it lacks the others, which concern pages.
KEPT_HEADERS = {b"cache-control", b"x-content-type-options"}

log = structlog.get_logger()


class Capacity:
    """Counts the requests that compute something, of which `limit` may be in progress."""

    def __init__(self, limit: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic):
        self._free = limit
        self._starting = 0
        self._metrics = metrics
        self._arriving: dict[BodyArrival, None] = {}
        self._clock = clock
        self._next_search = 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether the limit is reached and no request in progress has a body that arrives too slowly."""
        return self._free <= self._starting and self._slow_body() is None

    def reserve(self) -> None:
        """Count a request that is about to start as in progress, until its task runs.

        The event loop may read hundreds of heads before it runs the first of their tasks. It runs the end of the
        reservation just before the task, which calls `acquire` in its first step unless the request is refused.
        """
        self._starting += 1
        asyncio.get_running_loop().call_soon(self._end_reservation)

    def _end_reservation(self) -> None:
        self._starting -= 1

    def acquire(self, arrival: BodyArrival) -> None:
        """Count a request as in progress. If the limit is reached, abort another whose body arrives too slowly."""
        if self._free <= self._starting and (slow := self._slow_body()) is not None:
            self._metrics.shed.labels("slow-body", "").inc()
            del self._arriving[slow]
            slow.abort()
        self._arriving[arrival] = None
        self._free -= 1
        self._metrics.in_flight.inc()

    def release(self, arrival: BodyArrival) -> None:
        """Count a request as finished."""
        self._arriving.pop(arrival, None)
        self._free += 1
        self._metrics.in_flight.dec()

    def _slow_body(self) -> BodyArrival | None:
        if self._clock() < self._next_search:
            return None
        for arrival in [*self._arriving]:
            if arrival.is_complete:  # removed, so that later calls skip it
                del self._arriving[arrival]
            elif arrival.is_slow:
                return arrival
        self._next_search = self._clock() + SLOW_BODY_INTERVAL_S
        return None


class LoadShedding:
    """Decides which requests are refused before the application starts, and prepares the responses to them."""

    def __init__(self, capacity: Capacity, routes: RouteTable, settings: Settings, metrics: Metrics):
        self._capacity = capacity
        self._routes = routes
        self._root_path = settings.root_path
        self._metrics = metrics
        self._shed = metrics.shed.labels("admission", "")
        self._count = cache(metrics.requests.labels)
        self._responses = {
            route: (*_response(route), route.route.path) for route in routes.all if route.counts_toward_capacity
        }
        self._cors = {origin.encode(): _encoded(fields) for origin, fields in cors_headers(settings).items()}
        self._refused = 0

    @property
    def is_full(self) -> bool:
        """Whether a request that needs capacity would be refused now."""
        return self._capacity.is_exhausted

    def refusal(self, scope: Scope) -> tuple[bytes, bytes] | None:
        """Return the header fields, as encoded lines, and the body of the 429 for a request; None to start it.

        Capacity is reserved for a request that is started and needs some.
        """
        method, path = scope["method"], without_prefix(scope["path"], self._root_path)
        is_head = method == "HEAD"
        route = self._routes.find({"method": "GET" if is_head else method, "path": path})
        response = self._responses.get(route) if route is not None else None
        if route is None or response is None:
            return None
        if not self._capacity.is_exhausted:
            self._capacity.reserve()
            return None
        self._shed.inc()
        fields, body, template = response
        self._count(template, "GET" if is_head else method, Overloaded.status).inc()
        if not self._refused:
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_refusals)
        self._refused += 1
        fields += b"x-request-id: %b\r\n" % request_id(scope).encode()
        if self._cors:
            origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
            fields += self._cors.get(origin, b"")
        return fields, b"" if is_head else body

    def _log_refusals(self) -> None:
        log.warning("overloaded", refused=self._refused, seconds=LOG_INTERVAL_S)
        self._refused = 0


def _overloaded() -> Overloaded:
    return Overloaded("the limit of requests in progress is reached", {"Retry-After": "1"})


def _response(route: ProtectedRoute) -> tuple[bytes, bytes]:
    """Return header fields and body of a refusal, in the format that clients of this route read."""
    response = error_response(route.route.path or "", _overloaded())
    defaults = [header for header in DEFAULT_HEADERS if header[0] in KEPT_HEADERS]
    return _encoded([*response.raw_headers, *defaults]), bytes(response.body)


def _encoded(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


class CapacityGuard:
    """ASGI middleware. Hold capacity for a request until its response is sent, and make it the owner of its work.

    Respond 429 if the capacity is exhausted: it may be for a request that waited behind another of its connection, and
    for all requests under another server than ours.
    """

    def __init__(self, app: ASGIApp, capacity: Capacity, metrics: Metrics):
        self.app = app
        self._capacity = capacity
        self._shed = metrics.shed.labels("admission", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        route: ProtectedRoute | None = scope["state"]["route"]
        if route is None or not route.counts_toward_capacity:
            await self.app(scope, receive, send)
            return
        if self._capacity.is_exhausted:
            self._shed.inc()
            scope["route"] = route.route  # the route under which the metrics count a refusal
            await error_response(scope["path"], _overloaded())(scope, receive, send)
            return
        arrival: BodyArrival = scope["state"]["arrival"]
        OWNER.set(Owner(scope["state"].get("caller")))  # in the request's own task
        self._capacity.acquire(arrival)
        try:
            await self.app(scope, receive, send)
        finally:
            self._capacity.release(arrival)
