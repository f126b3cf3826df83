"""Clients that take their time at the wire, where neither uvicorn nor an application sets them a limit.

Nothing reaches the application before a request's head is whole, so whoever sends that slowly is seen here or nowhere;
and the parser of httptools has no limit for how much it keeps meanwhile.
"""

from __future__ import annotations

import asyncio
import resource
import time
from array import array
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Descriptors for all but connections: the gallery's files, models, the listening sockets.
OTHER_FILES = 512

# How long a connection may be idle between two requests: longer than the minute for which load balancers keep theirs,
# since who sends a request at the moment that the server closes gets no answer.
KEEP_ALIVE_S = 75


@dataclass(frozen=True)
class Limits:
    """Times in seconds: until a head is whole, and how long none of an answer is taken. `head_bytes` is of what comes
    without any of it being a body: a head, or what follows a chunked body.
    """

    head_s: float
    answer_s: float
    head_bytes: int
    connections: int


class _Parser(httptools.HttpRequestParser):
    """Ignores `Upgrade`, as RFC 9110 allows in 7.8, and CONNECT.

    httptools takes such a request to end with its head, and its body for the next request. So the head's framing is
    parsed once more before the body.
    """

    def __init__(self, protocol: PatientProtocol):
        super().__init__(protocol)
        self._protocol = protocol

    def feed_data(self, data: bytes | bytearray | memoryview | array[int]) -> None:
        """Parse what came."""
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                super().feed_data(self._protocol.repeated_head())


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 for those who get on with it.

    `waiting`: the connections of this server that no request is under way on, the one that has waited longest first.
    Where there are more connections than may be, that one is closed, as nginx does: slow clients go before others.
    """

    def __init__(self, *, limits: Limits, waiting: dict[PatientProtocol, None], **given: Any):
        super().__init__(**given)
        self._limits = limits
        self._waiting = waiting
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._pending = 0  # bytes since the last head or piece of a body
        self._repeats_head = False  # see _Parser
        self.parser = _Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            if not self._waiting:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            next(iter(self._waiting))._leave()
        self._waiting[self] = None
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self._stop_waiting()
        self._stop_answer_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and see that what is not whole yet comes in time and is not too much."""
        self._pending += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._pending > self._limits.head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._is_idle and self._head_timer is None:
            self._start_head_timer()

    def repeated_head(self) -> bytes:
        """A head with the framing of the last request's, which is under way already. No callback is to heed it."""
        self._repeats_head = True
        framing = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % header for header in framing)

    def on_message_begin(self) -> None:
        """A head begins."""
        if not self._repeats_head:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Some of the path and query."""
        if not self._repeats_head:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        """A request begins, as `scope["state"]["began"]` says on `time.perf_counter`."""
        if self._repeats_head:
            self._repeats_head = False
            return
        self._pending = 0
        self._stop_waiting()
        super().on_headers_complete()
        self.scope["state"]["began"] = time.perf_counter()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; not what follows a body, which would be among those that were judged already."""
        if not self._repeats_head and (self._is_idle or self.cycle.more_body is False):
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, unless its body follows a head that offers another protocol."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next request's head."""
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._waiting[self] = None

    def pause_writing(self) -> None:
        """The client does not take the answer as fast as it is given."""
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self._limits.answer_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken it."""
        super().resume_writing()
        self._stop_answer_timer()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is under way. One that was answered before its body came is over."""
        cycle = cast("Any", self.cycle)  # None before the first
        return cycle is None or bool(cycle.response_complete)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_s, self._is_late)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _is_late(self) -> None:
        if self._pending:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._leave()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._is_idle:  # else there is an answer under way
            told = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(told.encode())
        self._leave()

    def _leave(self) -> None:
        self._stop_waiting()
        self.transport.close()


def room_for(connections: int) -> int:
    """So many connections, or as many as there can be file descriptors for; this process is given those it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - OTHER_FILES)
    return connections
