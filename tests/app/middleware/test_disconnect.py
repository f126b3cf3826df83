"""Clients that leave: by real sockets that are closed, and message by message."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from torch import Tensor

from app.main import create_app
from app.middleware.disconnect import Departure
from app.settings import Settings
from tests.app.tiny_model import tiny_model
from tests.conftest import encode, photo


class Gated:
    """Answers nothing before it is let; it counts what it is asked for."""

    name, size = "gated", 0

    def __init__(self) -> None:
        self.entered, self.gate = threading.Event(), threading.Event()
        self.computed = 0

    def __call__(self, batch: Tensor) -> Tensor:
        self.computed += len(batch)
        self.entered.set()
        assert self.gate.wait(20)
        return torch.zeros(len(batch), 10)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """A server in a thread of this process: its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_closes_its_socket_is_not_computed_and_its_places_are_free(tmp_path: Path) -> None:
    tiny_model(tmp_path)
    app = create_app(Settings(weights=tmp_path, default_classifier="tiny", state=tmp_path / "state"))
    picture = encode(photo("coffee"))
    answers: list[int] = []

    def figure(name: str, **labels: str) -> float:
        return float(app.state.metrics.registry.get_sample_value(name, labels) or 0)

    def ask() -> None:
        response = httpx.post(
            f"http://127.0.0.1:{port}/classify", content=picture, headers={"content-type": "image/png"}
        )
        answers.append(response.status_code)

    with listening(app) as port:
        runtime = Gated()
        app.state.model_manager.cache.submodels("tiny")[0].set_runtime(runtime)
        stays = threading.Thread(target=ask)
        stays.start()
        assert runtime.entered.wait(20)
        with socket.create_connection(("127.0.0.1", port)) as leaves:
            head = f"POST /classify HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: image/png\r\n"
            leaves.sendall(f"{head}content-length: {len(picture)}\r\n\r\n".encode() + picture)
            until(lambda: figure("vestibule_queue_depth", model="tiny") == 2)
            assert figure("vestibule_requests_in_flight") == 2
        until(lambda: figure("vestibule_queue_depth", model="tiny") == 1)  # though the other is computed still
        assert figure("vestibule_requests_in_flight") == 1
        assert figure("vestibule_cancelled_total", model="tiny") == 1
        assert figure("vestibule_requests_total", route="/classify", method="POST", status="499") == 1
        runtime.gate.set()
        stays.join()
    assert answers == [200]
    assert runtime.computed == 1


def run(
    app: Callable[[Scope, Receive, Send], object], headers: dict[str, str], messages: list[Message]
) -> list[Message]:
    """What is answered to a client that sends these messages, and after the last one nothing."""
    sent: list[Message] = []
    waiting = iter(messages)

    async def receive() -> Message:
        for message in waiting:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(asyncio.wait_for(Departure(app)(scope, receive, send), 10))  # type: ignore[arg-type]
    return sent


LENGTH = {"content-length": "4"}
PARTS: list[Message] = [
    {"type": "http.request", "body": b"ab", "more_body": True},
    {"type": "http.request", "body": b"cd", "more_body": False},
]
GONE: Message = {"type": "http.disconnect"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)


def test_a_body_arrives_as_it_was_sent() -> None:
    assert [message.get("body") for message in run(echo, LENGTH, PARTS)] == [None, b"abcd"]
    assert [message.get("body") for message in run(echo, {"transfer-encoding": "chunked"}, PARTS)] == [None, b"abcd"]
    assert [message.get("body") for message in run(echo, {}, [])] == [None, b""]


def test_no_body_is_read_before_it_is_asked_for() -> None:
    waiting = list(PARTS)

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.01)
        assert len(waiting) == 2
        await PlainTextResponse("full", 429)(scope, receive, send)

    async def receive() -> Message:
        return waiting.pop(0)

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": [(b"content-length", b"4")]}
    asyncio.run(Departure(refuses)(scope, receive, send))
    assert sent[0]["status"] == 429
    assert waiting == PARTS


@pytest.mark.parametrize(("headers", "before"), [(LENGTH, PARTS), ({}, []), ({"content-length": "0"}, [])])
def test_work_ends_where_the_client_leaves(headers: dict[str, str], before: list[Message]) -> None:
    cleaned: list[str] = []

    async def works(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append("place")

    assert run(works, headers, [*before, GONE]) == []
    assert cleaned == ["place"]


def test_who_listens_for_it_itself_is_told() -> None:
    async def listens(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append(await receive())
            raise

    told: list[Message] = []
    run(listens, LENGTH, [*PARTS, GONE])
    assert told == [GONE]


def test_what_follows_the_answer_is_not_cancelled() -> None:
    done: list[str] = []

    async def tidies(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        await asyncio.sleep(0.01)
        done.append("tidied")

    run(tidies, LENGTH, [*PARTS, GONE])
    assert done == ["tidied"]


def test_errors_and_a_service_that_stops_pass_through() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("as it is")

    with pytest.raises(RuntimeError, match="as it is"):
        run(fails, {}, [])

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def stopped() -> None:
        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            raise AssertionError

        request = asyncio.create_task(Departure(waits)({"type": "http", "headers": []}, receive, send))
        await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        await asyncio.sleep(0)

    ended: list[bool] = []
    asyncio.run(stopped())
    assert ended == [True]
