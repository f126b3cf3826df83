"""Routes that are answered directly: which they are, and that nobody can tell it from their answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.responses import Response

from app.auth.scopes import Routes
from app.main import create_app
from app.middleware import fast_path
from app.settings import Settings
from tests.app.conftest import BASE_URL
from tests.conftest import encode, photo

PICTURE = encode(photo("coffee").resize((64, 64)))
FACE = encode(photo("astronaut").crop((150, 0, 300, 150)))
DIRECT = {"/classify", "/faces/detect", "/embed", "/verify", "/denoise", "/encode", "/reconstruct", "/search"}


@pytest.fixture(scope="module")
def framework() -> Iterator[TestClient]:
    """A client of a service all of whose routes are answered by the framework."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fast_path, "_is_plain", lambda one: False)
        with TestClient(create_app(Settings()), base_url=BASE_URL, raise_server_exceptions=False) as running:
            yield running


def test_which_they_are() -> None:
    service = create_app(Settings())
    assert {one.route.path for one in fast_path.Direct(service, Routes(service)).reading} == DIRECT


@pytest.mark.parametrize(("threshold_s", "thread"), [(-1.0, "decode"), (1e9, "asyncio")])
def test_the_answer_of_a_request_that_took_long_is_encoded_off_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, threshold_s: float, thread: str
) -> None:
    threads: list[str] = []
    encode_answer = fast_path._json

    def recorded(answer: BaseModel) -> Response:
        threads.append(threading.current_thread().name)
        return encode_answer(answer)

    monkeypatch.setattr(fast_path, "_json", recorded)
    monkeypatch.setattr(fast_path, "LONG_S", threshold_s)
    answer = client.post("/classify?top_k=2", content=PICTURE, headers={"content-type": "image/png"})
    assert len(answer.json()["data"][0]["predictions"]) == 2
    assert [name.partition("_")[0].partition("-")[0] for name in threads] == [thread]


def told(client: TestClient, method: str, path: str, **sent: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of an answer, without what differs from one to the next."""
    answer = client.request(method, path, **sent)
    headers = {name: answer.headers[name] for name in answer.headers if name not in ("x-request-id", "server-timing")}
    return answer.status_code, headers, answer.content


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
@pytest.mark.parametrize("body", [PICTURE, PICTURE[:100], b"", b"no picture"])
def test_classifying_is_answered_alike(client: TestClient, framework: TestClient, query: str, body: bytes) -> None:
    sent: dict[str, Any] = {"content": body, "headers": {"content-type": "image/png"}}
    assert told(client, "POST", "/classify" + query, **sent) == told(framework, "POST", "/classify" + query, **sent)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/faces/detect", "image/png"),
        ("/faces/detect?min_confidence=2", "image/png"),
        ("/embed", "image/png"),
        ("/embed", "text/plain"),
        ("/denoise", "image/png"),
        ("/denoise?model=vgg-cifar10", "image/png"),
        ("/encode", "image/png"),
        ("/reconstruct", "image/png"),
        ("/search?collection=no-such", "image/png"),
        ("/search", "image/png"),
        ("/verify", "image/png"),
        ("/classify/", "image/png"),
        ("/classify", "application/json"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "OPTIONS", "PUT"])
def test_whatever_is_asked_is_answered_alike(
    client: TestClient, framework: TestClient, method: str, path: str, kind: str
) -> None:
    body = json.dumps({"input": "x"}).encode() if kind == "application/json" else FACE
    sent: dict[str, Any] = {"content": body, "headers": {"content-type": kind}}
    mine, theirs = told(client, method, path, **sent), told(framework, method, path, **sent)
    assert mine == theirs


def test_a_long_query_is_read_like_a_short_one(client: TestClient) -> None:
    query = "/classify?top_k=2&model=lenet5-mnist&" + "tta=false&" * 40
    answers = [client.post(path, content=PICTURE, headers={"content-type": "image/png"}) for path in (query, query)]
    assert [len(answer.json()["data"][0]["predictions"]) for answer in answers] == [2, 2]


def test_what_goes_wrong_inside_is_a_500_as_elsewhere(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("not told to anybody")

    monkeypatch.setattr(client.app.state.classification, "classify", broken)  # type: ignore[attr-defined]
    answer = client.post("/classify", content=PICTURE, headers={"content-type": "image/png"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "not told" not in answer.text
