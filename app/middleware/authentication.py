"""Who may do what: API keys, their scopes and shares, judged by the headers before anything of the body is read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.keys import Key, Keys
from app.auth.rate_limit import Share
from app.auth.scopes import Routes
from app.errors import RateLimited, ScopeMissing, Unauthorized, VestibuleError, error_response
from app.observability.metrics import Metrics
from app.settings import Settings


class Gate:
    """Pure ASGI. Everything is open while there never was a key, unless the settings ask for keys all the same.

    From then on what is not said to be open needs a key, a path that no route has included. `scope["state"]["caller"]`
    is the key's id, or None. Shares are counted in this process: each of several gives a key its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        routes: Routes,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.app = app
        self._keys = keys
        self._routes = routes
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._shares: dict[str, Share] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            key = self._admitted(scope)
            share = self._taken(key) if key else None
        except VestibuleError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = key.id if key else None
        if share is None:
            await self.app(scope, receive, send)
            return
        share.begin()
        try:
            await self.app(scope, receive, send)
        finally:
            share.end()

    def _admitted(self, scope: Scope) -> Key | None:
        """The key that opens this; None where none is needed.

        Raises:
            Unauthorized, ScopeMissing.
        """
        if not (self._keys.known() or self._settings.require_keys):
            return None
        found = self._routes.find(scope)
        if found is not None:
            if found.scope is None:
                return None
            scope["route"] = found.route  # so that a refusal is counted as this route's
        secret = _bearer(scope)
        if secret is None:
            raise Unauthorized("send Authorization: Bearer <key>", {"WWW-Authenticate": "Bearer"})
        key = self._keys.holder(secret)
        if key is None:
            told = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Unauthorized("no key is like this, or it holds no longer", told)
        if found is not None and found.scope not in key.scopes:
            told = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{found.scope}"'}
            raise ScopeMissing(f"this takes a key with the scope {found.scope}", told)
        return key

    def _taken(self, key: Key) -> Share:
        """The key's share, of which this request is a part from now on.

        Raises:
            RateLimited.
        """
        share = self._shares.get(key.id)
        if share is None:
            per_minute = key.rate_per_minute or self._settings.rate_per_minute
            share = self._shares[key.id] = Share(per_minute, key.concurrency or self._settings.key_concurrency)
        if share.is_full:
            self._metrics.shed.labels("key-concurrency", "").inc()
            raise RateLimited(f"this key may have {share.at_once} requests under way", {"Retry-After": "1"})
        if wait := share.wait(self._clock()):
            self._metrics.shed.labels("key-rate", "").inc()
            told = {"Retry-After": str(math.ceil(wait))}
            raise RateLimited(f"this key may make {share.per_minute} requests a minute", told)
        return share


def _bearer(scope: Scope) -> str | None:
    """The key in `Authorization`; None where there is no such header, several of them, or another scheme."""
    sent = Headers(scope=scope).getlist("authorization")
    kind, _, secret = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    return secret.strip() if kind.lower() == "bearer" and secret.strip() else None
