"""API keys: check key, scope and rate limits from the headers, before any of the body is read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.keys import ApiKeys
from app.auth.rate_limit import KeyUsage
from app.errors import RateLimited, ScopeMissing, StorageUnavailable, Unauthorized, VestibuleError, error_response
from app.middleware.routing import ProtectedRoute
from app.observability.metrics import Metrics
from app.settings import Settings
from index.errors import UnavailableError
from index.protocol import Quotas
from index.types import ApiKey


class Authentication:
    """ASGI middleware. Respond 401, 403 or 429 unless the request's key permits it.

    Every request is permitted while no key was ever created, unless the settings require keys. After that every path
    needs a key, unless its route is open; so does a path without a route. `scope["state"]["caller"]` is the key's id,
    or None. Usage is counted per process, requests per minute by `quotas` where it is given.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        quotas: Quotas | None = None,
    ):
        self.app = app
        self._keys = keys
        self._settings = settings
        self._metrics = metrics
        self._quotas = quotas
        self._clock = clock
        self._usage: dict[str, KeyUsage] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        try:
            key = self._authorized_key(scope)
            usage = self._counted_usage(key) if key else None
        except VestibuleError as error:
            await error_response(scope["path"], error)(scope, receive, send)
            return
        scope["state"]["caller"] = key.id if key else None
        with usage or nullcontext():
            await self.app(scope, receive, send)

    def _authorized_key(self, scope: Scope) -> ApiKey | None:
        """Return the key that permits this request; None where no key is needed.

        Raises:
            Unauthorized, ScopeMissing. StorageUnavailable: it is not known which keys there are.
        """
        route: ProtectedRoute | None = scope["state"]["route"]
        if route is not None and route.scope is None:
            return None
        try:
            return self._required_key(scope, route)
        except UnavailableError as error:
            raise StorageUnavailable(str(error), {"Retry-After": "5"}) from error

    def _required_key(self, scope: Scope, route: ProtectedRoute | None) -> ApiKey | None:
        if not (self._keys.by_hash() or self._settings.require_keys):
            return None
        if route is not None:
            scope["route"] = route.route  # the route under which the metrics count a refusal
        secret = _bearer(scope)
        if secret is None:
            raise Unauthorized("send Authorization: Bearer <key>", {"WWW-Authenticate": "Bearer"})
        key = self._keys.find_valid(secret)
        if key is None:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Unauthorized("the key is unknown, revoked or expired", headers)
        if route is not None and route.scope not in key.scopes:
            headers = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{route.scope}"'}
            raise ScopeMissing(f"this needs a key with the scope {route.scope}", headers)
        return key

    def _counted_usage(self, key: ApiKey) -> KeyUsage:
        """Count the request in this minute's usage of the key and return that usage.

        Raises:
            RateLimited: if the key has too many requests in progress, or in the last minute.
        """
        usage = self._usage.get(key.id)
        if usage is None:
            per_minute = key.rate_per_minute or self._settings.rate_per_minute
            quota = self._quotas.quota(key.id, per_minute) if self._quotas and per_minute else None
            concurrency = key.concurrency or self._settings.key_concurrency
            usage = self._usage[key.id] = KeyUsage(per_minute, concurrency, quota)
        if usage.is_full:
            self._metrics.shed.labels("key-concurrency", "").inc()
            raise RateLimited(f"this key may have {usage.concurrency} requests in progress", {"Retry-After": "1"})
        if wait_s := usage.count(self._clock()):
            self._metrics.shed.labels("key-rate", "").inc()
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise RateLimited(f"this key may make {usage.per_minute} requests a minute", headers)
        return usage


def _bearer(scope: Scope) -> str | None:
    """Return the secret in `Authorization`; None if the header is missing, repeated or of another scheme."""
    values = Headers(scope=scope).getlist("authorization")
    scheme, _, secret = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None
