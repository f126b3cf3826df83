"""The fast path: the routes that it calls, and that it responds as FastAPI does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.responses import Response

from app.main import create_app
from app.middleware import routing
from app.middleware.routing import FastPath, RouteTable
from app.settings import Settings
from tests.app.conftest import BASE_URL
from tests.conftest import encode, photo

IMAGE = encode(photo("coffee").resize((64, 64)))
FACE = encode(photo("astronaut").crop((150, 0, 300, 150)))
FAST = {"/classify", "/faces/detect", "/embed", "/verify", "/denoise", "/encode", "/reconstruct", "/search"} | {
    "/cluster/embeddings"
}


@pytest.fixture(scope="module")
def framework() -> Iterator[TestClient]:
    """A client of a service without the fast path."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(routing, "_is_eligible", lambda route: False)
        with TestClient(create_app(Settings()), base_url=BASE_URL, raise_server_exceptions=False) as running:
            yield running


def test_fast_path_has_the_expected_routes() -> None:
    service = create_app(Settings())
    assert {route.route.path for route in FastPath(service, RouteTable(service)).query_readers} == FAST


def test_the_route_of_a_request_is_looked_up_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    def find(self: RouteTable, scope: Any) -> Any:
        paths.append(scope["path"])
        return original(self, scope)

    original = RouteTable.find
    monkeypatch.setattr(RouteTable, "find", find)
    client.post("/classify?top_k=1", content=IMAGE, headers={"content-type": "image/png"})
    client.get("/models")
    assert paths == ["/classify", "/models"]


@pytest.mark.parametrize(("threshold_s", "thread"), [(-1.0, "decode"), (1e9, "asyncio")])
def test_the_response_of_a_long_request_is_serialised_off_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, threshold_s: float, thread: str
) -> None:
    threads: list[str] = []
    serialise = routing._json_response

    def recorded(result: BaseModel) -> Response:
        threads.append(threading.current_thread().name)
        return serialise(result)

    monkeypatch.setattr(routing, "_json_response", recorded)
    monkeypatch.setattr(routing, "LONG_S", threshold_s)
    response = client.post("/classify?top_k=2", content=IMAGE, headers={"content-type": "image/png"})
    assert len(response.json()["data"][0]["predictions"]) == 2
    assert [name.partition("_")[0].partition("-")[0] for name in threads] == [thread]


def response_of(client: TestClient, method: str, url: str, body: bytes, kind: str) -> tuple[int, Any, bytes]:
    """Return status, headers and body without what differs from one response to the next."""
    response = client.request(method, url, content=body, headers={"content-type": kind})
    headers = {name: text for name, text in response.headers.items() if name not in ("x-request-id", "server-timing")}
    return response.status_code, headers, response.content


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?top_k=3&model=lenet5-mnist",
        "?top_k=0",
        "?top_k=2&top_k=3",
        "?top_k=x&tta=perhaps",
        "?colour=red&colour=blue",
        "?model=",
        "?model=no-such",
        "?model=%ff%00",
        "?tta=1&model=vgg-cifar10",
        "?" + "&".join(f"x{number}=1" for number in range(50)),
    ],
)
@pytest.mark.parametrize("body", [IMAGE, IMAGE[:100], b"", b"no image"])
def test_classify_responds_as_the_framework_does(
    client: TestClient, framework: TestClient, query: str, body: bytes
) -> None:
    request = ("POST", "/classify" + query, body, "image/png")
    assert response_of(client, *request) == response_of(framework, *request)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        *((path, "image/png") for path in sorted(FAST - {"/classify"})),
        ("/faces/detect?min_confidence=2", "image/png"),
        ("/embed", "text/plain"),
        ("/denoise?model=vgg-cifar10", "image/png"),
        ("/search?collection=no-such", "image/png"),
        ("/classify/", "image/png"),
        ("/classify", "application/json"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS", "PUT"])
def test_every_route_responds_as_the_framework_does(
    client: TestClient, framework: TestClient, method: str, url: str, kind: str
) -> None:
    request = (method, url, b'{"input": "x"}' if kind == "application/json" else FACE, kind)
    assert response_of(client, *request) == response_of(framework, *request)


def test_a_query_too_long_for_the_cache_is_parsed_as_a_short_one(client: TestClient) -> None:
    url = "/classify?top_k=2&model=lenet5-mnist&" + "tta=false&" * 40
    for _ in range(2):
        response = client.post(url, content=IMAGE, headers={"content-type": "image/png"})
        assert len(response.json()["data"][0]["predictions"]) == 2
