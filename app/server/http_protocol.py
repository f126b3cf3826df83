"""An HTTP/1.1 protocol for uvicorn with limits on slow clients, large heads and open connections.

The application sees a request only once its head is complete, so only the protocol can limit how slowly a head arrives
and how much of it httptools buffers. uvicorn sets neither limit. The protocol also refuses requests while the service
is full, before it starts the application for them, and simple ones before it parses them.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from array import array
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Overloaded
from app.middleware.load_shedding import LoadShedding
from app.server.simple_requests import simple_request
from app.settings import Settings

# File descriptors reserved for everything but connections: the gallery's files, models, the listening sockets.
RESERVED_FILES = 512

# How long a connection may be idle between two requests: longer than the 60 s of most load balancers, because a request
# that is sent while the server closes the connection gets no response.
KEEP_ALIVE_S = 75

# Connections accepted in an iteration of the event loop. uvloop accepts one for each handle of a listening socket, and
# an iteration takes many milliseconds under overload: new connections would wait for seconds until they are refused.
ACCEPTS = 16

# For how long a connection is not read if the body of a refused request has more than HIGH_WATER_LIMIT bytes: reading
# megabytes costs more than the refusal. Clients that look at the response while they send, such as curl, stop sending;
# the others are slowed down. The time is that of `Retry-After`.
REFUSED_BODY_PAUSE_S = 1.0


class _Parser(httptools.HttpRequestParser):
    """An httptools parser that ignores `Upgrade`, as RFC 9110 section 7.8 allows, and CONNECT.

    httptools assumes that such a request ends with its head, and would parse its body as the next request. So a head
    with the same framing is parsed again before the body.
    """

    def __init__(self, protocol: LimitedHttpProtocol):
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: bytes | bytearray | memoryview | array[int]) -> None:
        """Parse received bytes."""
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                super().feed_data(self._protocol.framing_head())


class _ResponseTransport:
    """A connection's transport as one response uses it: the head is sent together with the beginning of the body.

    That saves a system call and, for small responses, a packet. If no body follows at once, the head is sent alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._is_first = True

    def write(self, data: bytes) -> None:
        """Send bytes; the first are held until the next call, or until the event loop's next iteration."""
        if self._is_first:
            self._is_first, self._head = False, data
            self._loop.call_soon(self._flush)
        else:
            head, self._head = self._head or b"", None
            self._transport.write(head + data if head else data)

    def close(self) -> None:
        """Send what is held, then close the connection."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed or being closed."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)


class LimitedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with the limits of `settings`. `max_head_bytes` limits the trailers after a chunked body as well.

    `max_connections`: open at once; when there are more, the connection that has waited longest is closed, as in nginx.
    `waiting`: the server's connections without a request in progress, the longest waiting first. `load_shedding`: None
    to refuse no request.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        max_connections: int,
        waiting: dict[LimitedHttpProtocol, None],
        load_shedding: LoadShedding | None,
        **options: Any,
    ):
        super().__init__(**options)
        self._settings = settings
        self._load_shedding = load_shedding
        self._max_connections = max_connections
        self._waiting = waiting
        self._head_timer: asyncio.TimerHandle | None = None
        self._response_timer: asyncio.TimerHandle | None = None
        self._pending = 0  # bytes received since the last complete head, part of a body, or request
        self._repeats_head = False  # see _Parser
        self._is_in_message = False  # the head or body of a request is incomplete
        self._refused_bytes: int | None = None  # received of the body of a refused request, until reading pauses
        self._pause_timer: asyncio.TimerHandle | None = None
        self.parser = _Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start waiting for a head; close another connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            if not self._waiting:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            next(iter(self._waiting))._close()
        self._waiting[self] = None
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_waiting()
        self._stop_response_timer()
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; limit the size of an incomplete head, and the time until it is complete.

        While the service is full, a simple request is refused without being parsed: parsing takes a third of a refusal.
        """
        if self._refuse_simple(data):
            return
        self._pending += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > self._settings.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._is_idle:
            self._limit_idle_time()

    def _refuse_simple(self, data: bytes) -> bool:
        """Refuse the received bytes if they are a simple request and the service is full; return whether both hold."""
        if not self._is_idle or self._is_in_message or self._pending:  # the bytes continue a request, or follow one
            return False
        if self._load_shedding is None or not self._load_shedding.is_full:
            return False
        scope = simple_request(data)
        if scope is None or not self._write_refusal(scope, keep_alive=True):
            return False
        self._stop_waiting()
        self.on_response_complete()
        return True

    def framing_head(self) -> bytes:
        """Return a head with the framing of the current request. The parser's callbacks ignore it."""
        self._repeats_head = True
        framing = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % header for header in framing)

    def on_message_begin(self) -> None:
        """Begin a request unless its head is repeated."""
        if not self._repeats_head:
            self._is_in_message = True
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Store a part of the path and query."""
        if not self._repeats_head:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        """Start the request; `scope["state"]["began"]` is the time on `time.perf_counter`."""
        if self._repeats_head:
            self._repeats_head = False
            return
        self._pending = 0
        self._stop_waiting()
        super().on_headers_complete()
        self.scope["state"]["began"] = time.perf_counter()
        if self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", _ResponseTransport(self.transport, self.loop))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header field. Ignore trailers: they would change headers that the middleware has already checked."""
        if not self._repeats_head and (self._is_idle or self.cycle.more_body is False):
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body; stop reading for a while if the request is refused."""
        self._pending = 0
        super().on_body(body)
        if self._refused_bytes is not None:
            self._refused_bytes += len(body)
            if self._refused_bytes > HIGH_WATER_LIMIT:
                self._refused_bytes = None
                self.flow.pause_reading()
                self._pause_timer = self.loop.call_later(REFUSED_BODY_PAUSE_S, self._resume_reading)

    def on_message_complete(self) -> None:
        """Complete the request, unless httptools reports its end too early because of `Upgrade`."""
        if not self.parser.should_upgrade():
            self._pending, self._is_in_message = 0, False
            self._refused_bytes = None
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Start the application for a request, unless the request is refused."""
        if self._refuse_overload(cycle):
            self.on_response_complete()
        else:
            super()._start_asgi_task(cycle, app)

    def _refuse_overload(self, cycle: RequestResponseCycle) -> bool:
        """Refuse a parsed request if the service is full, and return whether it is."""
        scope = cast("dict[str, Any]", cycle.scope)  # typed key by key
        if not self._write_refusal(scope, keep_alive=cycle.keep_alive):
            return False
        cycle.response_started = cycle.response_complete = True
        self._refused_bytes = 0 if cycle.more_body else None
        return True

    def _write_refusal(self, scope: dict[str, Any], *, keep_alive: bool) -> bool:
        """Send the 429 for a request if the service is full, and return whether it is."""
        refusal = self._load_shedding.refusal(scope) if self._load_shedding is not None else None
        if refusal is None:
            return False
        fields, body = refusal
        date = b"".join(b"%b: %b\r\n" % field for field in self.server_state.default_headers)
        connection = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((STATUS_LINE[Overloaded.status], date, fields, connection, b"\r\n", body)))
        if not keep_alive:
            self.transport.close()
        return True

    def on_response_complete(self) -> None:
        """Start waiting for the next request."""
        # In a loop: each of these calls itself for the next request, and a client may send thousands at once.
        while self.pipeline and not self.transport.is_closing() and self._refuse_overload(self.pipeline[-1][0]):
            self.pipeline.pop()
            self.server_state.total_requests += 1
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._waiting[self] = None

    def pause_writing(self) -> None:
        """Abort the connection if the client reads nothing of the response for `answer_timeout_s`."""
        super().pause_writing()
        self._response_timer = self.loop.call_later(self._settings.answer_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of `pause_writing`: the client has read some of the response."""
        super().resume_writing()
        self._stop_response_timer()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is in progress. A request ends with its response, even if its body has not arrived."""
        cycle = cast("Any", self.cycle)  # None before the first
        return cycle is None or bool(cycle.response_complete)

    def _limit_idle_time(self) -> None:
        """Limit the time until the next head, or the body of a request that is answered already, is complete."""
        if self._is_in_message or self._pending:
            if self._head_timer is None:
                self._start_head_timer()
            return
        self._stop_head_timer()
        if self.timeout_keep_alive_task is None:  # uvicorn starts it after the response only
            keep_alive_s, handler = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(keep_alive_s, handler)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._settings.head_timeout_s, self._on_head_timeout)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        self._stop_head_timer()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _stop_response_timer(self) -> None:
        if self._response_timer is not None:
            self._response_timer.cancel()

    def _on_head_timeout(self) -> None:
        if self._pending:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._close()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._is_idle:  # else a response is being sent
            response = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(response.encode())
        self._close()

    def _close(self) -> None:
        self._stop_waiting()
        self.transport.close()


async def accept_more(server: uvicorn.Server) -> None:
    """Let a started server accept ACCEPTS connections in an iteration of the event loop, by copies of its handles.

    Not for a worker among several: the first one to wake would get most of the connections that arrive together.
    """
    config = server.config
    protocol_class: Any = config.http_protocol_class
    protocol = partial(protocol_class, config=config, server_state=server.server_state, app_state=server.lifespan.state)
    for listening in [listening for each in server.servers for listening in each.sockets]:
        for _ in range(ACCEPTS - 1):
            copy = socket.socket(fileno=os.dup(listening.fileno()))
            loop = asyncio.get_running_loop()
            server.servers.append(await loop.create_server(protocol, sock=copy, backlog=config.backlog))


def raise_file_limit(connections: int) -> int:
    """Raise this process's limit of open files to allow `connections`; return how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - RESERVED_FILES)
    return connections
