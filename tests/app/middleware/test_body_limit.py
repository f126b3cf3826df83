"""Bodies: how much of one is read, how much all may hold, and the encodings that are undone."""

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

from app.auth.scopes import Routes
from app.errors import BadRequest, Overloaded
from app.main import create_app
from app.middleware.body_limit import BUSY_RATE, PIECE, SMALL_BODY, BodyBudget, BodyLimit
from app.middleware.body_timeout import GRACE_S, Arrival
from app.observability.metrics import Metrics
from app.settings import Settings
from tests.app import bad_inputs
from tests.app.conftest import BASE_URL

LARGE = 8 * 2**20
PICTURES, PLAIN = "/classify", "/generate"


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started."""
    return create_app(Settings())


class Exchange:
    """One request through `BodyLimit` to an application that holds all of its body until it is let go."""

    def __init__(self, service: FastAPI, budget: BodyBudget, path: str = PICTURES, **headers: str):
        self.limit = BodyLimit(self._application, Routes(service), LARGE, budget)
        self.sent: list[Any] = []
        self.body = b""
        self.pieces: list[int] = []
        self.let_go = asyncio.Event()
        self.whole = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }

    def add(self, body: bytes, *, more: bool = True) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def run(self) -> int:
        """The status of the answer."""
        await self.limit(self.scope, self._messages.get, self._send)
        return int(self.sent[0]["status"])

    @property
    def problem(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sent[1]["body"])
        return found

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            self.body += message["body"]
            self.pieces.append(len(message["body"]))
            more = message["more_body"]
        self.whole.set()
        await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def budget_of(limit: int = 4 * LARGE) -> BodyBudget:
    return BodyBudget(limit, LARGE, Metrics())


@pytest.mark.parametrize(("path", "limit"), [(PICTURES, LARGE), (PLAIN, SMALL_BODY), ("/no/such/route", SMALL_BODY)])
@pytest.mark.parametrize("declared", [True, False])
def test_a_route_without_pictures_takes_a_small_body_only(
    service: FastAPI, path: str, limit: int, *, declared: bool
) -> None:
    async def scenario(size: int) -> int:
        budget = budget_of()
        exchange = Exchange(service, budget, path, **({"content_length": str(size)} if declared else {}))
        exchange.let_go.set()
        for start in range(0, size, PIECE):
            exchange.add(bytes(min(PIECE, size - start)))
        exchange.add(b"", more=False)
        status = await exchange.run()
        assert budget._held == 0
        assert len(exchange.sent) == 2
        assert status == 200 or exchange.problem["detail"] == f"a request may have {limit} bytes"
        return status

    assert asyncio.run(scenario(limit)) == 200
    assert asyncio.run(scenario(limit + 1)) == 413


def test_large_bodies_share_a_budget_and_leave_room_for_small_ones(service: FastAPI) -> None:
    async def scenario() -> None:
        budget = budget_of()
        held = [Exchange(service, budget) for _ in range(3)]
        tasks = [asyncio.create_task(exchange.run()) for exchange in held]
        for exchange in held:
            exchange.add(bytes(LARGE), more=False)
            await exchange.whole.wait()
        assert budget._held == 3 * LARGE

        for headers in ({}, {"content_length": str(LARGE)}):
            another = Exchange(service, budget, **headers)
            another.add(bytes(2 * SMALL_BODY), more=False)
            assert await another.run() == 429
            assert another.problem["type"] == "urn:vestibule:problem:overloaded"
            assert dict(another.sent[0]["headers"])[b"retry-after"] == b"1"
            assert another.body == b""
        small = Exchange(service, budget)
        small.add(bytes(SMALL_BODY), more=False)
        small.let_go.set()
        assert await small.run() == 200

        held[0].let_go.set()
        assert await tasks[0] == 200
        another = Exchange(service, budget)
        another.add(bytes(LARGE), more=False)
        another.let_go.set()
        assert await another.run() == 200
        for exchange in held:
            exchange.let_go.set()
        await asyncio.gather(*tasks)
        assert budget._held == 0

    asyncio.run(scenario())


def test_a_cancelled_request_gives_its_bytes_back(service: FastAPI) -> None:
    async def scenario() -> None:
        budget = budget_of()
        exchange = Exchange(service, budget)
        task = asyncio.create_task(exchange.run())
        exchange.add(bytes(1000))
        await asyncio.sleep(0.01)
        assert budget._held == 1000
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget._held == 0

    asyncio.run(scenario())


def test_a_budget_is_never_smaller_than_two_bodies() -> None:
    budget = BodyBudget(1, LARGE, Metrics())
    budget.take(LARGE, LARGE)
    with pytest.raises(Overloaded):
        budget.take(LARGE, LARGE)


def test_where_there_is_no_room_the_slowest_body_gives_way() -> None:
    now = 1000.0
    metrics = Metrics()
    budget = BodyBudget(1, LARGE, metrics)
    arrivals = {name: Arrival(20.0, 100, lambda: now) for name in ("slow", "slower", "fast", "whole", "not begun")}
    for name, arrival in arrivals.items():
        budget.begin(arrival)
        if name != "not begun":
            arrival._started = now
    arrivals["slow"]._received, arrivals["slower"]._received = 2000, 1000
    arrivals["fast"]._received = 11 * BUSY_RATE
    arrivals["whole"].is_whole = True
    now += 10 + GRACE_S
    with pytest.raises(Overloaded):
        budget.take(2 * LARGE, 2 * LARGE)
    assert {name for name, arrival in arrivals.items() if arrival._over} == {"slower"}
    value = metrics.registry.get_sample_value
    assert value("vestibule_shed_total", {"where": "body-bytes", "model": ""}) == 1
    assert value("vestibule_shed_total", {"where": "slow-body", "model": ""}) == 1
    for arrival in arrivals.values():
        budget.end(arrival, 0)
    with pytest.raises(Overloaded):
        budget.take(2 * LARGE, 2 * LARGE)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("step", [1, 13, LARGE])
@pytest.mark.parametrize("body", [b"", b"a picture" * 50, bytes(2 * PIECE), bytes(2 * PIECE + 5)])
def test_a_packed_body_is_unpacked_a_piece_at_a_time(service: FastAPI, encoding: str, step: int, body: bytes) -> None:
    async def scenario() -> None:
        packed = PACKED[encoding](body)
        exchange = Exchange(service, budget_of(), content_encoding=encoding, content_length=str(len(packed)))
        exchange.let_go.set()
        for start in range(0, len(packed), step):
            exchange.add(packed[start : start + step])
        exchange.add(b"", more=False)
        assert await exchange.run() == 200
        assert exchange.body == body
        assert max(exchange.pieces) <= PIECE
        assert [name for name, _ in exchange.scope["headers"]] == [b"content-length"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("encoding", "body", "status", "told"),
    [
        ("br", b"x", 415, "'br' is not read"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), 415, "'gzip, gzip' is not read"),
        ("gzip", b"no gzip", 400, "the body is not gzip"),
        ("deflate", gzip.compress(b"x"), 400, "the body is not deflate"),
        ("gzip", gzip.compress(b"x" * 100)[:-9], 400, "one whole gzip stream"),
        ("gzip", gzip.compress(b"x") + b"y", 400, "one whole gzip stream"),
        ("gzip", gzip.compress(bytes(LARGE + 1)), 413, "more when it is unpacked"),
        ("gzip", bytes(LARGE + 1), 413, f"a request may have {LARGE} bytes"),
    ],
)
def test_a_packed_body_that_goes_wrong(service: FastAPI, encoding: str, body: bytes, status: int, told: str) -> None:
    async def scenario() -> None:
        budget = budget_of()
        exchange = Exchange(service, budget, content_encoding=encoding)
        exchange.let_go.set()
        exchange.add(body, more=False)
        assert await exchange.run() == status
        assert told in exchange.problem["detail"]
        assert budget._held == 0
        headers = dict(exchange.sent[0]["headers"])
        assert headers.get(b"accept-encoding") == (b"gzip, deflate" if status == 415 else None)

    asyncio.run(scenario())


def test_a_client_that_leaves_is_told_of_also_where_its_body_is_packed(service: FastAPI) -> None:
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"] for _ in range(3)])
        raise BadRequest("it left")

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    packed = gzip.compress(b"a picture")
    messages = [{"type": "http.request", "body": packed[:-3], "more_body": True}]
    scope = {"type": "http", "method": "POST", "path": PICTURES, "headers": [(b"content-encoding", b"gzip")]}
    limit = BodyLimit(application, Routes(service), LARGE, budget_of())
    asyncio.run(limit(scope, receive, None))  # type: ignore[arg-type]
    assert seen == ["http.request", "http.disconnect", "http.disconnect"]


def test_every_kind_of_body_may_be_packed(client: TestClient) -> None:
    picture = bad_inputs.coffee()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(json.dumps({"input": base64.b64encode(picture).decode()}).encode())
    assert bad_inputs.is_espresso(client.post("/classify", content=body, headers=headers))
    latents = gzip.compress(json.dumps({"model": "cvae-mnist", "latents": [[0.0]]}).encode())
    answer = client.post("/generate", content=latents, headers=headers)
    assert answer.json()["type"] == "urn:vestibule:problem:unprocessable", answer.text


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
    answer = client.post("/classify", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert bad_inputs.is_espresso(answer), answer.text


def test_of_too_many_parts_none_is_kept(client: TestClient) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/classify", content=part * 65 + b"no end", headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:vestibule:problem:too-many-images")


@pytest.mark.parametrize("path", ["/classify", "/denoise", "/v1/embeddings"])
def test_a_list_of_more_pictures_than_a_request_may_have_is_counted_first(client: TestClient, path: str) -> None:
    for count, status in ((65, 413), (1025, 413), (300_000, 413)):
        answer = client.post(path, json={"input": ["!"] * count})
        assert answer.status_code == status, answer.text
        assert len(answer.content) < 1000


@pytest.fixture(scope="module")
def few_pixels() -> Iterator[TestClient]:
    """A client of a service that takes 500,000 pixels in one request."""
    settings = Settings(max_image_pixels=300_000, max_request_pixels=500_000, default_classifier="lenet5-mnist")
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


def test_the_pictures_of_a_request_share_a_budget_of_pixels(few_pixels: TestClient) -> None:
    picture = bad_inputs.coffee()  # of 240,000
    files = [("file", ("a.jpg", data)) for data in (picture, picture, b"no picture", bad_inputs.png_bomb())]
    answer = few_pixels.post("/classify", files=files)
    assert [("predictions" in one) for one in answer.json()["data"]] == [True, True, False, False]
    answer = few_pixels.post("/classify", files=[*files, files[0]])
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:vestibule:problem:too-many-pixels")
    assert "720000 pixels; a request may have 500000" in answer.json()["detail"]
    text = base64.b64encode(picture).decode()
    tensor = {"name": "pictures", "shape": [3], "datatype": "BYTES", "data": [text] * 3}
    answer = few_pixels.post("/v2/models/lenet5-mnist/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (413, "Too many pixels in one request")
