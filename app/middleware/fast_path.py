"""Routes for pictures, answered without the framework's way to them.

FastAPI declares them, and writes them into its document, as all others. But that way, through routers, exit stacks,
dependencies and parameters, takes about half of the event loop's time for a small picture, and its end is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth.fair_share import LONG_S, OWNER
from app.auth.scopes import BEARER, Guarded, Routes
from app.errors import VestibuleError, error_response, invalid_parameters
from app.middleware.load_shedding import takes_a_place

# So many query strings, of so many bytes at most, are remembered: nearly all requests have one of few.
REMEMBERED, SHORT = 256, 256

Read = Callable[[bytes], BaseModel]


class Direct:
    """Pure ASGI, innermost. Calls what answers the request, where that wants no more than the request and its query."""

    def __init__(self, app: ASGIApp, routes: Routes):
        self.app = app
        self._routes = routes
        self.reading: dict[Guarded, Read] = {one: _reader(one) for one in routes.all if _is_plain(one)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        found = self._routes.find(scope) if scope["type"] == "http" else None
        read = self.reading.get(found) if found else None
        if found is None or read is None:
            await self.app(scope, receive, send)
            return
        endpoint: Any = found.route.endpoint
        scope.update(route=found.route, endpoint=endpoint)
        try:
            answer = await endpoint(Request(scope, receive, send), read(scope["query_string"]))
            response = answer if isinstance(answer, Response) else await _response(scope, answer)
        except VestibuleError as error:
            response = error_response(scope["path"], error)
        except RequestValidationError as error:
            response = invalid_parameters(scope["path"], error)
        await response(scope, receive, send)


def _is_plain(one: Guarded) -> bool:
    """Whether nothing of what FastAPI can do is asked for but a query's model; scopes are `Gate`'s."""
    route = one.route
    if not takes_a_place(one) or "{" in (route.path or "{") or route.status_code or route.response_model_exclude_none:
        return False
    wants = route.dependant
    others = (wants.path_params, wants.header_params, wants.cookie_params, wants.body_params)
    return (
        wants.request_param_name == "request"
        and [field.name for field in wants.query_params] == ["params"]
        and not any(others)
        and not wants.response_param_name
        and all(below.call is BEARER for below in wants.dependencies)
    )


def _reader(one: Guarded) -> Read:
    fields = one.route.dependant.query_params

    def read(query: bytes) -> BaseModel:
        values, errors = request_params_to_args(fields, QueryParams(query))
        if errors:
            raise RequestValidationError(errors)
        made: BaseModel = values["params"]
        return made

    remembered = lru_cache(REMEMBERED)(read)
    return lambda query: remembered(query) if len(query) <= SHORT else read(query)


async def _response(scope: Scope, answer: BaseModel) -> Response:
    """The answer as JSON. In a thread where its request kept threads for long: its answer may be large, too."""
    owner = OWNER.get()
    if owner is None or owner.busy_s <= LONG_S:
        return _json(answer)
    response: Response = await scope["app"].state.model_manager.executors.run_cpu(lambda: _json(answer))
    return response


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")
