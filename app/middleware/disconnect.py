"""A client that left is not worked for: what its request was about to do is cancelled, and its place is free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Departure:
    """Pure ASGI. Notices that the client leaves while its request is worked on, which the framework does not.

    What a request has begun off the event loop goes on to its end. A write that waits for its turn in the ledger is not
    made.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; return without an answer where nobody waits for one any more."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        work = asyncio.current_task()
        assert work is not None  # noqa: S101  a coroutine runs in one
        line = _Line(receive, work.cancel)

        async def told(message: Message) -> None:
            line.stop()  # what was to be computed is
            await send(message)

        if is_without_body(scope):
            line.watch()
        try:
            await self.app(scope, line.receive, told)
        except asyncio.CancelledError:
            # Of the two who may cancel it, the server, too, wants it to end.
            if not line.gone.is_set() or work.uncancel():
                raise
        finally:
            line.stop()


class _Line:
    """From the client. Nobody listens ahead of the application: a body is not read before that asks for it, and whether
    the client leaves is watched from then on that its request is whole.
    """

    def __init__(self, receive: Receive, on_departure: Callable[[], object]):
        self._receive = receive
        self._on_departure = on_departure
        self._watching: asyncio.Task[None] | None = None
        self._is_read = False
        self.gone = asyncio.Event()

    def watch(self) -> None:
        """The request is whole."""
        self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """It is of no importance any more whether the client leaves."""
        if self._watching is not None:
            self._watching.cancel()

    async def receive(self) -> Message:
        """The next part of the body; after the last one, that the client left."""
        if self._watching is None:
            message = await self._receive()
            self._is_read = True
            if message["type"] == "http.request" and not message.get("more_body", False):
                self.watch()
            return message
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        self._on_departure()


def is_without_body(scope: Scope) -> bool:
    """Whether the request's head says that nothing follows."""
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
