"""A client that left is not worked for: what its request was about to do is cancelled, and its place is free."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Departure:
    """Pure ASGI. Notices that the client leaves while its request is worked on, which the framework does not.

    What a request has begun off the event loop, as to write to the ledger, goes on to its end.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; return without an answer where nobody waits for one any more."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        line = _Line(receive, whole=is_without_body(scope))
        work = asyncio.current_task()
        assert work is not None  # noqa: S101  a coroutine runs in one
        has_left = False

        async def watch() -> None:
            nonlocal has_left
            await line.left()
            has_left = True
            work.cancel()

        async def told(message: Message) -> None:
            watching.cancel()  # what was to be computed is
            await send(message)

        watching = asyncio.create_task(watch())
        try:
            await self.app(scope, line.receive, told)
        except asyncio.CancelledError:
            # Of the two who may cancel it, the server, too, wants it to end.
            if not has_left or work.uncancel():
                raise
        finally:
            watching.cancel()


class _Line:
    """From the client. Nobody listens ahead of the application: a body is not read before that asks for it."""

    def __init__(self, receive: Receive, *, whole: bool):
        self._receive = receive
        self._empty = whole
        self._whole, self._gone = asyncio.Event(), asyncio.Event()
        if whole:
            self._whole.set()

    async def receive(self) -> Message:
        """The next part of the body; after the last one, that the client left."""
        if self._empty:
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._whole.set()
        return message

    async def left(self) -> None:
        """Return when the client, whose request is whole, has left."""
        await self._whole.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


def is_without_body(scope: Scope) -> bool:
    """Whether the request's head says that nothing follows."""
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
