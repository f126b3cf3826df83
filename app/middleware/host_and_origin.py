"""Host allow-list, Origin rule, and the address of a request: HEAD, and the sub-path of a reverse proxy.

API keys are checked in `app.middleware.authentication`.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.keys import ApiKeys
from app.auth.scopes import PROBES
from app.errors import HeadTooLarge, HostNotAllowed, OriginNotAllowed, VestibuleError, error_response
from app.settings import Settings, is_loopback

# A page of an allowed origin may send a key and a body, and read these response headers. No cookies.
_CORS: dict[str, Any] = {
    "allow_methods": ("GET", "POST", "PUT", "PATCH", "DELETE"),
    "allow_headers": ("authorization", "content-type", "idempotency-key", "if-none-match", "x-request-id"),
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

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::\d*)?", re.IGNORECASE)


class ExposedError(Exception):
    """The service would be open to everyone who can reach its port."""


def refuse_exposure(settings: Settings, keys: ApiKeys) -> None:
    """Check that the service listens on loopback only, requires keys, or is explicitly allowed to be public.

    Raises:
        ExposedError: if none of the three is the case.
    """
    if is_loopback(settings.host) or settings.allow_public or settings.require_keys or keys.by_hash():
        return
    raise ExposedError(
        f"refusing to listen on {settings.host}: without API keys everyone who reaches this port could use it; "
        "create a key (vestibule keys create), keep 127.0.0.1, or set VESTIBULE_ALLOW_PUBLIC=true if something in "
        "front of the service restricts access"
    )


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return `app` with CORS headers for the allowed origins; `app` itself if there are none."""
    if not settings.allowed_origins:
        return app
    return CORSMiddleware(app, allow_origins=settings.allowed_origins, **_CORS)


def cors_headers(settings: Settings) -> dict[str, list[tuple[bytes, bytes]]]:
    """Return the header fields that `with_cors` adds to responses, for each allowed origin."""
    if not settings.allowed_origins:
        return {}
    cors = CORSMiddleware(Response(), allow_origins=settings.allowed_origins, **_CORS)
    fields = {}
    for origin in settings.allowed_origins:
        headers = MutableHeaders(cors.simple_headers)
        cors.allow_explicit_origin(headers, origin)
        fields[origin] = headers.raw
    return fields


class HostAndOrigin:
    """ASGI middleware. Respond 403 to a wrong Host or a foreign Origin, and 431 to headers that are too large.

    A page of another origin may not send a request that changes something or is costly, as some GETs are (see
    `routing.costly`).
    Health probes may send any Host.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(settings.allowed_origins)
        self._max_head_bytes = settings.max_head_bytes
        self._max_headers = settings.max_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        error = self._error(scope)
        if error is not None:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _error(self, scope: Scope) -> VestibuleError | None:
        fields = scope["headers"]
        size = sum(len(name) + len(value) for name, value in fields) + len(scope["path"]) + len(scope["query_string"])
        if len(fields) > self._max_headers or size > self._max_head_bytes:
            return HeadTooLarge(f"a request may have {self._max_headers} fields, {self._max_head_bytes} bytes in all")
        is_safe = scope["method"] in _SAFE_METHODS
        if is_safe and scope["path"] in PROBES:
            return None
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _hostname(hosts[0]) not in self._hosts:
            return HostNotAllowed("set VESTIBULE_ALLOWED_HOSTS to the host names of this service")
        route = scope["state"]["route"]
        is_costly = route is not None and route.is_costly
        if not self._is_foreign(headers) or (is_safe and not is_costly):
            return None
        return OriginNotAllowed("set VESTIBULE_ALLOWED_ORIGINS to the origins that may call this service")

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether the request comes from a page that is neither the service's own nor of an allowed origin."""
        origin = headers.get("origin")
        if origin in self._origins:
            return False
        # Browsers send these headers themselves and pages cannot change them; other clients send neither. With a GET
        # browsers send no Origin, and Sec-Fetch-Site only to loopback and over HTTPS; elsewhere they send a Referer,
        # unless the page forbids it.
        if origin is None and "sec-fetch-site" not in headers and (referer := headers.get("referer")):
            scheme, _, rest = referer.partition("://")
            origin = f"{scheme}://{rest.partition('/')[0]}"
            if origin in self._origins:
                return False
        differs = origin is not None and origin.partition("://")[2].lower() != headers["host"].lower()
        return differs or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _hostname(host: str) -> str | None:
    """`[::1]:8000` -> `[::1]`, `Example.org:80` -> `example.org`; None if it is no host with an optional port."""
    match = _HOST.fullmatch(host)
    return match.group(1).lower() if match else None


def without_prefix(path: str, root_path: str) -> str:
    """Return the path without `root_path`, unchanged if it is not below it."""
    return path[len(root_path) :] if root_path and path.startswith(f"{root_path}/") else path


class SubPath:
    """ASGI middleware. Remove `root_path` from the path of a request, and add it to the target of a redirect.

    A proxy may remove the prefix itself: a path without it is passed on unchanged. Redirects name no host, because only
    the proxy knows the host and scheme that the client used. This is the outermost middleware: startup and shutdown
    bypass all others, which see requests only.
    """

    def __init__(self, app: ASGIApp, root_path: str):
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await scope["app"].router(scope, receive, send)
            return
        root_path, path = self._root_path, scope["path"]
        if root_path and path == root_path:  # the console's links are relative to its folder
            await RedirectResponse(f"{root_path}/")(scope, receive, send)
            return
        if (shorter := without_prefix(path, root_path)) != path:
            scope = {**scope, "path": shorter}

        async def send_prefixed(message: Message) -> None:
            if message["type"] == "http.response.start" and "location" in (headers := MutableHeaders(scope=message)):
                target = urlsplit(headers["location"])._replace(scheme="", netloc="")
                headers["location"] = f"{self._root_path}{target.geturl()}"
            await send(message)

        await self.app(scope, receive, send_prefixed)


class HeadAsGet:
    """ASGI middleware. Respond to HEAD as to GET, without the body: every path that has GET has HEAD (RFC 9110).

    The response is complete with the first part of the body, since a stream of events would go on for minutes; the
    application then gets a disconnect.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        is_complete = False

        async def send_without_body(message: Message) -> None:
            nonlocal is_complete
            if is_complete:
                return
            if message["type"] == "http.response.body":
                is_complete = True
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)
