"""Which key opens what: each route states one scope where it is declared, or stands among those that are open to all.

A route states it by its dependencies, because FastAPI writes those into the OpenAPI document; they refuse nobody. That
is done by `Gate`, before anything of the body is read, and from the table that is made here of all routes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from re import Pattern

from fastapi import FastAPI, Security
from fastapi.params import Security as Stated
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import HTTPBearer
from starlette.types import Scope as Asgi

from app.auth.keys import PREFIX, SCOPES, Scope


class _Stated(HTTPBearer):
    async def __call__(self) -> None:  # type: ignore[override]  # nothing of the request is looked at here
        """Refuse nobody."""


BEARER = _Stated(
    auto_error=False,
    scheme_name="key",
    bearerFormat=f"{PREFIX}...",
    description="A key of `vestibule keys create`. A service that never had one is open to whoever reaches it.",
)

# Security's argument has OAuth's name; since OpenAPI 3.1 these are the roles that a key must have.
INFER: Sequence[Stated] = (Security(BEARER, scopes=["infer"]),)
ENROL: Sequence[Stated] = (Security(BEARER, scopes=["enrol"]),)
ADMIN: Sequence[Stated] = (Security(BEARER, scopes=["admin"]),)

# Probes need no key, and may name any Host: a kubelet names the pod's address, HTTP/1.0 none.
PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
# What is answered without a key: whether the service is up, and pages that hold nothing of anybody's.
OPEN = PROBES | frozenset(
    {
        "/",
        "/web/{name:path}",
        "/docs",
        "/static-offline-docs",
        "/openapi.json",
    }
)


@dataclass(frozen=True, eq=False)
class Guarded:
    """A route, and the scope that a key must have for it; None: none is needed. `methods`: None for all."""

    route: RouteContext
    path: Pattern[str]
    methods: Collection[str] | None
    scope: Scope | None


class Unguarded(Exception):
    """A route states no scope, or several; or one although it is open."""


class Routes:
    """Every route of an application, found by what a request asks for.

    Raises:
        Unguarded.
    """

    def __init__(self, app: FastAPI):
        self.all = [Guarded(one, one.path_regex, one.methods, _scope(one)) for one in iter_route_contexts(app.routes)]
        # Most requests are for a path without parameters, and there are dozens of routes.
        plain = [(method, one.route.path or "") for one in self.all for method in one.methods or ()]
        self._plain = {(method, path): self._first(method, path) for method, path in plain if "{" not in path}

    def find(self, scope: Asgi) -> Guarded | None:
        """The route that answers this, the first that does; None for a path or a method that no route has."""
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        return self._plain.get((method, path)) or self._first(method, path)

    def _first(self, method: str, path: str) -> Guarded | None:
        fitting = (one for one in self.all if one.methods is None or method in one.methods)
        return next((one for one in fitting if one.path.match(path)), None)


def _scope(route: RouteContext) -> Scope | None:
    stated = [
        scope
        for dependency in getattr(route, "dependencies", ())
        if isinstance(dependency, Stated) and dependency.dependency is BEARER
        for scope in SCOPES
        if scope in (dependency.scopes or ())
    ]
    if len(stated) != (route.path not in OPEN):
        raise Unguarded(f"{route.path} must state one scope, or be open and state none; it states {stated}")
    return stated[0] if stated else None
