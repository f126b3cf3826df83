"""Places: which requests take one, that a refusal costs nothing of a body, and that every place comes back."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.admission import _MARK, CROWDED_TURN_S, Admission, Places
from app.errors import Overloaded
from app.main import create_app
from app.metrics import Metrics
from app.scopes import Routes
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
    taking = {(method, one.route.path) for method, one in routes if getattr(one.route.endpoint, _MARK, False)}
    sending = {(method, one.route.path) for method, one in routes if method in ("POST", "PUT", "PATCH")}
    assert taking == (sending - LIGHT) | DRAWING
    assert sending >= LIGHT


def test_a_refusal_reads_nothing_and_is_counted_as_its_routes(service: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("something was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/classify",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"image/png"), (b"content-length", b"1000000")],
    }
    service.state.places.enter()
    asyncio.run(service(scope, receive, send))
    service.state.places.leave()
    assert sent[0]["status"] == 429
    assert (b"retry-after", b"1") in sent[0]["headers"]
    value = service.state.metrics.registry.get_sample_value
    assert value("vestibule_requests_total", {"route": "/classify", "method": "POST", "status": "429"}) == 1
    assert value("vestibule_shed_total", {"where": "admission", "model": ""}) == 1


def test_while_requests_are_refused_threads_have_shorter_turns() -> None:
    places, usual = Places(2, Metrics()), sys.getswitchinterval()
    places.enter()
    places.enter()
    for _ in range(2):
        with pytest.raises(Overloaded):
            places.enter()
    assert sys.getswitchinterval() == pytest.approx(CROWDED_TURN_S, abs=1e-6)
    places.leave()
    assert sys.getswitchinterval() < usual
    places.leave()
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_a_full_service_still_answers_what_takes_no_place(service: FastAPI) -> None:
    client = TestClient(service, base_url=BASE_URL, raise_server_exceptions=False)
    service.state.places.enter()
    assert client.get("/health/live").status_code == 200
    assert client.get("/models").status_code == 200
    assert client.get("/metrics").status_code == 200
    assert client.post("/no/such/path").status_code == 404
    service.state.places.leave()


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
