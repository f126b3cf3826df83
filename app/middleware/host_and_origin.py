"""Who may call: where the service listens, the Host allow-list, the Origin rule.

Keys are judged in `app.middleware.authentication`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.keys import Keys
from app.auth.scopes import PROBES
from app.errors import HeadTooLarge, HostNotAllowed, OriginNotAllowed, VestibuleError, error_response
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

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::\d*)?", re.IGNORECASE)


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
    """Pure ASGI. Answers 403 to a foreign Host, to several, and to a request that changes or computes something where
    a foreign page sends it; 431 to too large a head. Health probes may name any Host.

    `computes`: whether a request is for a route that computes, which a GET may be, too.
    """

    def __init__(self, app: ASGIApp, settings: Settings, computes: Callable[[Scope], bool]):
        self.app = app
        self._computes = computes
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
        reading = scope["method"] in _READING
        if reading and scope["path"] in PROBES:
            return None
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _hostname(hosts[0]) not in self._hosts:
            return HostNotAllowed("set VESTIBULE_ALLOWED_HOSTS to the names this service is reached by")
        if not self._is_foreign(headers) or (reading and not self._computes(scope)):
            return None
        return OriginNotAllowed("set VESTIBULE_ALLOWED_ORIGINS to the pages that may call this service")

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether a page sent this that is neither the service's own nor one of the allowed origins."""
        origin = headers.get("origin")
        if origin in self._origins:
            return False
        # Browsers send these headers by themselves and pages cannot change them; other clients send neither. With a GET
        # they send no Origin, and Sec-Fetch-Site only to loopback and by HTTPS; elsewhere a Referer, unless the page
        # tells them not to.
        if origin is None and "sec-fetch-site" not in headers and (referer := headers.get("referer")):
            scheme, _, rest = referer.partition("://")
            origin = f"{scheme}://{rest.partition('/')[0]}"
            if origin in self._origins:
                return False
        elsewhere = origin is not None and origin.partition("://")[2].lower() != headers["host"].lower()
        return elsewhere or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _hostname(host: str) -> str | None:
    """`[::1]:8000` -> `[::1]`, `Example.org:80` -> `example.org`; None for what is no host with an optional port."""
    found = _HOST.fullmatch(host)
    return found.group(1).lower() if found else None
