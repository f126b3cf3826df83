"""Requests that are refused because the service is full, over real connections to the server of `vestibule serve`."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import pytest
from fastapi import FastAPI

from app.main import create_app
from app.middleware.request_body import BodyArrival
from app.server import http_protocol
from app.settings import Settings
from tests.app.conftest import until
from tests.app.server.test_http_protocol import exchange, listening

Address = tuple[str, int]
ORIGIN = "https://friend.example"
LIGHT = b"GET /health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
LAST = LIGHT[:-2] + b"connection: close\r\n\r\n"
HEAVY = b"POST /classify HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\n"
WITH_BODY = HEAVY + b"content-length: 8\r\n\r\nnothing!"
CHUNKED = HEAVY + b"transfer-encoding: chunked\r\n\r\n8\r\nnothing!\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started, for one request at once, below a sub-path and with an allowed origin."""
    return create_app(Settings(max_requests=1, root_path="/vision", allowed_origins=[ORIGIN]))


@pytest.fixture(scope="module")
def address(service: FastAPI) -> Iterator[Address]:
    """The address of its server."""
    with listening(service) as address:
        yield address


@contextmanager
def occupied(service: FastAPI) -> Iterator[None]:
    """Use the capacity for a request in progress."""
    arrival = BodyArrival(20.0, 100)
    service.state.capacity.acquire(arrival)
    yield
    service.state.capacity.release(arrival)


@pytest.fixture
def full(service: FastAPI, address: Address) -> Iterator[Address]:
    """The address of the server while a request is in progress."""
    with occupied(service):
        yield address


def ask(
    address: Address, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[http.client.HTTPResponse, Any]:
    """Return the response and its JSON, parsed by the standard library."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        content = response.read()
        return response, json.loads(content) if content else None
    finally:
        connection.close()


def statuses(address: Address, *requests: bytes) -> list[int]:
    """Return the status of each response on one connection, parsed by h11, also if the requests are sent at once."""
    client, received = h11.Connection(h11.CLIENT), exchange(address, *requests)
    client.receive_data(received)
    client.receive_data(b"")
    found: list[int] = []
    while True:
        client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
        client.send(h11.EndOfMessage())
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Response | h11.Data | h11.ConnectionClosed)
            if isinstance(event, h11.Response):
                found.append(event.status_code)
        if client.their_state is not h11.DONE:
            return found
        client.start_next_cycle()


def test_a_refusal_does_not_wait_for_the_body_and_is_counted(full: Address, service: FastAPI) -> None:
    names = ("vestibule_requests_total", {"route": "/classify", "method": "POST", "status": "429"})
    shed = ("vestibule_shed_total", {"where": "admission", "model": ""})
    value = service.state.metrics.registry.get_sample_value
    before = value(*names) or 0, value(*shed) or 0
    response, problem = ask(full, "POST", "/classify", {"content-length": "1000000"})
    assert (response.status, response.headers["retry-after"], response.version) == (429, "1", 11)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["date"]
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert problem["type"] == "urn:vestibule:problem:overloaded"
    assert (value(*names), value(*shed)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("origin", [b"", b"origin: %b\r\n" % ORIGIN.encode()])
def test_a_refusal_without_the_parser_is_the_same(
    full: Address, monkeypatch: pytest.MonkeyPatch, origin: bytes
) -> None:
    parsed = []
    begin = http_protocol.LimitedHttpProtocol.on_message_begin

    def on_message_begin(self: http_protocol.LimitedHttpProtocol) -> None:
        parsed.append(self)
        begin(self)

    monkeypatch.setattr(http_protocol.LimitedHttpProtocol, "on_message_begin", on_message_begin)
    request = WITH_BODY.replace(b"host", origin + b"x-request-id: mine\r\nhost")
    responses = []
    with socket.create_connection(full) as connection:
        connection.settimeout(20)
        for parts in ([request], [request[:-1], request[-1:]], [request]):
            for part in parts:
                connection.sendall(part)
                time.sleep(0.1)
            responses.append(re.sub(rb"date: [^\r]+", b"", connection.recv(65536)))
    assert len(parsed) == 1
    assert responses[0].startswith(b"HTTP/1.1 429 ")
    assert responses == [responses[0]] * 3


def test_a_refusal_has_the_format_of_its_path_and_the_request_id(full: Address) -> None:
    response, error = ask(full, "POST", "/v2/models/lenet5-mnist/infer", {"x-request-id": "mine"})
    assert (response.status, response.headers["x-request-id"]) == (429, "mine")
    assert error["error"].startswith("The service is busy")
    response, error = ask(full, "POST", "/vision/v1/embeddings", {"x-request-id": "a b"})
    assert error["message"].startswith("The service is busy")
    assert response.headers["x-request-id"] != "a b"


def test_a_page_of_an_allowed_origin_may_read_a_refusal(full: Address) -> None:
    refused = [ask(full, "POST", "/classify", {"origin": origin})[0] for origin in (ORIGIN, "https://evil.example")]
    served, _ = ask(full, "GET", "/models", {"origin": ORIGIN})
    assert [response.status for response in (*refused, served)] == [429, 429, 200]
    for name in ("access-control-allow-origin", "access-control-expose-headers", "vary"):
        assert refused[0].headers[name] == served.headers[name]
    assert refused[0].headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in refused[1].headers


def test_light_requests_and_preflights_are_answered_while_the_service_is_full(full: Address) -> None:
    assert [ask(full, "GET", path)[0].status for path in ("/vision/health/live", "/models")] == [200, 200]
    assert ask(full, "POST", "/no/such/path")[0].status == 404
    assert ask(full, "GET", "/generate")[0].status == 429
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    connection = http.client.HTTPConnection(*full, timeout=20)
    connection.request("OPTIONS", "/classify", headers=preflight)
    assert connection.getresponse().status == 200
    connection.close()


def test_head_is_refused_without_a_body(full: Address) -> None:
    received = exchange(full, b"HEAD /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", LAST)
    heads = received.split(b"\r\n\r\n")
    assert [head.split(b" ")[1] for head in heads[:2]] == [b"429", b"200"]
    assert int(re.findall(rb"content-length: (\d+)", heads[0])[0]) > 0


@pytest.mark.parametrize("at_once", [True, False])
def test_each_request_of_a_connection_is_answered_in_order(full: Address, *, at_once: bool) -> None:
    requests = [LIGHT, WITH_BODY, LIGHT, CHUNKED, CHUNKED, WITH_BODY, LAST]
    sent = [b"".join(requests)] if at_once else requests
    assert statuses(full, *sent) == [200, 429, 200, 429, 429, 429, 200]


def test_the_end_of_a_connection_is_kept(full: Address) -> None:
    closing = WITH_BODY.replace(b"content-type", b"connection: close\r\ncontent-type")
    received = exchange(full, closing)
    assert received.startswith(b"HTTP/1.1 429")
    assert b"\r\nconnection: close\r\n" in received
    assert exchange(full, closing + LIGHT).count(b"HTTP/1.1") == 1
    assert exchange(full, b"POST /classify HTTP/1.0\r\ncontent-length: 0\r\n\r\n").count(b"connection: close") == 1


def test_thousands_of_requests_behind_one_that_is_served_are_refused(address: Address) -> None:
    empty = HEAVY + b"content-length: 0\r\n\r\n"
    with socket.create_connection(address) as connection:
        connection.settimeout(20)
        connection.sendall(WITH_BODY + empty * 2500 + LAST)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"415", *[b"429"] * 2500, b"200"]


@pytest.mark.parametrize("parts", [[WITH_BODY], [WITH_BODY[:-8], WITH_BODY[-8:]], [CHUNKED[:-3], CHUNKED[-3:]]])
def test_a_refused_connection_stays_open_longer_than_a_head_may_take(parts: list[bytes]) -> None:
    service = create_app(Settings(max_requests=1))
    with occupied(service), listening(service, head_timeout_s=0.3) as address:
        with socket.create_connection(address) as connection:
            connection.settimeout(20)
            for part in parts:
                connection.sendall(part)
                time.sleep(0.1)
            assert connection.recv(65536).startswith(b"HTTP/1.1 429")
            time.sleep(0.6)
            connection.sendall(LAST)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with socket.create_connection(address) as connection:
            connection.settimeout(20)
            connection.sendall(WITH_BODY[:-1])  # but a body that does not arrive has the time of a head
            assert connection.recv(65536).startswith(b"HTTP/1.1 429")
            assert connection.recv(65536) == b""


def test_no_body_is_asked_for(full: Address) -> None:
    with socket.create_connection(full) as connection:
        connection.settimeout(20)
        connection.sendall(HEAVY + b"expect: 100-continue\r\ncontent-length: 8\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
        connection.sendall(b"nothing!" + LAST)  # a client may send it anyway
        assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200")


def test_a_large_body_of_a_refused_request_is_read_late(full: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "REFUSED_BODY_PAUSE_S", 0.4)
    size = 24 * 2**20
    with socket.create_connection(full) as connection:
        connection.settimeout(20)
        started = time.monotonic()
        connection.sendall(HEAVY + b"content-length: %d\r\n\r\n" % size)
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
        connection.sendall(bytes(size))
        connection.sendall(LAST)
        assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started >= 0.4
    assert ask(full, "GET", "/health/live")[0].status == 200


def test_a_client_that_leaves_during_the_pause_is_noticed(
    full: Address, service: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    lost = http_protocol.LimitedHttpProtocol.connection_lost

    def connection_lost(self: http_protocol.LimitedHttpProtocol, exc: Exception | None) -> None:
        closed.append(self)
        lost(self, exc)

    monkeypatch.setattr(http_protocol, "REFUSED_BODY_PAUSE_S", 0.2)
    monkeypatch.setattr(http_protocol.LimitedHttpProtocol, "connection_lost", connection_lost)
    with socket.create_connection(full) as connection:
        connection.sendall(HEAVY + b"content-length: 1000000\r\n\r\n" + bytes(200_000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 429")
    until(lambda: bool(closed))


def test_a_burst_does_not_take_more_than_the_capacity(service: FastAPI, address: Address) -> None:
    with occupied(service):
        assert statuses(address, WITH_BODY, LAST) == [429, 200]
    assert statuses(address, WITH_BODY, LAST) == [415, 200]  # the body was read, and is no image
