"""The table of all routes, and the fast path: image endpoints called without FastAPI's dependency resolution.

`RouteLookup` finds each request's route and keeps it in `scope["state"]["route"]`, None if none matches.

The fast path is a second way to call an endpoint because routers, exit stacks, dependencies and parameters take about
half of the event loop's time for a small image. FastAPI still declares these routes and documents them. With FastAPI's
own dispatch LeNet-5 answers .86 of the requests/s (1 client) and .82 (64 clients); with a `route_class` that skips only
the dependencies, 1.00 and .94 (medians of 5 interleaved rounds, 2 cores of an AMD EPYC with AVX-512).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import RouteContext, iter_route_contexts
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.fair_share import LONG_S, OWNER
from app.auth.scopes import BEARER, required_scope
from app.errors import VestibuleError, error_response, invalid_parameters

# Number of parsed query strings cached for each route, and the maximum length of one in bytes.
CACHED_QUERIES, MAX_CACHED_BYTES = 256, 256

_CAPACITY_MARK, _COSTLY_MARK = "counts_toward_capacity", "is_costly"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
ReadQuery = Callable[[bytes], BaseModel]


def counts_toward_capacity(endpoint: Endpoint) -> Endpoint:
    """Decorate an endpoint whose requests `max_requests` limits. A dependency would cost ten times a refusal."""
    setattr(endpoint, _CAPACITY_MARK, True)
    return endpoint


def costly(endpoint: Endpoint) -> Endpoint:
    """Decorate the endpoint of a GET that computes for long, or holds a limited resource until the client disconnects.

    Pages of other sites may not request it (see `HostAndOrigin`), nor any that `counts_toward_capacity`.
    """
    setattr(endpoint, _COSTLY_MARK, True)
    return endpoint


class ProtectedRoute:
    """A route with the properties that the middleware needs.

    `path`: the pattern of its paths. `methods`: None for all. `scope`: the scope that a key needs, None where no key is
    needed. `is_costly`: see `costly`. `reads_own_body`: the endpoint reads the body in pieces; FastAPI would read it
    whole and parse it in the event loop.
    """

    def __init__(self, route: RouteContext):
        self.route = route
        self.path = route.path_regex
        self.methods: Collection[str] | None = route.methods
        self.scope = required_scope(route)
        self.counts_toward_capacity: bool = getattr(route.endpoint, _CAPACITY_MARK, False)
        self.is_costly: bool = self.counts_toward_capacity or getattr(route.endpoint, _COSTLY_MARK, False)
        # Such an endpoint describes its body to OpenAPI itself.
        self.reads_own_body = "requestBody" in (getattr(route, "openapi_extra", None) or {})


class RouteTable:
    """All routes of an application. Create it after the last route is registered.

    Raises:
        ScopeDeclarationError: see `required_scope`.
    """

    def __init__(self, app: FastAPI):
        self.all = [ProtectedRoute(route) for route in iter_route_contexts(app.routes)]
        # Most requests are for a path without parameters, and there are dozens of routes.
        plain = [(method, route.route.path or "") for route in self.all for method in route.methods or ()]
        self._plain = {(method, path): self._first(method, path) for method, path in plain if "{" not in path}

    def find(self, scope: Scope) -> ProtectedRoute | None:
        """Return the first route that matches the request's method and path; None if there is none."""
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        return self._plain.get((method, path)) or self._first(method, path)

    def _first(self, method: str, path: str) -> ProtectedRoute | None:
        candidates = (route for route in self.all if route.methods is None or method in route.methods)
        return next((route for route in candidates if route.path.match(path)), None)


class RouteLookup:
    """ASGI middleware. Find the route of a request; `scope["state"]["route"]` is it, or None."""

    def __init__(self, app: ASGIApp, routes: RouteTable):
        self.app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        scope.setdefault("state", {})["route"] = self._routes.find(scope)
        await self.app(scope, receive, send)


class FastPath:
    """Innermost ASGI middleware: call an endpoint directly if it takes only the request and one query model."""

    def __init__(self, app: ASGIApp, routes: RouteTable):
        self.app = app
        self.query_readers: dict[ProtectedRoute, ReadQuery] = {
            route: _query_reader(route) for route in routes.all if _is_eligible(route)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond, or pass the request on."""
        route = scope["state"]["route"]
        read = self.query_readers.get(route)
        if read is None:
            await self.app(scope, receive, send)
            return
        endpoint: Any = route.route.endpoint
        scope.update(route=route.route, endpoint=endpoint)
        try:
            result = await endpoint(Request(scope, receive, send), read(scope["query_string"]))
            response = result if isinstance(result, Response) else await _response(scope, result)
        except VestibuleError as error:
            response = error_response(scope["path"], error)
        except RequestValidationError as error:
            response = invalid_parameters(scope["path"], error)
        await response(scope, receive, send)


def _is_eligible(route: ProtectedRoute) -> bool:
    """Whether the endpoint uses no feature of FastAPI but a query model. Scopes are checked by `Authentication`."""
    context = route.route
    if not route.counts_toward_capacity or "{" in (context.path or "{"):
        return False
    if context.status_code or context.response_model_exclude_none:
        return False
    dependant = context.dependant
    return (
        dependant.request_param_name == "request"
        and [field.name for field in dependant.query_params] == ["params"]
        and not any((dependant.path_params, dependant.header_params, dependant.cookie_params, dependant.body_params))
        and not dependant.response_param_name
        and all(dependency.call is BEARER for dependency in dependant.dependencies)
    )


def _query_reader(route: ProtectedRoute) -> ReadQuery:
    fields = route.route.dependant.query_params

    def read(query: bytes) -> BaseModel:
        values, errors = request_params_to_args(fields, QueryParams(query))
        if errors:
            raise RequestValidationError(errors)
        params: BaseModel = values["params"]
        return params

    cached = lru_cache(CACHED_QUERIES)(read)
    return lambda query: cached(query) if len(query) <= MAX_CACHED_BYTES else read(query)


async def _response(scope: Scope, result: BaseModel) -> Response:
    """Return the result as JSON, serialised in a thread if its request was long: then the result may be large, too."""
    owner = OWNER.get()
    if owner is None or owner.busy_s <= LONG_S:
        return _json_response(result)
    response: Response = await scope["app"].state.model_manager.executors.run_cpu(lambda: _json_response(result))
    return response


def _json_response(result: BaseModel) -> Response:
    return Response(result.model_dump_json(by_alias=True), media_type="application/json")
