"""How a request is addressed: below a sub-path of a reverse proxy, and by HEAD. Outermost of all layers, pure ASGI."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

GET, HEAD = "GET", "HEAD"


class SubPath:
    """Take `root_path` off the path of a request, and put it before the path of a redirection.

    A proxy may take the prefix off itself: a path without it passes as it is. Redirections name no host, because the
    name and the scheme that the client used are the proxy's.
    """

    def __init__(self, app: ASGIApp, root_path: str):
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        root_path, path = self._root_path, scope["path"]
        if root_path and path == root_path:  # the console's links are relative to its folder
            await RedirectResponse(f"{root_path}/")(scope, receive, send)
            return
        if root_path and path.startswith(f"{root_path}/"):
            scope = {**scope, "path": path[len(root_path) :]}

        async def prefixed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, self._prefixed(name, value)) for name, value in message["headers"]]
            await send(message)

        await self.app(scope, receive, prefixed)

    def _prefixed(self, name: bytes, value: bytes) -> bytes:
        if name.lower() != b"location":
            return value
        target = urlsplit(value.decode())
        return f"{self._root_path}{target._replace(scheme='', netloc='').geturl()}".encode()


class HeadAsGet:
    """Answer HEAD as GET without the body: every path that has the one has the other (RFC 9110)."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["method"] != HEAD:
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": GET}, receive, without_body)
