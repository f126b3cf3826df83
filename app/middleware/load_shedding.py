"""Bound the number of requests that compute at once, and refuse further ones at the lowest possible cost.

There are two middleware: a request is refused before any other work, but counted only after authentication. Otherwise
a request without a key could use capacity, or abort a slow request that has a key.
"""

from __future__ import annotations

import asyncio

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.fair_share import OWNER, Owner
from app.errors import Overloaded, error_response
from app.middleware.host_and_origin import with_cors
from app.middleware.request_body import BodyArrival
from app.middleware.request_log import DEFAULT_HEADERS, request_id
from app.middleware.routing import ProtectedRoute, RouteTable
from app.observability.metrics import Metrics
from app.settings import Settings

# Refusals are logged as a count, one line per interval: a line for each would cost more than the refusal.
LOG_INTERVAL_S = 1.0

log = structlog.get_logger()


class Capacity:
    """Counts the requests that compute something, of which `limit` may be in progress."""

    def __init__(self, limit: int, metrics: Metrics):
        self._free = limit
        self._metrics = metrics
        self._arriving: dict[BodyArrival, None] = {}

    @property
    def is_exhausted(self) -> bool:
        """Whether the limit is reached and no request in progress has a body that arrives too slowly."""
        return self._free <= 0 and self._slow_body() is None

    def acquire(self, arrival: BodyArrival) -> None:
        """Count a request as in progress. If the limit is reached, abort another whose body arrives too slowly."""
        if self._free <= 0 and (slow := self._slow_body()) is not None:
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
        for arrival in [*self._arriving]:
            if arrival.is_complete:  # removed, so that later calls skip it
                del self._arriving[arrival]
            elif arrival.is_slow:
                return arrival
        return None


class LoadShedding:
    """ASGI middleware, outside all others but `SubPath` and `HeadAsGet`. Respond 429 if the capacity is exhausted.

    Nothing is awaited between this middleware and `CapacityGuard`, so the capacity is still free when the guard runs.
    """

    def __init__(self, app: ASGIApp, capacity: Capacity, routes: RouteTable, settings: Settings, metrics: Metrics):
        self.app = app
        self._capacity = capacity
        self._routes = routes
        self._metrics = metrics
        self._shed = metrics.shed.labels("admission", "")
        self._responses = {route: _response(route) for route in routes.all if route.counts_toward_capacity}
        self._refuse = with_cors(self._send_refusal, settings)
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it; `scope["state"]["route"]` is its route, or None."""
        route = self._routes.find(scope)
        scope.setdefault("state", {})["route"] = route
        is_refused = route is not None and route.counts_toward_capacity and self._capacity.is_exhausted
        await (self._refuse if is_refused else self.app)(scope, receive, send)

    async def _send_refusal(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: ProtectedRoute = scope["state"]["route"]
        self._shed.inc()
        self._metrics.requests.labels(route.route.path, scope["method"], Overloaded.status).inc()
        if not self._refused:
            asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_refusals)
        self._refused += 1
        headers, body = self._responses[route]
        headers = [*headers, (b"x-request-id", request_id(scope).encode())]
        await send({"type": "http.response.start", "status": Overloaded.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _log_refusals(self) -> None:
        log.warning("overloaded", refused=self._refused, seconds=LOG_INTERVAL_S)
        self._refused = 0


def _response(route: ProtectedRoute) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of a refusal, in the format that clients of this route read."""
    error = Overloaded("the limit of requests in progress is reached", {"Retry-After": "1"})
    response = error_response(route.route.path or "", error)
    return [*response.raw_headers, *DEFAULT_HEADERS], bytes(response.body)


class CapacityGuard:
    """ASGI middleware. Hold capacity for a request until its response is sent, and make it the owner of its work."""

    def __init__(self, app: ASGIApp, capacity: Capacity):
        self.app = app
        self._capacity = capacity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        route = scope["state"]["route"]
        if route is None or not route.counts_toward_capacity:
            await self.app(scope, receive, send)
            return
        arrival: BodyArrival = scope["state"]["arrival"]
        OWNER.set(Owner(scope["state"].get("caller")))  # in the request's own task
        self._capacity.acquire(arrival)
        try:
            await self.app(scope, receive, send)
        finally:
            self._capacity.release(arrival)
