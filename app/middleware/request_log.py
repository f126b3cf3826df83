"""What is noted of every request: its id, its times, one log line, its metrics; and the last net for errors."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import MutableMapping
from functools import cache
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.scopes import PROBES
from app.errors import VestibuleError, error_response
from app.observability import timings
from app.observability.metrics import Metrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SUBJECT = re.compile(r"(?<=/subjects/)[^/]+")
# What is noted of a request whose client did not wait for an answer, as nginx has it.
CLIENT_LEFT = 499
# What holds for every answer that does not say otherwise: most are about somebody's face, and none is for the page of
# another site to show or to frame.
UNLESS_SAID = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_QUIET = PROBES | {"/metrics"}

log = structlog.get_logger()


class Observe:
    """Pure ASGI, outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        # To look for a label's figure takes as long as to count.
        self._requests, self._latency = cache(metrics.requests.labels), cache(metrics.latency.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; give its answer an id and times; write the line when it is over."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Since its head was whole, where the protocol has noted that: others may have had their turns meanwhile.
        started: float = scope.setdefault("state", {}).get("began") or time.perf_counter()
        stages = timings.start()
        known_as = request_id(scope)
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = message.get("headers", ())
                names = {name.lower() for name, _ in said}
                message["headers"] = [
                    *said,
                    (b"x-request-id", known_as.encode()),
                    (b"server-timing", stages.header(time.perf_counter() - started).encode()),
                    *(header for header in UNLESS_SAID if header[0] not in names),
                ]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=known_as):
            try:
                await self.app(scope, receive, observed)
            except Exception:
                log.exception("unexpected_error", path=_shown(scope["path"]))
                if not status:
                    await error_response(scope["path"], VestibuleError())(scope, receive, observed)
            finally:
                self._note(scope, status or CLIENT_LEFT, time.perf_counter() - started)

    def _note(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        # The route's template, never the path: a label's values must not grow with what clients think of.
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        self._requests(route, scope["method"] if route != "unmatched" else "any", status).inc()
        self._latency(route).observe(seconds)
        if scope["path"] not in _QUIET:
            path = _shown(scope["path"])
            log.info("request", method=scope["method"], path=path, status=status, ms=round(seconds * 1000, 2))


def _shown(path: str) -> str:
    """The path without the subject's id in it, which is the caller's and may be a name: logs are kept."""
    return _SUBJECT.sub("{subject}", path)


def request_id(scope: Scope) -> str:
    """Of a request: the client's own id where it is harmless, else a new one."""
    sent = Headers(scope=scope).get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
