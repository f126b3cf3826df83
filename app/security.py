"""Who may call: where the service listens, the Host allow-list, the Origin rule. Keys are judged in `app.gate`."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import HeadTooLarge, HostNotAllowed, OriginNotAllowed, VestibuleError, error_response
from app.keys import Keys
from app.settings import Settings, is_loopback

# What a page of an allowed origin may do: send a key and a body, and read what is told in header fields. No cookies.
_CROSS_ORIGIN: dict[str, Any] = {
    "allow_methods": ("GET", "POST", "PUT", "PATCH", "DELETE"),
    "allow_headers": ("authorization", "content-type", "if-none-match", "x-request-id"),
    "expose_headers": (
        "etag",
        "retry-after",
        "server-timing",
        "www-authenticate",
        "x-psnr",
        "x-psnr-before",
        "x-request-id",
        "x-seed",
    ),
}

_READING = ("GET", "HEAD", "OPTIONS")


class Exposed(Exception):
    """Whoever reaches the port could use the service."""


def refuse_exposure(settings: Settings, keys: Keys) -> None:
    """See that where the service is to listen only those can use it who may.

    Raises:
        Exposed.
    """
    if is_loopback(settings.host) or settings.allow_public or settings.require_keys or keys.known():
        return
    raise Exposed(
        f"refusing to listen on {settings.host}: without API keys anybody who reaches this port could use it; "
        "make one (vestibule keys create), keep 127.0.0.1, or set VESTIBULE_ALLOW_PUBLIC=true where something in front "
        "of it keeps strangers out"
    )


def readable_elsewhere(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The same, with answers that pages of the allowed origins may read; where there are none, just the same."""
    if not settings.allowed_origins:
        return app
    return CORSMiddleware(app, allow_origins=settings.allowed_origins, **_CROSS_ORIGIN)


class Door:
    """Pure ASGI. Answers 403 to a foreign Host, and to a state-changing request that a foreign page sends; 431 to too
    large a head.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(settings.allowed_origins)
        self._max_head_bytes = settings.max_head_bytes
        self._max_headers = settings.max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is not None:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> VestibuleError | None:
        sent = scope["headers"]
        size = sum(len(name) + len(value) for name, value in sent) + len(scope["path"]) + len(scope["query_string"])
        if len(sent) > self._max_headers or size > self._max_head_bytes:
            return HeadTooLarge(f"a request may have {self._max_headers} fields, {self._max_head_bytes} bytes in all")
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(host) not in self._hosts:
            return HostNotAllowed("set VESTIBULE_ALLOWED_HOSTS to the names this service is reached by")
        if scope["method"] in _READING:
            return None
        origin = headers.get("origin")
        if origin in self._origins:
            return None
        # Browsers send both headers by themselves and pages cannot change them; other clients send neither.
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return OriginNotAllowed("set VESTIBULE_ALLOWED_ORIGINS to the pages that may call this service")
        return None


def _hostname(host: str) -> str:
    """`[::1]:8000` -> `[::1]`, `example.org:80` -> `example.org`."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
