"""Record each request: its id, timings, one log line and metrics; respond 500 to unexpected exceptions."""

from __future__ import annotations

import asyncio
import random
import re
import time
from functools import cache
from typing import NamedTuple

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.scopes import PROBES
from app.errors import VestibuleError, error_response
from app.observability import timings
from app.observability.metrics import Metrics

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SUBJECT = re.compile(r"(?<=/subjects/)[^/]+")
# The status recorded for a client that disconnected before the response, as in nginx.
CLIENT_CLOSED_REQUEST = 499
# Headers of every response that does not set them itself: most responses are about a person's face, and no page of
# another site may show or frame one.
DEFAULT_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_UNLOGGED_PATHS = PROBES | {"/metrics"}

log = structlog.get_logger()


class _Finished(NamedTuple):
    """A request that is finished. `seconds`: from its head to the end of its response."""

    identifier: str
    method: str
    path: str
    route: str
    status: int
    seconds: float


class RequestLog:
    """ASGI middleware. Time and log a request, and add the request id and the default headers to its response.

    The requests that finish in one iteration of the event loop are counted and logged together at its end, when the
    code for that is in the processor's cache: one after the other that took a tenth of the time of a small request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        # Cached, because looking up a label takes as long as counting.
        self._requests, self._latency = cache(metrics.requests.labels), cache(metrics.latency.labels)
        self._finished: list[_Finished] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; `scope["state"]["timings"]` records its stages."""
        # "began": when the head was complete, set by our HTTP protocol. The event loop may have run other tasks since.
        started: float = scope["state"].get("began") or time.perf_counter()
        stages = timings.start()
        identifier = request_id(scope)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.get("headers", ())
                names = {name.lower() for name, _ in headers}
                message["headers"] = [
                    *headers,
                    (b"x-request-id", identifier.encode()),
                    (b"server-timing", timings.header(stages, time.perf_counter() - started).encode()),
                    *(header for header in DEFAULT_HEADERS if header[0] not in names),
                ]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=identifier):
            try:
                await self.app(scope, receive, send_with_headers)
            except Exception:
                log.exception("unexpected_error", path=_loggable(scope["path"]))
                if not status:
                    await error_response(scope["path"], VestibuleError())(scope, receive, send_with_headers)
            finally:
                if not self._finished:
                    asyncio.get_running_loop().call_soon(self._record)
                # The route's template, not the path, so that clients cannot create label values.
                route = getattr(scope.get("route"), "path", None) or "unmatched"
                status, seconds = status or CLIENT_CLOSED_REQUEST, time.perf_counter() - started
                self._finished.append(_Finished(identifier, scope["method"], scope["path"], route, status, seconds))

    def _record(self) -> None:
        finished, self._finished = self._finished, []
        for each in finished:
            self._requests(each.route, each.method if each.route != "unmatched" else "any", each.status).inc()
            self._latency(each.route).observe(each.seconds)
            if each.path not in _UNLOGGED_PATHS:
                log.info(
                    "request",
                    request_id=each.identifier,
                    method=each.method,
                    path=_loggable(each.path),
                    status=each.status,
                    ms=round(each.seconds * 1000, 2),
                )


def _loggable(path: str) -> str:
    """Return the path without the subject's id, which may be a person's name."""
    return _SUBJECT.sub("{subject}", path)


def request_id(scope: Scope) -> str:
    """Return the client's `x-request-id` if it is 1 to 64 letters, digits and ._-, else a new id."""
    value: bytes = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return value.decode() if _REQUEST_ID.fullmatch(value) else f"{random.getrandbits(128):032x}"
