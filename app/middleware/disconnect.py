"""Cancel the work of a request whose client has disconnected, and free its capacity."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For how long a request is processed before its client is watched: watching takes a task, which costs 4 % of a request
# of one millisecond, and most requests end before.
WATCH_AFTER_S = 0.1


class Disconnect:
    """ASGI middleware. Cancel a request while it is processed if its client disconnects; FastAPI does not.

    A disconnect is noticed once the request has been processed for WATCH_AFTER_S, or the application asks for it.
    Work that the request has started in a thread is finished. A ledger write that still waits is not executed.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; return without a response if the client disconnected."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in one
        client = _Client(receive, task.cancel)

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                client.stop_watching()  # the response is complete: nothing is left to cancel
            await send(message)

        if is_without_body(scope):
            client.watch()
        try:
            await self.app(scope, client.receive, watched_send)
        except asyncio.CancelledError:
            # If the server has cancelled the task as well, the cancellation must reach it.
            if not client.disconnected.is_set() or task.uncancel():
                raise
        finally:
            client.stop_watching()


class _Client:
    """The messages of one request's client.

    The body is read only when the application asks for it. Watching for a disconnect starts once the request is
    complete.
    """

    def __init__(self, receive: Receive, on_disconnect: Callable[[], object]):
        self._receive = receive
        self._on_disconnect = on_disconnect
        self._starting: asyncio.TimerHandle | None = None  # set once the request is complete
        self._watching: asyncio.Task[None] | None = None
        self._is_read = False
        self.disconnected = asyncio.Event()

    def watch(self) -> None:
        """Watch for a disconnect after WATCH_AFTER_S; the request is complete."""
        self._starting = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def stop_watching(self) -> None:
        """Stop watching for a disconnect."""
        if self._starting is not None:
            self._starting.cancel()
        if self._watching is not None:
            self._watching.cancel()

    async def receive(self) -> Message:
        """Return the next part of the body; after the last one, wait for the disconnect and return it."""
        if self._starting is None:
            message = await self._receive()
            self._is_read = True
            if message["type"] == "http.request" and not message.get("more_body", False):
                self.watch()
            return message
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        self._start()
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    def _start(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.disconnected.set()
        self._on_disconnect()


def is_without_body(scope: Scope) -> bool:
    """Whether the headers say that the request has no body."""
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
