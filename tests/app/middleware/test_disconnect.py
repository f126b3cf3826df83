"""Clients that disconnect: with real sockets, and with ASGI messages."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.main import create_app
from app.middleware.disconnect import Disconnect
from app.settings import Settings
from tests.app.asgi import http_scope, respond
from tests.app.conftest import until
from tests.app.threaded import serving_app
from tests.app.tiny_model import GatedRuntime, tiny_model
from tests.conftest import encode, photo


def test_work_of_a_closed_connection_is_not_computed_and_its_capacity_is_released(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    app = create_app(Settings(weights=tmp_path, default_classifier="tiny", state=tmp_path / "state"))
    image = encode(photo("coffee"))
    statuses: list[int] = []

    def value(name: str, **labels: str) -> float:
        return float(app.state.metrics.registry.get_sample_value(name, labels) or 0)

    def ask() -> None:
        response = httpx.post(f"{url}/classify", content=image, headers={"content-type": "image/png"})
        statuses.append(response.status_code)

    with serving_app(app) as url:
        host, port = "127.0.0.1", urlsplit(url).port
        runtime = GatedRuntime("blocked")
        app.state.model_manager.cache.submodels("tiny")[0].runtime = runtime
        staying = threading.Thread(target=ask)
        staying.start()
        assert runtime.entered.wait(20)
        with socket.create_connection((host, port)) as leaving:
            head = f"POST /classify HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: image/png\r\n"
            leaving.sendall(f"{head}content-length: {len(image)}\r\n\r\n".encode() + image)
            until(lambda: value("vestibule_queue_depth", model="tiny") == 2)
            assert value("vestibule_requests_in_flight") == 2
        until(lambda: value("vestibule_queue_depth", model="tiny") == 1)  # while the other is still computed
        assert value("vestibule_requests_in_flight") == 1
        assert value("vestibule_cancelled_total", model="tiny") == 1
        assert value("vestibule_requests_total", route="/classify", method="POST", status="499") == 1
        runtime.gate.set()
        staying.join()
    assert statuses == [200]
    assert len(runtime.batches) == 1


LENGTH = {"content-length": "4"}
PARTS: list[Message] = [
    {"type": "http.request", "body": b"ab", "more_body": True},
    {"type": "http.request", "body": b"cd", "more_body": False},
]
DISCONNECT: Message = {"type": "http.disconnect"}


def run(app: ASGIApp, headers: dict[str, str], messages: list[Message]) -> list[Message]:
    """Return the response to a client that sends these messages and then nothing."""
    remaining = list(messages)

    async def receive() -> Message:
        if not remaining:
            await asyncio.Event().wait()
        return remaining.pop(0)

    return respond(Disconnect(app), http_scope(headers=headers), receive)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


@pytest.mark.parametrize(
    ("headers", "messages", "body"),
    [(LENGTH, PARTS, b"abcd"), ({"transfer-encoding": "chunked"}, PARTS, b"abcd"), ({}, [], b"")],
)
def test_a_body_is_passed_on_unchanged(headers: dict[str, str], messages: list[Message], body: bytes) -> None:
    assert [message.get("body") for message in run(echo, headers, messages)] == [None, body]


def test_a_body_is_not_read_before_the_application_asks_for_it() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.01)
        await PlainTextResponse("full", 429)(scope, receive, send)

    assert respond(Disconnect(refuse), http_scope(headers=LENGTH))[0]["status"] == 429


@pytest.mark.parametrize(("headers", "before"), [(LENGTH, PARTS), ({}, []), ({"content-length": "0"}, [])])
def test_work_is_cancelled_when_the_client_disconnects(headers: dict[str, str], before: list[Message]) -> None:
    cleaned: list[str] = []

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("place")

    assert run(work, headers, [*before, DISCONNECT]) == []
    assert cleaned == ["place"]


def test_an_application_that_waits_for_the_disconnect_receives_it() -> None:
    received: list[Message] = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            received.append(await receive())
            raise

    run(wait, LENGTH, [*PARTS, DISCONNECT])
    assert received == [DISCONNECT]


def test_work_after_the_response_is_not_cancelled() -> None:
    finished: list[bool] = []

    async def tidy_up(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        await asyncio.sleep(0.01)
        finished.append(True)

    run(tidy_up, LENGTH, [*PARTS, DISCONNECT])
    assert finished == [True]


def test_exceptions_and_cancellation_by_the_server_pass_through() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("unchanged")

    with pytest.raises(RuntimeError, match="unchanged"):
        run(fail, {}, [])

    ended: list[bool] = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def scenario() -> None:
        async def never(*_: Message) -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        request = asyncio.create_task(Disconnect(wait)(http_scope(), never, never))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()

    asyncio.run(scenario())
    assert ended == [True]
