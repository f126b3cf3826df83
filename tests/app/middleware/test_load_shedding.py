"""Places: which requests take one, that a refusal costs nothing of a body, and that every place comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.auth.scopes import Routes
from app.main import create_app
from app.middleware.load_shedding import Admission, Places, Refusal, takes_a_place
from app.observability.metrics import Metrics
from app.settings import Settings
from tests.app.conftest import BASE_URL

# What is answered without a network and without reading pictures.
LIGHT = {
    ("POST", "/verify/embeddings"),
    ("POST", "/v2/repository/index"),
    ("POST", "/models/{name}/reload"),
    ("PUT", "/collections/{collection}"),
    ("PUT", "/collections/{collection}/subjects/{subject}"),
    ("POST", "/collections/{collection}/reembed"),
}
DRAWING = {("GET", "/generate"), ("GET", "/generate/interpolate")}


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started, with one place."""
    return create_app(Settings(max_requests=1))


def test_what_carries_pictures_or_draws_takes_a_place_and_nothing_else(service: FastAPI) -> None:
    routes = [(method, one) for one in Routes(service).all for method in one.methods or ()]
    taking = {(method, one.route.path) for method, one in routes if takes_a_place(one)}
    sending = {(method, one.route.path) for method, one in routes if method in ("POST", "PUT", "PATCH")}
    assert taking == (sending - LIGHT) | DRAWING
    assert sending >= LIGHT


def ask(service: FastAPI, path: str = "/classify", **headers: str) -> tuple[dict[str, Any], bytes]:
    """The answer's start and body, by one whose body is never read."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("something was read")

    async def send(message: Any) -> None:
        sent.append(message)

    known = {"host": "127.0.0.1", "content-type": "image/png", "content-length": "1000000"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (known | headers).items()],
    }
    asyncio.run(service(scope, receive, send))
    return sent[0], sent[1]["body"]


@pytest.fixture
def full(service: FastAPI) -> Iterator[FastAPI]:
    """The same, with its place taken."""
    service.state.places.enter()
    yield service
    service.state.places.leave()


def test_a_refusal_reads_nothing_and_is_counted_as_its_routes(full: FastAPI) -> None:
    start, body = ask(full)
    headers = dict(start["headers"])
    assert start["status"] == 429
    assert headers[b"retry-after"] == b"1"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-length"] == str(len(body)).encode()
    assert json.loads(body)["type"] == "urn:vestibule:problem:overloaded"
    value = full.state.metrics.registry.get_sample_value
    assert value("vestibule_requests_total", {"route": "/classify", "method": "POST", "status": "429"}) == 1
    assert value("vestibule_shed_total", {"where": "admission", "model": ""}) == 1


def test_a_refusal_speaks_as_its_path_does_and_carries_the_callers_id(full: FastAPI) -> None:
    start, body = ask(full, "/v2/models/lenet5-mnist/infer", **{"x-request-id": "mine"})
    assert json.loads(body)["error"].startswith("The service is busy")
    assert dict(start["headers"])[b"x-request-id"] == b"mine"
    _, body = ask(full, "/v1/embeddings")
    assert json.loads(body)["message"].startswith("The service is busy")


def test_a_page_of_an_allowed_origin_may_read_a_refusal() -> None:
    service = create_app(Settings(max_requests=1, allowed_origins=["https://friend.example"]))
    service.state.places.enter()
    start, _ = ask(service, origin="https://friend.example")
    assert start["status"] == 429
    assert dict(start["headers"])[b"access-control-allow-origin"] == b"https://friend.example"
    start, _ = ask(service, origin="https://evil.example")
    assert b"access-control-allow-origin" not in dict(start["headers"])
    service.state.places.leave()


def test_refusals_are_told_of_in_one_line_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def send(message: Any) -> None:
        pass

    async def scenario() -> None:
        for _ in range(3):
            await refusal(scope, no_app, send)  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await refusal(scope, no_app, send)  # type: ignore[arg-type]
        await asyncio.sleep(0.05)

    monkeypatch.setattr("app.middleware.load_shedding.TOLD_EVERY_S", 0.01)
    settings, metrics = Settings(), Metrics()
    places = Places(1, metrics)
    refusal = Refusal(no_app, places, Routes(create_app(settings)), settings, metrics)
    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": []}
    places.enter()
    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    places.leave()
    assert [(line["event"], line["refused"]) for line in lines] == [("overloaded", 3), ("overloaded", 1)]


def test_a_full_service_still_answers_what_takes_no_place(full: FastAPI) -> None:
    client = TestClient(full, base_url=BASE_URL, raise_server_exceptions=False)
    assert client.get("/health/live").status_code == 200
    assert client.get("/models").status_code == 200
    assert client.get("/metrics").status_code == 200
    assert client.post("/no/such/path").status_code == 404


@pytest.mark.parametrize("failing", [False, True])
def test_every_place_comes_back(service: FastAPI, *, failing: bool) -> None:
    places, seen = Places(1, Metrics()), []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(places._free)
        if failing:
            raise RuntimeError

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/classify", "headers": [], "state": {}}
    admission = Admission(inner, places, Routes(service))
    for _ in range(3):
        try:
            asyncio.run(admission(scope, None, None))  # type: ignore[arg-type]
        except RuntimeError:
            assert failing
    assert seen == [0, 0, 0]
    assert places._free == 1
