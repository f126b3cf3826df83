"""The scope that an API key needs for each route. A route declares exactly one scope, or its path is in OPEN_PATHS.

Scopes are declared as FastAPI dependencies because those appear in the OpenAPI document. The dependencies themselves
check nothing: `Authentication` does, before any of the body is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Security
from fastapi.params import Security as SecurityDependency
from fastapi.routing import RouteContext
from fastapi.security import HTTPBearer

from app.auth.keys import PREFIX, SCOPES, Scope


class _DeclaredBearer(HTTPBearer):
    async def __call__(self) -> None:  # type: ignore[override]  # takes no request, so FastAPI need not pass it
        """Accept every request."""


BEARER = _DeclaredBearer(
    auto_error=False,
    scheme_name="key",
    bearerFormat=f"{PREFIX}...",
    description="A key of `vestibule keys create`. Before the first key is created, no key is needed.",
)

# Security's argument has OAuth's name; since OpenAPI 3.1 these are the roles that a key must have.
INFER: Sequence[SecurityDependency] = (Security(BEARER, scopes=["infer"]),)
ENROL: Sequence[SecurityDependency] = (Security(BEARER, scopes=["enrol"]),)
OBSERVE: Sequence[SecurityDependency] = (Security(BEARER, scopes=["observe"]),)
REVIEW: Sequence[SecurityDependency] = (Security(BEARER, scopes=["review"]),)
ADMIN: Sequence[SecurityDependency] = (Security(BEARER, scopes=["admin"]),)

# Probes need no key and may send any Host: a kubelet sends the pod's address, an HTTP/1.0 client sends none.
PROBES = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
# Answered without a key: health, and pages without any user's data.
OPEN_PATHS = PROBES | frozenset(
    {
        "/",
        "/web/{name:path}",
        "/docs",
        "/static-offline-docs",
        "/openapi.json",
    }
)


class ScopeDeclarationError(Exception):
    """A route declares no scope or several, or declares one although its path is open."""


def required_scope(route: RouteContext) -> Scope | None:
    """Return the scope that a key needs for this route; None if no key is needed.

    Raises:
        ScopeDeclarationError: if the route does not declare exactly one scope, or is open and declares one.
    """
    declared = [
        scope
        for dependency in getattr(route, "dependencies", ())
        if isinstance(dependency, SecurityDependency) and dependency.dependency is BEARER
        for scope in SCOPES
        if scope in (dependency.scopes or ())
    ]
    if len(declared) != (route.path not in OPEN_PATHS):
        raise ScopeDeclarationError(
            f"{route.path} must declare one scope, or be open and declare none; it declares {declared}"
        )
    return declared[0] if declared else None
