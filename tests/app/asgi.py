"""Requests as ASGI messages, for middleware without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive

from app.middleware.routing import RouteTable


def http_scope(
    path: str = "/classify", headers: Mapping[str, str] | None = None, *, routes: RouteTable | None = None
) -> dict[str, Any]:
    """Return the scope of a POST request. With `routes` its state has its route, as behind `RouteLookup`."""
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "state": {},
    }
    if routes is not None:
        scope["state"]["route"] = routes.find(scope)
    return scope


async def no_body() -> Message:
    """Fail, because the application reads the body."""
    raise AssertionError("the body is read")


def respond(app: ASGIApp, scope: dict[str, Any], receive: Receive = no_body) -> list[Message]:
    """Run one request and return the messages of its response."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def scenario() -> None:
        async with asyncio.timeout(20):
            await app(scope, receive, send)

    asyncio.run(scenario())
    return sent
