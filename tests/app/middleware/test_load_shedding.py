"""Capacity: the requests that use it, the cost of a refusal, and its release."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import create_app
from app.middleware.load_shedding import Capacity, CapacityGuard, LoadShedding
from app.middleware.request_body import BodyArrival
from app.middleware.routing import RouteTable
from app.observability.metrics import Metrics
from app.settings import Settings
from tests.app.asgi import http_scope, no_body, respond
from tests.app.conftest import BASE_URL, Clock

# Routes that run no network and decode no image.
LIGHT = {
    ("POST", "/verify/embeddings"),
    ("POST", "/v2/repository/index"),
    ("POST", "/models/{name}/reload"),
    ("PUT", "/collections/{collection}"),
    ("PUT", "/collections/{collection}/subjects/{subject}"),
    ("POST", "/collections/{collection}/reembed"),
    ("POST", "/collections/{collection}/subjects/{subject}/merge"),
    ("POST", "/collections/{collection}/merges/{merge}/undo"),
    ("POST", "/collections/{collection}/faces/move"),
    ("POST", "/collections/{collection}/calibrations"),
    ("PUT", "/collections/{collection}/calibration"),
    ("PUT", "/collections/{collection}/sighting-settings"),
    ("POST", "/search/embeddings"),
    ("POST", "/alerts/rules"),
    ("PUT", "/alerts/rules/{rule}"),
    ("POST", "/alerts/{alert}/resend"),
}
HEADERS = {"host": "127.0.0.1", "content-length": "1000000"}
ARRIVAL = BodyArrival(20.0, 100)
GENERATING = {("GET", "/generate"), ("GET", "/generate/interpolate")}


@pytest.fixture(scope="module")
def service() -> FastAPI:
    """The service, not started, for one request at once."""
    return create_app(Settings(max_requests=1))


@pytest.fixture
def full(service: FastAPI) -> Iterator[FastAPI]:
    """The same service with one request in progress."""
    service.state.capacity.acquire(ARRIVAL)
    yield service
    service.state.capacity.release(ARRIVAL)


def ask(
    service: FastAPI, path: str = "/classify", headers: dict[str, str] | None = None
) -> tuple[dict[bytes, bytes], Any]:
    """Return the headers and body of the 429 of `CapacityGuard` to a request whose body is not read."""
    start, body = respond(service, http_scope(path, HEADERS | (headers or {})))
    assert start["status"] == 429
    return dict(start["headers"]), json.loads(body["body"])


def test_routes_that_count_toward_capacity(service: FastAPI) -> None:
    routes = [(method, route) for route in RouteTable(service).all for method in route.methods or ()]
    counted = {(method, route.route.path) for method, route in routes if route.counts_toward_capacity}
    sending = {(method, route.route.path) for method, route in routes if method in ("POST", "PUT", "PATCH")}
    assert counted == (sending - LIGHT) | GENERATING
    assert sending >= LIGHT


def test_a_refusal_does_not_read_the_body_and_is_counted_for_its_route(full: FastAPI) -> None:
    headers, body = ask(full)
    assert headers[b"retry-after"] == b"1"
    assert headers[b"cache-control"] == b"no-store"
    assert body["type"] == "urn:vestibule:problem:overloaded"
    value = full.state.metrics.registry.get_sample_value
    assert value("vestibule_requests_total", {"route": "/classify", "method": "POST", "status": "429"}) == 1
    assert value("vestibule_shed_total", {"where": "admission", "model": ""}) == 1


def test_a_refusal_has_the_format_of_its_path_and_the_request_id(full: FastAPI) -> None:
    headers, body = ask(full, "/v2/models/lenet5-mnist/infer", {"x-request-id": "mine"})
    assert body["error"].startswith("The service is busy")
    assert headers[b"x-request-id"] == b"mine"
    assert ask(full, "/v1/embeddings")[1]["message"].startswith("The service is busy")


def test_refusals_are_logged_as_a_count(service: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        for _ in range(3):
            assert shedding.refusal(http_scope()) is not None
        await asyncio.sleep(0.05)
        assert shedding.refusal(http_scope()) is not None
        await asyncio.sleep(0.05)

    monkeypatch.setattr("app.middleware.load_shedding.LOG_INTERVAL_S", 0.01)
    shedding = LoadShedding(Capacity(0, Metrics()), RouteTable(service), Settings(), Metrics())
    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert [(line["event"], line["refused"]) for line in lines] == [("overloaded", 3), ("overloaded", 1)]


def test_heads_that_are_read_before_their_tasks_run_get_no_more_than_the_capacity(service: FastAPI) -> None:
    capacity = Capacity(2, Metrics())
    shedding = LoadShedding(capacity, RouteTable(service), Settings(), Metrics())
    statuses: list[int] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    guard = CapacityGuard(endpoint, capacity, Metrics())

    async def scenario() -> None:
        scopes = [http_scope(routes=RouteTable(service)) for _ in range(5)]
        for scope in scopes:
            scope["state"]["arrival"] = BodyArrival(20.0, 100)
        started = [scope for scope in scopes if shedding.refusal(scope) is None]
        assert len(started) == 2
        tasks = [asyncio.create_task(guard(scope, no_body, send)) for scope in started]
        await asyncio.sleep(0)
        assert shedding.refusal(http_scope()) is not None
        await asyncio.gather(*tasks)
        assert not statuses  # the guard refused neither
        # Not started after all, as a request without a key: the capacity is free again.
        assert [shedding.refusal(http_scope()) is None for _ in range(3)] == [True, True, False]
        await asyncio.sleep(0)
        assert shedding.refusal(http_scope()) is None

    asyncio.run(scenario())


def test_routes_without_capacity_are_answered_when_it_is_exhausted(full: FastAPI) -> None:
    client = TestClient(full, base_url=BASE_URL, raise_server_exceptions=False)
    for path in ("/health/live", "/models", "/metrics"):
        assert client.get(path).status_code == 200
    assert client.post("/no/such/path").status_code == 404


@pytest.mark.parametrize("failing", [False, True])
def test_capacity_is_released_after_each_request(service: FastAPI, *, failing: bool) -> None:
    capacity, seen = Capacity(1, Metrics()), []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        seen.append(capacity.is_exhausted)
        if failing:
            raise RuntimeError

    for _ in range(3):
        try:
            scope = http_scope(routes=RouteTable(service))
            scope["state"]["arrival"] = ARRIVAL
            respond(CapacityGuard(endpoint, capacity, Metrics()), scope)
        except RuntimeError:
            assert failing
    assert seen == [True] * 3
    assert not capacity.is_exhausted


def test_at_capacity_a_slow_body_is_aborted_and_no_other(clock: Clock) -> None:
    capacity = Capacity(2, Metrics(), clock)
    slow, complete = BodyArrival(20.0, 100, clock), BodyArrival(20.0, 100, clock)
    for arrival in (complete, slow):
        arrival._started = clock.now
        capacity.acquire(arrival)
    assert capacity.is_exhausted
    complete.is_complete = True
    assert capacity.is_exhausted
    clock.now += 10
    assert not capacity.is_exhausted
    capacity.acquire(ARRIVAL)
    assert (slow._aborted, complete._aborted) == (True, False)
    assert capacity.is_exhausted  # the aborted request has not ended yet
    capacity.release(slow)
    assert capacity.is_exhausted
    capacity.release(complete)
    assert not capacity.is_exhausted
