"""Slow clients: of heads, of bodies, of answers; and that they do not stop a fast one."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.responses import Response

from app.cli.main import _server
from app.errors import BodyTooSlow
from app.main import create_app
from app.middleware.body_timeout import GRACE_S, Arrival
from app.middleware.load_shedding import Places
from app.observability.metrics import Metrics
from app.server.http_protocol import OTHER_FILES, room_for
from app.settings import Settings
from tests.app.conftest import BASE_URL

HEAD = b"GET /fast HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
LARGE = 16 * 2**20
QUICK = {"head_timeout_s": 0.3, "body_timeout_s": 0.3, "answer_timeout_s": 0.3}


@contextmanager
def listening(app: Any, **settings: Any) -> Iterator[tuple[str, int]]:
    """The address of this application behind the server that the command starts, which does not start it."""

    async def unstarted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)

    server = _server(unstarted, Settings(port=0, **settings), lambda port: None)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join()


async def stub(scope: Any, receive: Any, send: Any) -> None:
    """/fast answers at once, /slow after a while, /large with megabytes; /echo tells the headers after the body, /body
    the body.
    """
    if scope["path"] == "/slow":
        await asyncio.sleep(0.7)
    if scope["path"] == "/echo":
        while (await receive()).get("more_body", False):
            pass
    if scope["path"] == "/body":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await Response(b"<" + body + b">")(scope, receive, send)
        return
    names = b",".join(name for name, _ in scope["headers"])
    await Response(bytes(LARGE) if scope["path"] == "/large" else names)(scope, receive, send)


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[str, int]]:
    with listening(stub, max_head_bytes=2000, max_connections=20, **QUICK) as address:
        yield address


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started."""
    return create_app(Settings(max_requests=4, max_headers=12, max_head_bytes=2000))


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    connection.settimeout(5)
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def drip(connection: socket.socket, text: bytes, every_s: float = 0.02) -> None:
    """Byte by byte, for as long as the other side takes them."""
    try:
        for index in range(len(text)):
            connection.sendall(text[index : index + 1])
            time.sleep(every_s)
    except OSError:
        pass


def test_who_sends_nothing_is_left(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        started = time.monotonic()
        assert everything(connection) == b""
        assert 0.2 < time.monotonic() - started < 3


@pytest.mark.parametrize("before", [b"", HEAD], ids=["at once", "after an answer"])
@pytest.mark.parametrize("slow", [HEAD[:-2] + b"x: " + b"x" * 200, b"\r\n" * 100], ids=["a head", "empty lines"])
def test_a_head_that_comes_slowly_is_answered_408(quick: tuple[str, int], before: bytes, slow: bytes) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(before)
        started = time.monotonic()
        drip(connection, slow)
        assert 0.2 < time.monotonic() - started < 3
        told = everything(connection)
    assert told.count(b"HTTP/1.1 200 OK") == bool(before)
    assert told.endswith(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


def test_a_head_that_takes_a_while_and_two_in_one_packet_are_answered(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        drip(connection, HEAD, 0.001)
        time.sleep(0.1)
        connection.sendall(HEAD + HEAD.replace(b"fast", b"slow"))
        connection.sendall(HEAD[:10])  # whose time begins when the answers before it are given
        time.sleep(0.8)
        connection.sendall(HEAD[10:-2] + b"connection: close\r\n\r\n")
        assert everything(connection).count(b"HTTP/1.1 200 OK") == 4


def test_a_head_without_end_is_answered_431(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(HEAD[:-2] + b"x: " + b"x" * 2500)
        assert everything(connection).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


def test_what_is_no_head_is_answered_400(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(b"\x16\x03\x01 hello, this is TLS\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400 Bad Request\r\n")


UPGRADES = [b"h2c", b"websocket", b"TLS/1.0, HTTP/2.0"]
SMUGGLED = b"GET /fast HTTP/1.1\r\nhost: evil\r\n\r\n"


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_body_is_read_although_its_head_offers_another_protocol(
    quick: tuple[str, int], upgrade: bytes, step: int, *, chunked: bool
) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: " + upgrade + b"\r\n"
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED) if chunked else SMUGGLED
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(SMUGGLED)
    request = head + framing + b"\r\n\r\n" + framed
    # Once more on the same connection, then without a body, then a request that offers nothing.
    sent = (
        request
        + request
        + head.replace(b"POST /body", b"GET /fast")
        + b"\r\n"
        + HEAD[:-2]
        + b"connection: close\r\n\r\n"
    )
    with socket.create_connection(quick) as connection:
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
            if step == 1:
                time.sleep(0.0001)
        told = everything(connection)
    assert told.count(b"<" + SMUGGLED + b">") == 2
    assert told.count(b"HTTP/1.1 200 OK") == told.count(b"HTTP/1.1") - 2 == 4  # two more are in the bodies


def test_a_head_that_offers_another_protocol_is_not_framed_twice(quick: tuple[str, int]) -> None:
    head = b"POST /body HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: h2c\r\n"
    framing = b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    with socket.create_connection(quick) as connection:
        connection.sendall(head + framing + SMUGGLED)
        told = everything(connection)
    assert b"200 OK" not in told


def test_a_tunnel_is_not_opened(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n" + SMUGGLED)
        told = everything(connection)
    assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert told.count(b"HTTP/1.1") == 1


def test_what_follows_a_body_has_an_end_and_is_no_header(quick: tuple[str, int]) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    with socket.create_connection(quick) as connection:
        connection.sendall(head + b"authorization: Bearer x\r\n\r\n")
        connection.sendall(HEAD[:-2] + b"connection: close\r\n\r\n")
        told = everything(connection)
    assert b"host,transfer-encoding" in told
    assert b"authorization" not in told
    with socket.create_connection(quick) as connection:
        connection.sendall(head)
        time.sleep(0.1)
        connection.sendall(b"x: " + b"x" * 2500)
        assert everything(connection) == b""


def test_a_body_that_comes_after_the_answer_is_not_waited_for_long(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.sendall(b"POST /fast HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
        started = time.monotonic()
        drip(connection, b"x" * 200)
        assert time.monotonic() - started < 3
        assert everything(connection).count(b"HTTP/1.1") == 1


def test_an_answer_that_nobody_takes_is_given_up(quick: tuple[str, int]) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(quick)
        connection.sendall(HEAD.replace(b"fast", b"large"))
        time.sleep(1)
        assert len(everything(connection)) < LARGE
    assert len(httpx.get("http://{}:{}/large".format(*quick)).content) == LARGE


def test_slow_heads_beyond_the_most_connections_do_not_stop_a_fast_client() -> None:
    with listening(stub, max_connections=20) as address, ExitStack() as slow:
        for _ in range(60):
            slow.enter_context(socket.create_connection(address)).sendall(HEAD[:20])
        for _ in range(5):
            started = time.monotonic()
            assert httpx.get("http://{}:{}/fast".format(*address)).status_code == 200
            assert time.monotonic() - started < 2


def test_where_all_connections_are_busy_another_is_told_so() -> None:
    with listening(stub, max_connections=3) as address, ExitStack() as busy:
        for _ in range(3):
            busy.enter_context(socket.create_connection(address)).sendall(HEAD.replace(b"fast", b"slow"))
        time.sleep(0.2)
        with socket.create_connection(address) as connection:
            assert everything(connection).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        time.sleep(0.8)
        assert httpx.get("http://{}:{}/fast".format(*address)).status_code == 200


def test_slow_bodies_do_not_stop_a_fast_client(service: FastAPI) -> None:
    slow_head = b"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nx"
    with listening(service) as address, ExitStack() as slow:
        connections = [slow.enter_context(socket.create_connection(address)) for _ in range(30)]
        for connection in connections:
            connection.sendall(slow_head)
        time.sleep(1.5)  # until then nobody is slow
        with httpx.Client(base_url="http://{}:{}".format(*address), timeout=30) as client:
            for _ in range(4):
                answer = client.post("/classify", content=b"nothing", headers={"content-type": "image/png"})
                assert answer.status_code == 415  # read, and no picture
        statuses = [_status(connection) for connection in connections]
        assert [statuses.count(status) for status in (b"429", b"408", b"")] == [26, 1, 3]


def _status(connection: socket.socket) -> bytes:
    """Of the answer, if there is one by now."""
    connection.settimeout(0.05)
    try:
        return connection.recv(4096)[9:12]
    except TimeoutError:
        return b""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_body_is_slow_where_less_has_come_than_is_asked_for() -> None:
    clock = Clock()
    arrival = Arrival(20.0, 100, clock)
    parts = [{"type": "http.request", "body": b"x" * 50, "more_body": more} for more in (True, True, False)]

    async def receive() -> Any:
        return parts.pop(0)

    async def scenario() -> None:
        assert not arrival.is_slow  # nobody asked for it yet
        await arrival.next(receive)
        clock.now += GRACE_S + 0.5
        assert not arrival.is_slow
        clock.now += 0.01
        assert arrival.is_slow
        await arrival.next(receive)
        assert not arrival.is_slow
        clock.now += 100
        assert arrival.is_slow
        arrival._started = clock.now
        await arrival.next(receive)
        clock.now += 100
        assert arrival.is_whole
        assert not arrival.is_slow

    asyncio.run(scenario())


def test_a_body_may_take_so_long_and_longer_the_more_of_it_has_come() -> None:
    clock = Clock()

    async def never() -> Any:
        await asyncio.sleep(60)

    async def at_once() -> Any:
        return {"type": "http.request", "body": b"x" * 500, "more_body": True}

    async def scenario() -> None:
        arrival = Arrival(20.0, 100, clock)
        await arrival.next(at_once)
        clock.now += 24.99  # 20 and 5 for what came
        with pytest.raises(BodyTooSlow, match="at least 100 bytes a second"):
            await asyncio.wait_for(arrival.next(never), 1)
        arrival.give_way()  # nobody waits for it: nothing happens

        arrival = Arrival(20.0, 100, clock)
        waits = asyncio.create_task(arrival.next(never))
        await asyncio.sleep(0)
        arrival.give_way()
        with pytest.raises(BodyTooSlow, match="others needed its place") as caught:
            await asyncio.wait_for(waits, 1)
        assert caught.value.headers == {"Connection": "close"}

    asyncio.run(scenario())


def test_who_is_slow_gives_way_and_nobody_else() -> None:
    clock = Clock()
    places = Places(2, Metrics())
    slow, whole = Arrival(20.0, 100, clock), Arrival(20.0, 100, clock)
    for arrival in (whole, slow):
        arrival._started = clock.now
        places.enter(arrival)
    assert places.are_taken
    whole.is_whole = True
    assert places.are_taken
    clock.now += 10
    assert not places.are_taken
    places.enter()
    assert slow._over
    assert not whole._over
    assert places.are_taken  # whose place was given away has not left yet
    places.leave(slow)
    assert places.are_taken
    places.leave(whole)
    assert not places.are_taken


@pytest.mark.parametrize("path", ["/verify/embeddings", "/classify", "/v2/models/lenet5-mnist/infer"])
def test_a_slow_body_is_answered_408_whoever_reads_it(service: FastAPI, path: str) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        if received:
            scope["state"]["arrival"].give_way()
            await asyncio.sleep(60)
        received.append(True)
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    received: list[bool] = []
    headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": "1000"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        "query_string": b"",
    }
    asyncio.run(asyncio.wait_for(service(scope, receive, send), 20))
    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"connection"] == b"close"
    assert b"others needed its place" in sent[1]["body"]
    assert len(sent) == 2


def test_a_head_of_many_or_large_fields_is_answered_431(service: FastAPI) -> None:
    client = TestClient(service, base_url=BASE_URL)
    assert client.get("/health/live", headers={"x": "x" * 1500}).status_code == 200
    for answer in (
        client.get("/health/live", headers={"x": "x" * 2000}),
        client.get("/health/live?" + "x" * 2000),
        client.get("/health/live", headers={f"x-{number}": "" for number in range(12)}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (431, "urn:vestibule:problem:head-too-large")


@pytest.mark.parametrize(
    ("soft", "hard", "given", "raised_to"),
    [
        (20_000, 20_000, 1000, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (1024, 4096, 1000, 1000 + OTHER_FILES),
        (1024, resource.RLIM_INFINITY, 1000, 1000 + OTHER_FILES),
        (1024, 1024, 1024 - OTHER_FILES, 1024),
        (256, 256, 1, 256),
    ],
)
def test_there_are_no_more_connections_than_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, given: int, raised_to: int | None
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits[0]))
    assert room_for(1000) == given
    assert raised == ([] if raised_to is None else [raised_to])


def test_idle_connections_are_kept_for_longer_than_load_balancers_keep_theirs(service: FastAPI) -> None:
    assert _server(service, Settings(), lambda port: None).config.timeout_keep_alive > 60
