"""Requests at a fixed rate, whatever became of those before: the generator of the overload.

A request takes .7 of the processor time of one by `load_generator.Clients`, because each connection is a protocol with
a parser in C instead of a task with streams. The rest is the operating system's. The server lacks what it takes.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import httptools

from benchmarks.serving.load_generator import TIMEOUT_S, Reply
from benchmarks.serving.servers import HOST

TICK_S = 0.001  # all requests that are due are sent once a tick
# The most connections at once: this process may have 20,000 files open, and an address about 28,000 ports. A server
# that refuses nothing gets there in half a minute.
MOST_CONNECTIONS = 16_000


class _Connection(asyncio.Protocol):
    """A connection, which has at most one request in progress."""

    def __init__(self, load: _Load):
        self._load = load
        self._number = 0  # of the request in progress
        self._began = 0.0
        self._requests = 0  # sent on this connection
        self._has_answered = False  # since the last request
        self._headers: dict[str, str] = {}
        self._body = b""
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None  # None: no request is in progress

    def send(self, number: int, began: float) -> None:
        """Send a request on the open connection. `began`: the start of its time, on `time.perf_counter`."""
        assert self._transport is not None
        self._number, self._began, self._headers, self._body = number, began, {}, b""
        self._requests, self._has_answered = self._requests + 1, False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._load.request)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed it."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as asyncio calls it
        """Keep the transport."""
        self._transport = transport
        self._load.open += 1

    def data_received(self, data: bytes) -> None:
        """Parse a part of a reply."""
        self._has_answered = True
        with suppress(httptools.HttpParserError):
            if self._parser is not None:
                self._parser.feed_data(data)
                return
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report that there is no reply, if one is expected.

        A server may close a connection that it has kept open while the next request is on its way. That request is
        sent once more, on a new connection, as clients do (RFC 9112, section 9.3.1).
        """
        self._load.open -= 1
        if self._parser is None:
            return
        if self._requests > 1 and not self._has_answered:
            self._load.connect(self._number, self._began)
        else:
            self._finish(0)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header field."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Report the reply."""
        assert self._parser is not None
        if self._parser.should_keep_alive():
            self._load.free.append(self)
        else:
            self.close()
        self._finish(self._parser.get_status_code())

    def _finish(self, status: int) -> None:
        self._parser = None
        self._load.keep(self._number, Reply(status, time.perf_counter() - self._began, self._headers, self._body))


class _Load:
    """The connections, and the replies by the number of their request.

    `free`: connections without a request; `open`: the number of all.
    """

    def __init__(self, port: int, request: bytes, count: int):
        self.request = request
        self.free: list[_Connection] = []
        self.open = 0
        self.replies = [Reply(0, TIMEOUT_S, {})] * count
        self.is_complete = asyncio.Event()
        self._port = port
        self._remaining = count
        self._connecting: set[asyncio.Task[None]] = set()

    def send(self, number: int) -> None:
        """Send a request on a free connection, or on a new one; report no reply if there are MOST_CONNECTIONS."""
        while self.free:
            connection = self.free.pop()
            if connection.is_open:
                connection.send(number, time.perf_counter())
                return
        if self.open + len(self._connecting) >= MOST_CONNECTIONS:
            self.keep(number, Reply(0, 0.0, {}))
            return
        self.connect(number, time.perf_counter())

    def connect(self, number: int, began: float) -> None:
        """Send a request, whose time started at `began`, on a new connection."""
        task = asyncio.create_task(self._connect(number, began))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, number: int, began: float) -> None:
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self), HOST, self._port)
        except OSError:
            self.keep(number, Reply(0, time.perf_counter() - began, {}))
        else:
            connection.send(number, began)

    def keep(self, number: int, reply: Reply) -> None:
        """Keep the reply to a request."""
        self.replies[number] = reply
        self._remaining -= 1
        if not self._remaining:
            self.is_complete.set()


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> list[Reply]:
    """Return the replies to requests that are sent at that rate, in the order of sending.

    A request whose new connection is lost, for which there are too many connections, or without a reply TIMEOUT_S
    after the last was sent, has status 0.
    """
    count, sent, began = round(rate * seconds), 0, time.perf_counter()
    load = _Load(port, request, count)
    while sent < count:
        due = min(count, int((time.perf_counter() - began) * rate) + 1)
        for number in range(sent, due):
            load.send(number)
        sent = due
        await asyncio.sleep(TICK_S)
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            await load.is_complete.wait()
    for connection in load.free:
        connection.close()
    return load.replies
