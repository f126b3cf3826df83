"""Requests of the client: keys, names, retries, timeouts and errors, with scripted responses."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import vestibule_client as vestibule
from vestibule_client import AsyncClient, Client, Retries
from vestibule_client import client as module
from vestibule_client.pictures import parts

URL = "http://service:8000"
LIVE = httpx.Response(200, json={"status": "live"})


class Scripted:
    """Returns these responses in order, and records the requests."""

    def __init__(self, *responses: httpx.Response | Exception):
        self._responses = list(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)


def client(scripted: Scripted, **options: Any) -> Client:
    return Client(URL, transport=httpx.MockTransport(scripted), **options)


def problem(status: int, name: str = "some", headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"type": f"urn:vestibule:problem:{name}", "title": "Some title", "status": status, "detail": "some detail"}
    return httpx.Response(status, json=body, headers={"x-request-id": "abc", **(headers or {})})


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the clients in seconds, which are not slept."""
    waits: list[float] = []

    async def record(seconds: float) -> None:
        waits.append(seconds)

    # Only in the client's module, since a service may run in this process.
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=record))
    return waits


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VESTIBULE_URL", raising=False)
    monkeypatch.delenv("VESTIBULE_API_KEY", raising=False)


def test_key_and_url_are_arguments_or_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*arguments: Any, **options: Any) -> tuple[str, str | None]:
        scripted = Scripted(LIVE)
        with Client(*arguments, **options, transport=httpx.MockTransport(scripted)) as connected:
            assert connected.live().status == "live"
        return str(scripted.requests[0].url), scripted.requests[0].headers.get("authorization")

    assert request() == ("http://127.0.0.1:8000/health/live", None)
    assert request("https://else/below/", api_key="k1") == ("https://else/below/health/live", "Bearer k1")
    monkeypatch.setenv("VESTIBULE_URL", "http://there:1")
    monkeypatch.setenv("VESTIBULE_API_KEY", "k2\n")
    assert request() == ("http://there:1/health/live", "Bearer k2")
    assert request("http://here:2", api_key="k1") == ("http://here:2/health/live", "Bearer k1")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://x:y"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Client(url)


def test_invalid_key_is_refused_and_not_in_the_message() -> None:
    with pytest.raises(ValueError, match="API key") as error:
        Client(URL, api_key="geh\neim")
    assert "geh" not in str(error.value)


def test_names_are_segments_of_the_path() -> None:
    scripted = Scripted(LIVE)
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.subject("a b+c@d:e", "größe 100%")
    assert scripted.requests[0].url.raw_path == b"/collections/a%20b%2Bc%40d%3Ae/subjects/gr%C3%B6%C3%9Fe%20100%25"
    for name in ("", ".", "..", "doors/subjects/eileen"):
        with pytest.raises(ValueError, match="cannot be a name"):
            connected.erase_collection(name)
    assert len(scripted.requests) == 1


def test_images_are_paths_bytes_or_files_and_file_names_are_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "somebody's secret.jpg"
    path.write_bytes(b"one")
    for picture in (path, str(path)):
        assert parts("file", picture) == [("file", b"one")]
    assert parts("file", (picture for picture in (path, b"two"))) == [("file", b"one"), ("file", b"two")]
    scripted = Scripted(LIVE)
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.classify([path, b"two"], top_k=1)
    body = scripted.requests[0].content
    assert body.count(b'name="file"') == 2
    assert b"secret" not in body
    assert dict(scripted.requests[0].url.params) == {"top_k": "1", "tta": "false"}


@pytest.mark.parametrize(
    ("picture", "error"),
    [
        ([], ValueError),
        (7, TypeError),
        (None, TypeError),
        (io.StringIO("text"), TypeError),
        (["/nowhere.jpg"], FileNotFoundError),
    ],
)
def test_other_objects_are_refused(picture: Any, error: type[Exception]) -> None:
    with Client(URL) as connected, pytest.raises(error):
        connected.classify(picture)


def test_an_idempotency_key_is_sent_as_a_header() -> None:
    scripted = Scripted(LIVE, LIVE)
    for key in ("one", None):
        with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
            connected.enrol("doors", "eileen", b"picture", idempotency_key=key)
    assert [request.headers.get("idempotency-key") for request in scripted.requests] == ["one", None]
    assert all("multipart/form-data" in request.headers["content-type"] for request in scripted.requests)


def test_lines_contain_images_and_times_as_json() -> None:
    scripted = Scripted(LIVE)
    lines: list[dict[str, Any]] = [
        {"subject_id": "eileen", "image": b"one", "expires_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"subject_id": "grace", "vector": [1.0, 0.0]},
    ]
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.enrol_lines("doors", lines, fingerprint="f1")
    assert scripted.requests[0].headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in scripted.requests[0].content.splitlines()] == [
        {"subject_id": "eileen", "image": "b25l", "expires_at": "2030-01-01T00:00:00+00:00"},
        {"subject_id": "grace", "vector": [1.0, 0.0]},
    ]


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "damaged-image", vestibule.BadRequest),
        (401, "no-key", vestibule.Unauthorized),
        (403, "host-not-allowed", vestibule.Forbidden),
        (404, "not-found", vestibule.NotFound),
        (405, "method-not-allowed", vestibule.Problem),
        (409, "conflict", vestibule.Conflict),
        (413, "image-too-large", vestibule.TooLarge),
        (415, "unsupported-image", vestibule.UnsupportedMedia),
        (422, "no-face", vestibule.NoFace),
        (422, "unknown-model", vestibule.UnknownModel),
        (422, "unprocessable", vestibule.Unprocessable),
        (429, "overloaded", vestibule.Overloaded),
        (500, "internal", vestibule.ServiceError),
        (503, "not-ready", vestibule.NotReady),
        (504, "deadline-exceeded", vestibule.DeadlineExceeded),
    ],
)
def test_each_problem_has_its_exception(status: int, name: str, kind: type[vestibule.Problem]) -> None:
    scripted = Scripted(problem(status, name, {"retry-after": "7"}))
    with client(scripted, retries=vestibule.NEVER) as connected, pytest.raises(vestibule.VestibuleError) as raised:
        connected.live()
    error = raised.value
    assert type(error) is kind
    assert isinstance(error, vestibule.Problem)
    assert (error.type, error.status, error.title) == (f"urn:vestibule:problem:{name}", status, "Some title")
    assert (error.detail, error.request_id, error.retry_after) == ("some detail", "abc", 7.0)
    assert str(error) == "Some title: some detail"


def test_problem_names_invalid_parameters() -> None:
    errors = [{"parameter": "top_k", "detail": "too small"}]
    response = httpx.Response(422, json={"type": "t", "title": "Bad", "status": 422, "errors": errors})
    with (
        client(Scripted(response)) as connected,
        pytest.raises(vestibule.Unprocessable, match=r"^Bad: top_k: too small$"),
    ):
        connected.live()


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(502, text="<html>"), httpx.Response(200, text="hello"), httpx.Response(200, json={"other": 1})],
)
def test_other_services_are_detected(answer: httpx.Response) -> None:
    with client(Scripted(answer)) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.live()


def test_response_without_an_image_is_refused() -> None:
    with client(Scripted(LIVE)) as connected, pytest.raises(vestibule.UnexpectedAnswer, match="expected an image"):
        connected.generate()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), vestibule.Unreachable),
        (httpx.ConnectTimeout("slow"), vestibule.Unreachable),
        (httpx.ReadTimeout("slow"), vestibule.TimedOut),
        (httpx.RemoteProtocolError("cut"), vestibule.Unreachable),
    ],
)
def test_errors_of_httpx_are_converted(error: Exception, kind: type[Exception]) -> None:
    with client(Scripted(error)) as connected, pytest.raises(kind, match="http://service:8000"):
        connected.live()


def test_timeouts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout=0.05) as connected, pytest.raises(vestibule.TimedOut):
            connected.live()
    with (
        Client(f"http://127.0.0.1:{port}") as connected,
        pytest.raises(vestibule.Unreachable, match="no service responds"),
    ):
        connected.live()


def busy(retry_after: str | None = "2", status: int = 429) -> httpx.Response:
    return problem(status, "overloaded", {} if retry_after is None else {"retry-after": retry_after})


def ask_sync(scripted: Scripted, retries: Retries) -> None:
    with client(scripted, retries=retries) as connected:
        connected.classify(b"picture")


def ask_async(scripted: Scripted, retries: Retries) -> None:
    async def ask() -> None:
        async with AsyncClient(URL, transport=httpx.MockTransport(scripted), retries=retries) as connected:
            await connected.classify(b"picture")

    asyncio.run(ask())


DONE = httpx.Response(200, json={"model": "m", "version": "v", "data": []})


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
def test_busy_service_is_retried_after_the_given_time(
    ask: Callable[[Scripted, Retries], None], slept: list[float]
) -> None:
    scripted = Scripted(busy(), busy("3"), DONE)
    ask(scripted, vestibule.WHEN_BUSY)
    assert len({request.content for request in scripted.requests}) == 1  # the complete body each time
    assert len(slept) == 2
    assert 2 <= slept[0] <= 2.5
    assert 3 <= slept[1] <= 3.75


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize(
    ("retries", "responses", "attempts"),
    [
        (vestibule.WHEN_BUSY, [busy()] * 4, 4),
        (Retries(times=1), [busy()] * 2, 2),
        (vestibule.NEVER, [busy()], 1),
        (vestibule.WHEN_BUSY, [busy("31")], 1),
        (vestibule.WHEN_BUSY, [busy(status=503)], 1),
        (Retries(statuses=(429, 503)), [busy(status=503), problem(500)], 2),
    ],
)
def test_number_of_attempts(
    ask: Callable[[Scripted, Retries], None],
    retries: Retries,
    responses: list[httpx.Response],
    attempts: int,
    slept: list[float],
) -> None:
    scripted = Scripted(*responses)
    with pytest.raises(vestibule.Problem):
        ask(scripted, retries)
    assert (len(scripted.requests), len(slept)) == (attempts, attempts - 1)


@pytest.mark.parametrize("retry_after", [None, "soon", "-1"])
def test_wait_doubles_without_retry_after(retry_after: str | None, slept: list[float]) -> None:
    ask_sync(Scripted(*[busy(retry_after) for _ in range(3)], DONE), vestibule.WHEN_BUSY)
    assert [least <= wait <= 1.25 * least for least, wait in zip((0.5, 1, 2), slept, strict=True)] == [True] * 3


def test_retry_after_may_be_a_date(slept: list[float]) -> None:
    then = datetime.now(UTC) + timedelta(seconds=20)
    ask_sync(Scripted(busy(format_datetime(then, usegmt=True)), busy("Thu, 01 Jan 1970 00:00:00 GMT"), DONE), Retries())
    assert 17 <= slept[0] <= 25
    assert slept[1] == 0
