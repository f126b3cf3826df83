"""Slow clients at the level of HTTP: heads, bodies and responses, and that they do not stop a fast client."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import pytest
import uvloop
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.responses import Response

from app.cli.main import _server
from app.main import create_app
from app.server.http_protocol import ACCEPTS, RESERVED_FILES, _ResponseTransport, raise_file_limit
from app.settings import Settings
from tests.app.async_test import async_test
from tests.app.conftest import BASE_URL
from tests.app.threaded import running_server

HEAD = b"GET /fast HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
CLOSING = HEAD[:-2] + b"connection: close\r\n\r\n"
LARGE = 16 * 2**20


class WithoutLifespan(FastAPI):
    """The application `app`, whose lifespan is not run."""

    def __init__(self, app: Any):
        super().__init__()
        self.app = app
        self.state.is_stopping = False
        self.state.load_shedding = app.state.load_shedding if isinstance(app, FastAPI) else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)


def listening(app: Any, **settings: Any) -> AbstractContextManager[tuple[str, int]]:
    """Yield the address of `app` behind the server of `vestibule serve`."""
    return running_server(_server(WithoutLifespan(app), Settings(port=0, **settings), lambda port: None))


async def application(scope: Any, receive: Any, send: Any) -> None:
    """/fast responds at once, /slow after 0.7 s, /large with megabytes; /echo with the names of the headers after the
    body was read, /body with the body.
    """
    if scope["path"] == "/slow":
        await asyncio.sleep(0.7)
    body, more = b"", scope["path"] in ("/echo", "/body")
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    names = b",".join(name for name, _ in scope["headers"])
    content = {"/body": b"<" + body + b">", "/large": bytes(LARGE)}.get(scope["path"], names)
    await Response(content)(scope, receive, send)


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[str, int]]:
    """The address of a server with timeouts of 0.3 s."""
    timeouts = {"head_timeout_s": 0.3, "body_timeout_s": 0.3, "answer_timeout_s": 0.3}
    with listening(application, max_head_bytes=2000, max_connections=20, **timeouts) as address:
        yield address


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """The address of a server with the default timeouts."""
    with listening(application) as address:
        yield address


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started."""
    return create_app(Settings(max_requests=4, max_headers=12, max_head_bytes=2000))


def read_all(connection: socket.socket) -> bytes:
    """Return everything that the server sends until it closes the connection."""
    connection.settimeout(5)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send these parts on a new connection and return everything that the server sends."""
    with socket.create_connection(address) as connection:
        for part in parts:
            connection.sendall(part)
        return read_all(connection)


def drip(connection: socket.socket, data: bytes, every_s: float = 0.02) -> None:
    """Send byte by byte, as long as the server accepts them."""
    try:
        for index in range(len(data)):
            connection.sendall(data[index : index + 1])
            time.sleep(every_s)
    except OSError:
        pass


def test_a_silent_connection_is_closed(quick: tuple[str, int]) -> None:
    started = time.monotonic()
    assert exchange(quick) == b""
    assert 0.2 < time.monotonic() - started < 3


@pytest.mark.parametrize("before", [b"", HEAD], ids=["at once", "after a response"])
@pytest.mark.parametrize("slow", [HEAD[:-2] + b"x: " + b"x" * 200, b"\r\n" * 100], ids=["a head", "empty lines"])
def test_a_slow_head_is_answered_408(quick: tuple[str, int], before: bytes, slow: bytes) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(before)
        started = time.monotonic()
        drip(connection, slow)
        assert 0.2 < time.monotonic() - started < 3
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == bool(before)
    assert received.endswith(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def test_pipelined_heads_and_a_head_in_parts_are_answered(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        drip(connection, HEAD, 0.001)
        time.sleep(0.1)
        connection.sendall(HEAD + HEAD.replace(b"fast", b"slow"))
        connection.sendall(CLOSING[:10])  # its timeout starts once the earlier requests are answered
        time.sleep(0.8)
        connection.sendall(CLOSING[10:])
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 4


SMUGGLED = b"GET /fast HTTP/1.1\r\nhost: evil\r\n\r\n"
UPGRADE = b"POST /body HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: h2c\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEAD[:-2] + b"x: " + b"x" * 2500, b"431 Request Header Fields Too Large"),
        (b"\x16\x03\x01 hello, this is TLS\r\n\r\n", b"400 Bad Request"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n" + SMUGGLED, b"400 Bad Request"),
        (UPGRADE + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, b"400 Bad Request"),
    ],
    ids=["too large a head", "no HTTP", "CONNECT", "Upgrade with two framings"],
)
def test_invalid_heads_are_refused(quick: tuple[str, int], request_bytes: bytes, status: bytes) -> None:
    received = exchange(quick, request_bytes)
    assert received.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"TLS/1.0, HTTP/2.0"])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_the_body_of_a_request_with_upgrade_is_not_parsed_as_a_request(
    server: tuple[str, int], upgrade: bytes, step: int, *, chunked: bool
) -> None:
    head = UPGRADE.replace(b"Upgrade\r", b"Upgrade, HTTP2-Settings\r").replace(b"h2c", upgrade)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(SMUGGLED)
    request = head + framing + b"\r\n\r\n" + body
    # Twice on the same connection, then without a body, then a request without `Upgrade`.
    sent = request + request + head.replace(b"POST /body", b"GET /fast") + b"\r\n" + CLOSING
    with socket.create_connection(server) as connection:
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
            if step == 1:
                time.sleep(0.0001)
        received = read_all(connection)
    assert received.count(b"<" + SMUGGLED + b">") == 2
    assert received.count(b"HTTP/1.1 200 OK") == received.count(b"HTTP/1.1") - 2 == 4  # two more are in the bodies


def test_trailers_are_limited_and_are_not_headers(quick: tuple[str, int]) -> None:
    request = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    received = exchange(quick, request + b"authorization: Bearer x\r\n\r\n", CLOSING)
    assert b"host,transfer-encoding" in received
    assert b"authorization" not in received
    with socket.create_connection(quick) as connection:
        connection.sendall(request)
        time.sleep(0.1)
        connection.sendall(b"x: " + b"x" * 2500)
        assert read_all(connection) == b""


def test_a_body_after_the_response_has_a_timeout(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(b"POST /fast HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
        started = time.monotonic()
        drip(connection, b"x" * 200)
        assert time.monotonic() - started < 3
        assert read_all(connection).count(b"HTTP/1.1") == 1


def test_a_response_that_is_not_read_is_aborted(quick: tuple[str, int]) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(quick)
        connection.sendall(HEAD.replace(b"fast", b"large"))
        time.sleep(1)
        assert len(read_all(connection)) < LARGE
    assert len(httpx.get("http://{}:{}/large".format(*quick)).content) == LARGE


@pytest.mark.parametrize("workers", [1, 2])
def test_a_single_worker_accepts_many_connections_in_an_iteration_of_the_event_loop(workers: int) -> None:
    async def iterations(connections: int) -> int:
        server = _server(WithoutLifespan(application), Settings(port=0, workers=workers), lambda port: None)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup()
        address, count = server.servers[0].sockets[0].getsockname(), 0
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(socket.create_connection(address))
            while len(server.server_state.connections) < connections:
                await asyncio.sleep(0)
                count += 1
        await server.shutdown()
        return count

    # Several workers accept one at a time, so that each gets its share.
    assert (uvloop.run(iterations(8 * ACCEPTS)) < 4 * ACCEPTS) == (workers == 1)


def test_slow_heads_on_all_connections_do_not_stop_a_fast_client() -> None:
    with listening(application, max_connections=20) as address, ExitStack() as slow:
        for _ in range(60):
            slow.enter_context(socket.create_connection(address)).sendall(HEAD[:20])
        for _ in range(5):
            started = time.monotonic()
            assert httpx.get("http://{}:{}/fast".format(*address)).status_code == 200
            assert time.monotonic() - started < 2


def test_a_connection_is_answered_503_while_all_others_are_busy() -> None:
    with listening(application, max_connections=3) as address, ExitStack() as busy:
        for _ in range(3):
            busy.enter_context(socket.create_connection(address)).sendall(HEAD.replace(b"fast", b"slow"))
        time.sleep(0.2)
        assert exchange(address).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        time.sleep(0.8)
        assert httpx.get("http://{}:{}/fast".format(*address)).status_code == 200


def test_slow_bodies_do_not_stop_a_fast_client(service: FastAPI) -> None:
    slow_head = b"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nx"
    with listening(service) as address, ExitStack() as slow:
        connections = [slow.enter_context(socket.create_connection(address)) for _ in range(30)]
        for connection in connections:
            connection.sendall(slow_head)
        time.sleep(1.5)  # no body is slow before
        with httpx.Client(base_url="http://{}:{}".format(*address), timeout=30) as client:
            for _ in range(4):
                response = client.post("/classify", content=b"nothing", headers={"content-type": "image/png"})
                assert response.status_code == 415  # the body was read, and is no image
        statuses = [_status(connection) for connection in connections]
        assert [statuses.count(status) for status in (b"429", b"408", b"")] == [26, 1, 3]


def _status(connection: socket.socket) -> bytes:
    """Return the status of the response; empty if there is none yet."""
    connection.settimeout(0.05)
    try:
        return connection.recv(4096)[9:12]
    except TimeoutError:
        return b""


def test_many_or_large_header_fields_are_answered_431(service: FastAPI) -> None:
    client = TestClient(service, base_url=BASE_URL)
    assert client.get("/health/live", headers={"x": "x" * 1500}).status_code == 200
    for response in (
        client.get("/health/live", headers={"x": "x" * 2000}),
        client.get("/health/live?" + "x" * 2000),
        client.get("/health/live", headers={f"x-{number}": "" for number in range(12)}),
    ):
        assert (response.status_code, response.json()["type"]) == (431, "urn:vestibule:problem:head-too-large")


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised_to"),
    [
        (20_000, 20_000, 1000, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (1024, 4096, 1000, 1000 + RESERVED_FILES),
        (1024, resource.RLIM_INFINITY, 1000, 1000 + RESERVED_FILES),
        (1024, 1024, 1024 - RESERVED_FILES, 1024),
        (256, 256, 1, 256),
    ],
)
def test_the_limit_of_open_files_bounds_the_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, connections: int, raised_to: int | None
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits[0]))
    assert raise_file_limit(1000) == connections
    assert raised == ([] if raised_to is None else [raised_to])


class _Written(asyncio.Transport):
    """A transport that keeps what is written, and "closed"."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.calls


@async_test
async def test_a_head_is_sent_with_the_beginning_of_its_body() -> None:
    assert await _written(b"head ", b"body", b" and more") == [b"head body", b" and more"]


@async_test
async def test_a_head_without_a_body_is_sent_at_once() -> None:
    assert await _written(b"head ", None, b"body, later") == [b"head ", b"body, later"]


@async_test
async def test_a_head_is_sent_before_the_connection_is_closed() -> None:
    written = _Written()
    transport = _ResponseTransport(written, asyncio.get_running_loop())
    transport.write(b"head")
    assert not transport.is_closing()
    transport.close()
    await asyncio.sleep(0)
    assert transport.is_closing()
    assert written.calls == [b"head", b"closed"]


async def _written(*parts: bytes | None) -> list[bytes]:
    """Return the writes by which a response with these parts is sent; None: the event loop goes on in between."""
    written = _Written()
    transport = _ResponseTransport(written, asyncio.get_running_loop())
    for part in parts:
        if part is None:
            await asyncio.sleep(0)
        else:
            transport.write(part)
    await asyncio.sleep(0)
    return written.calls
