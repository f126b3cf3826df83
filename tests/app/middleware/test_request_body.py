"""Limits of a request's body: time, bytes, the budget of all bodies, content encodings, and the size of JSON."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.errors import BodyTooSlow, Overloaded
from app.main import create_app
from app.middleware.request_body import (
    BUSY_RATE,
    GRACE_S,
    PIECE,
    SMALL_BODY,
    BodyArrival,
    BodyBudget,
    BodyLimit,
)
from app.middleware.routing import RouteTable
from app.observability.metrics import Metrics
from app.settings import Settings
from tests.app import bad_inputs
from tests.app.asgi import http_scope, respond
from tests.app.conftest import BASE_URL, Clock

LARGE = 8 * 2**20
LIMITS = Settings(max_body_bytes=LARGE)
Headers = dict[str, str]
IMAGES, PLAIN = "/classify", "/generate"


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started."""
    return create_app(Settings())


@pytest.fixture(scope="module")
def routes(service: FastAPI) -> RouteTable:
    return RouteTable(service)


class Exchange:
    """One request through `BodyLimit` to an application that holds the whole body until `finish` is set."""

    def __init__(self, routes: RouteTable, budget: BodyBudget, path: str = IMAGES, headers: Headers | None = None):
        self.limit = BodyLimit(self._application, LIMITS, budget)
        self.sent: list[Any] = []
        self.body = b""
        self.pieces: list[int] = []
        self.finish = asyncio.Event()
        self.complete = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self.scope = http_scope(path, headers, routes=routes)

    def add(self, body: bytes, *, more: bool = True) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def run(self) -> int:
        """Return the status of the response."""
        await self.limit(self.scope, self._messages.get, self._send)
        return int(self.sent[0]["status"])

    @property
    def problem(self) -> dict[str, Any]:
        problem: dict[str, Any] = json.loads(self.sent[1]["body"])
        return problem

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message["body"]
            self.pieces.append(len(message["body"]))
            more = message["more_body"]
        self.complete.set()
        await self.finish.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def budget_of(limit: int = 4 * LARGE) -> BodyBudget:
    return BodyBudget(limit, LARGE, Metrics())


@pytest.mark.parametrize(("path", "limit"), [(IMAGES, LARGE), (PLAIN, SMALL_BODY), ("/no/such/route", SMALL_BODY)])
@pytest.mark.parametrize("declared", [True, False])
def test_only_image_routes_accept_a_large_body(routes: RouteTable, path: str, limit: int, *, declared: bool) -> None:
    async def scenario(size: int) -> int:
        budget = budget_of()
        exchange = Exchange(routes, budget, path, {"content-length": str(size)} if declared else {})
        exchange.finish.set()
        for start in range(0, size, PIECE):
            exchange.add(bytes(min(PIECE, size - start)))
        exchange.add(b"", more=False)
        status = await exchange.run()
        assert budget._held == 0
        assert len(exchange.sent) == 2
        assert status == 200 or exchange.problem["detail"] == f"a request body may have {limit} bytes"
        return status

    assert asyncio.run(scenario(limit)) == 200
    assert asyncio.run(scenario(limit + 1)) == 413


def test_large_bodies_share_a_budget_with_a_reserve_for_small_ones(routes: RouteTable) -> None:
    async def scenario() -> None:
        budget = budget_of()
        held = [Exchange(routes, budget) for _ in range(3)]
        tasks = [asyncio.create_task(exchange.run()) for exchange in held]
        for exchange in held:
            exchange.add(bytes(LARGE), more=False)
            await exchange.complete.wait()
        assert budget._held == 3 * LARGE

        for headers in ({}, {"content-length": str(LARGE)}):
            another = Exchange(routes, budget, headers=headers)
            another.add(bytes(2 * SMALL_BODY), more=False)
            assert await another.run() == 429
            assert another.problem["type"] == "urn:vestibule:problem:overloaded"
            assert dict(another.sent[0]["headers"])[b"retry-after"] == b"1"
            assert another.body == b""
        small = Exchange(routes, budget)
        small.add(bytes(SMALL_BODY), more=False)
        small.finish.set()
        assert await small.run() == 200

        held[0].finish.set()
        assert await tasks[0] == 200
        another = Exchange(routes, budget)
        another.add(bytes(LARGE), more=False)
        another.finish.set()
        assert await another.run() == 200
        for exchange in held:
            exchange.finish.set()
        await asyncio.gather(*tasks)
        assert budget._held == 0

    asyncio.run(scenario())


def test_a_cancelled_request_releases_its_bytes(routes: RouteTable) -> None:
    async def scenario() -> None:
        budget = budget_of()
        exchange = Exchange(routes, budget)
        task = asyncio.create_task(exchange.run())
        exchange.add(bytes(1000))
        await asyncio.sleep(0.01)
        assert budget._held == 1000
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget._held == 0

    asyncio.run(scenario())


def test_budget_fits_at_least_two_of_the_largest_bodies() -> None:
    budget = BodyBudget(1, LARGE, Metrics())
    budget.take(LARGE, LARGE)
    with pytest.raises(Overloaded):
        budget.take(LARGE, LARGE)


def test_a_used_up_budget_aborts_the_slowest_body(clock: Clock) -> None:
    metrics = Metrics()
    budget = BodyBudget(1, LARGE, metrics)
    arrivals = {name: BodyArrival(20.0, 100, clock) for name in ("slow", "slower", "fast", "complete", "not begun")}
    for name, arrival in arrivals.items():
        budget.begin(arrival)
        if name != "not begun":
            arrival._started = clock.now
    arrivals["slow"]._received, arrivals["slower"]._received = 2000, 1000
    arrivals["fast"]._received = 11 * BUSY_RATE
    arrivals["complete"].is_complete = True
    clock.now += 10 + GRACE_S
    with pytest.raises(Overloaded):
        budget.take(2 * LARGE, 2 * LARGE)
    assert {name for name, arrival in arrivals.items() if arrival._aborted} == {"slower"}
    value = metrics.registry.get_sample_value
    assert value("vestibule_shed_total", {"where": "body-bytes", "model": ""}) == 1
    assert value("vestibule_shed_total", {"where": "slow-body", "model": ""}) == 1
    for arrival in arrivals.values():
        budget.end(arrival, 0)
    with pytest.raises(Overloaded):
        budget.take(2 * LARGE, 2 * LARGE)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("step", [1, 13, LARGE])
@pytest.mark.parametrize("body", [b"", b"an image" * 50, bytes(2 * PIECE), bytes(2 * PIECE + 5)])
def test_a_compressed_body_is_decompressed_in_pieces(routes: RouteTable, encoding: str, step: int, body: bytes) -> None:
    async def scenario() -> None:
        compressed = COMPRESS[encoding](body)
        headers = {"content-encoding": encoding, "content-length": str(len(compressed))}
        exchange = Exchange(routes, budget_of(), headers=headers)
        exchange.finish.set()
        for start in range(0, len(compressed), step):
            exchange.add(compressed[start : start + step])
        exchange.add(b"", more=False)
        assert await exchange.run() == 200
        assert exchange.body == body
        assert max(exchange.pieces) <= PIECE
        assert [name for name, _ in exchange.scope["headers"]] == [b"content-length"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("encoding", "body", "status", "detail"),
    [
        ("br", b"x", 415, "'br' is not supported"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), 415, "'gzip, gzip' is not supported"),
        ("gzip", b"no gzip", 400, "the body is not gzip"),
        ("deflate", gzip.compress(b"x"), 400, "the body is not deflate"),
        ("gzip", gzip.compress(b"x" * 100)[:-9], 400, "one whole gzip stream"),
        ("gzip", gzip.compress(b"x") + b"y", 400, "one whole gzip stream"),
        ("gzip", gzip.compress(bytes(LARGE + 1)), 413, "more once it is decompressed"),
        ("gzip", bytes(LARGE + 1), 413, f"a request body may have {LARGE} bytes"),
    ],
)
def test_invalid_compressed_bodies(routes: RouteTable, encoding: str, body: bytes, status: int, detail: str) -> None:
    async def scenario() -> None:
        budget = budget_of()
        exchange = Exchange(routes, budget, headers={"content-encoding": encoding})
        exchange.finish.set()
        exchange.add(body, more=False)
        assert await exchange.run() == status
        assert detail in exchange.problem["detail"]
        assert budget._held == 0
        headers = dict(exchange.sent[0]["headers"])
        assert headers.get(b"accept-encoding") == (b"gzip, deflate" if status == 415 else None)

    asyncio.run(scenario())


def test_a_disconnect_is_passed_on_while_a_body_is_decompressed(routes: RouteTable) -> None:
    received: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        received.extend([(await receive())["type"] for _ in range(3)])

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    messages = [{"type": "http.request", "body": gzip.compress(b"an image")[:-3], "more_body": True}]
    limit = BodyLimit(application, LIMITS, budget_of())
    assert respond(limit, http_scope(headers={"content-encoding": "gzip"}, routes=routes), receive) == []
    assert received == ["http.request", "http.disconnect", "http.disconnect"]


def test_a_body_is_slow_below_the_minimum_rate(clock: Clock) -> None:
    arrival = BodyArrival(20.0, 100, clock)
    parts = [{"type": "http.request", "body": b"x" * 50, "more_body": more} for more in (True, True, False)]

    async def receive() -> Any:
        return parts.pop(0)

    async def scenario() -> None:
        assert not arrival.is_slow  # the application has not asked for it yet
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
        assert arrival.is_complete
        assert not arrival.is_slow

    asyncio.run(scenario())


def test_received_bytes_extend_the_time_limit_of_a_body(clock: Clock) -> None:
    async def never() -> Any:
        await asyncio.sleep(60)

    async def at_once() -> Any:
        return {"type": "http.request", "body": b"x" * 500, "more_body": True}

    async def scenario() -> None:
        arrival = BodyArrival(20.0, 100, clock)
        await arrival.next(at_once)
        clock.now += 24.99  # 20 s, and 5 s for the bytes received
        with pytest.raises(BodyTooSlow, match="at least 100 bytes a second"):
            await asyncio.wait_for(arrival.next(never), 1)
        arrival.abort()  # has no effect: nothing waits for the body

        arrival = BodyArrival(20.0, 100, clock)
        waiting = asyncio.create_task(arrival.next(never))
        await asyncio.sleep(0)
        arrival.abort()
        with pytest.raises(BodyTooSlow, match="in favour of other requests") as caught:
            await asyncio.wait_for(waiting, 1)
        assert caught.value.headers == {"Connection": "close"}

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/verify/embeddings", "/classify", "/v2/models/lenet5-mnist/infer"])
def test_an_aborted_body_is_answered_408(service: FastAPI, path: str) -> None:
    received: list[bool] = []

    async def receive() -> Any:
        if received:
            scope["state"]["arrival"].abort()
            await asyncio.sleep(60)
        received.append(True)
        return {"type": "http.request", "body": b"{", "more_body": True}

    headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": "1000"}
    scope = http_scope(path, headers)
    start, body = respond(service, scope, receive)
    assert start["status"] == 408
    assert dict(start["headers"])[b"connection"] == b"close"
    assert b"in favour of other requests" in body["body"]


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=\"file\"; filename*=UTF-8''%e2%82%ac.jpg",
        'form-data; name="file"; filename*0="a"; filename*1=".jpg"',
        'form-data; name="file"; filename="a.jpg"; filename*=UTF-8\'\'a.jpg',
        'form-data; name="file"; filename=""',
    ],
)
def test_a_part_with_any_kind_of_file_name_is_a_file(client: TestClient, disposition: str) -> None:
    body = f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + bad_inputs.coffee() + b"\r\n--x--\r\n"
    response = client.post("/classify", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert bad_inputs.is_espresso(response), response.text


def test_too_many_parts_are_refused_before_the_end_of_the_body(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post("/classify", content=part * 65 + b"no end", headers=headers)
    assert (response.status_code, response.json()["type"]) == (413, "urn:vestibule:problem:too-many-images")


@pytest.mark.parametrize("path", ["/classify", "/denoise", "/v1/embeddings"])
@pytest.mark.parametrize("count", [65, 1025, 300_000])
def test_the_images_of_a_list_are_counted_before_they_are_decoded(client: TestClient, path: str, count: int) -> None:
    response = client.post(path, json={"input": ["!"] * count})
    assert response.status_code == 413, response.text
    assert len(response.content) < 1000


@pytest.fixture(scope="module")
def few_pixels() -> Iterator[TestClient]:
    """A client of a service that takes 500,000 pixels in one request."""
    settings = Settings(max_image_pixels=300_000, max_request_pixels=500_000, default_classifier="lenet5-mnist")
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


def test_the_images_of_a_request_share_a_budget_of_pixels(few_pixels: TestClient) -> None:
    image = bad_inputs.coffee()  # 240,000 pixels
    files = [("file", ("a.jpg", data)) for data in (image, image, b"no image", bad_inputs.png_bomb())]
    response = few_pixels.post("/classify", files=files)
    assert [("predictions" in result) for result in response.json()["data"]] == [True, True, False, False]
    response = few_pixels.post("/classify", files=[*files, files[0]])
    assert (response.status_code, response.json()["type"]) == (413, "urn:vestibule:problem:too-many-pixels")
    assert "720000 pixels; a request may have 500000" in response.json()["detail"]
    text = base64.b64encode(image).decode()
    tensor = {"name": "pictures", "shape": [3], "datatype": "BYTES", "data": [text] * 3}
    response = few_pixels.post("/v2/models/lenet5-mnist/infer", json={"inputs": [tensor]})
    assert (response.status_code, response.json()["error"].split(":")[0]) == (413, "Too many pixels in one request")
