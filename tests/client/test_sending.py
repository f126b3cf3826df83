"""How calls travel: keys, names, retries, time-outs and errors, against a service that answers as it is told."""

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
    """Answers in this order, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception):
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def client(scripted: Scripted, **options: Any) -> Client:
    return Client(URL, transport=httpx.MockTransport(scripted), **options)


def problem(status: int, name: str = "some", headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"type": f"urn:vestibule:problem:{name}", "title": "Some title", "status": status, "detail": "some detail"}
    return httpx.Response(status, json=body, headers={"x-request-id": "abc", **(headers or {})})


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that clients would have waited."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    # The client's own alone: a service may run in this process.
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=note))
    return waits


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VESTIBULE_URL", raising=False)
    monkeypatch.delenv("VESTIBULE_API_KEY", raising=False)


def test_the_key_and_the_address_come_from_the_caller_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: Any, **options: Any) -> tuple[str, str | None]:
        scripted = Scripted(LIVE)
        with Client(*arguments, **options, transport=httpx.MockTransport(scripted)) as connected:
            assert connected.live().status == "live"
        return str(scripted.asked[0].url), scripted.asked[0].headers.get("authorization")

    assert asked() == ("http://127.0.0.1:8000/health/live", None)
    assert asked("https://else/below/", api_key="k1") == ("https://else/below/health/live", "Bearer k1")
    monkeypatch.setenv("VESTIBULE_URL", "http://there:1")
    monkeypatch.setenv("VESTIBULE_API_KEY", "k2\n")
    assert asked() == ("http://there:1/health/live", "Bearer k2")
    assert asked("http://here:2", api_key="k1") == ("http://here:2/health/live", "Bearer k1")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://x:y"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Client(url)


def test_a_key_that_no_header_carries_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        Client(URL, api_key="geh\neim")
    assert "geh" not in str(caught.value)


def test_names_become_one_part_of_the_path_each() -> None:
    scripted = Scripted(LIVE)
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.subject("a b+c@d:e", "größe 100%")
    assert scripted.asked[0].url.raw_path == b"/collections/a%20b%2Bc%40d%3Ae/subjects/gr%C3%B6%C3%9Fe%20100%25"
    for name in ("", ".", "..", "doors/subjects/eileen"):
        with pytest.raises(ValueError, match="cannot be a name"):
            connected.erase_collection(name)
    assert len(scripted.asked) == 1


def test_pictures_are_paths_bytes_or_files_and_their_names_stay_here(tmp_path: Path) -> None:
    path = tmp_path / "somebody's secret.jpg"
    path.write_bytes(b"one")
    for picture in (path, str(path), b"one", io.BytesIO(b"one")):
        assert parts("file", picture) == [("file", b"one")]
    assert parts("file", (picture for picture in (path, b"two"))) == [("file", b"one"), ("file", b"two")]
    scripted = Scripted(LIVE)
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.classify([path, b"two"], top_k=1)
    body = scripted.asked[0].content
    assert body.count(b'name="file"') == 2
    assert b"secret" not in body
    assert dict(scripted.asked[0].url.params) == {"top_k": "1", "tta": "false"}


@pytest.mark.parametrize(
    ("picture", "error"),
    [([], ValueError), (7, TypeError), (io.StringIO("text"), TypeError), (["/nowhere.jpg"], FileNotFoundError)],
)
def test_what_is_no_picture_is_refused(picture: Any, error: type[Exception]) -> None:
    with Client(URL) as connected, pytest.raises(error):
        connected.classify(picture)


def test_lines_carry_pictures_and_times_as_json_has_them() -> None:
    scripted = Scripted(LIVE)
    lines: list[dict[str, Any]] = [
        {"subject_id": "eileen", "image": b"one", "expires_at": datetime(2030, 1, 1, tzinfo=UTC)},
        {"subject_id": "grace", "vector": [1.0, 0.0]},
    ]
    with client(scripted) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.enrol_lines("doors", lines, fingerprint="f1")
    assert scripted.asked[0].headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in scripted.asked[0].content.splitlines()] == [
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
def test_a_problem_is_an_error_of_its_own_kind(status: int, name: str, kind: type[vestibule.Problem]) -> None:
    scripted = Scripted(problem(status, name, {"retry-after": "7"}))
    with client(scripted, retries=vestibule.NEVER) as connected, pytest.raises(vestibule.VestibuleError) as caught:
        connected.live()
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, vestibule.Problem)
    assert (error.type, error.status, error.title) == (f"urn:vestibule:problem:{name}", status, "Some title")
    assert (error.detail, error.request_id, error.retry_after) == ("some detail", "abc", 7.0)
    assert str(error) == "Some title: some detail"


def test_a_problem_names_the_parameters_that_do_not_fit() -> None:
    errors = [{"parameter": "top_k", "detail": "too small"}]
    answer = httpx.Response(422, json={"type": "t", "title": "Bad", "status": 422, "errors": errors})
    with (
        client(Scripted(answer)) as connected,
        pytest.raises(vestibule.Unprocessable, match=r"^Bad: top_k: too small$"),
    ):
        connected.live()


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(502, text="<html>"), httpx.Response(200, text="hello"), httpx.Response(200, json={"other": 1})],
)
def test_another_service_is_told_from_this_one(answer: httpx.Response) -> None:
    with client(Scripted(answer)) as connected, pytest.raises(vestibule.UnexpectedAnswer):
        connected.live()


def test_a_picture_is_not_taken_from_an_answer_that_is_none() -> None:
    with client(Scripted(LIVE)) as connected, pytest.raises(vestibule.UnexpectedAnswer, match="expected a picture"):
        connected.generate()


@pytest.mark.parametrize(
    ("thrown", "kind"),
    [
        (httpx.ConnectError("refused"), vestibule.Unreachable),
        (httpx.ConnectTimeout("slow"), vestibule.Unreachable),
        (httpx.ReadTimeout("slow"), vestibule.TimedOut),
        (httpx.RemoteProtocolError("cut"), vestibule.Unreachable),
    ],
)
def test_no_answer_is_an_error_of_our_own(thrown: Exception, kind: type[Exception]) -> None:
    with client(Scripted(thrown)) as connected, pytest.raises(kind, match="http://service:8000"):
        connected.live()


def test_time_outs_are_real() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", timeout=0.05) as connected, pytest.raises(vestibule.TimedOut):
            connected.live()
    with Client(f"http://127.0.0.1:{port}") as connected, pytest.raises(vestibule.Unreachable, match="nothing answers"):
        connected.live()


def busy(told: str | None = "2", status: int = 429) -> httpx.Response:
    return problem(status, "overloaded", {} if told is None else {"retry-after": told})


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
def test_a_busy_service_is_asked_again_after_the_time_it_said(
    ask: Callable[[Scripted, Retries], None], slept: list[float]
) -> None:
    scripted = Scripted(busy(), busy("3"), DONE)
    ask(scripted, vestibule.WHEN_BUSY)
    assert len({request.content for request in scripted.asked}) == 1  # whole each time
    assert len(slept) == 2
    assert 2 <= slept[0] <= 2.5
    assert 3 <= slept[1] <= 3.75


@pytest.mark.parametrize("ask", [ask_sync, ask_async])
@pytest.mark.parametrize(
    ("retries", "answers", "asked"),
    [
        (vestibule.WHEN_BUSY, [busy()] * 4, 4),
        (Retries(times=1), [busy()] * 2, 2),
        (vestibule.NEVER, [busy()], 1),
        (vestibule.WHEN_BUSY, [busy("31")], 1),
        (vestibule.WHEN_BUSY, [busy(status=503)], 1),
        (Retries(statuses=(429, 503)), [busy(status=503), problem(500)], 2),
    ],
)
def test_it_gives_up(
    ask: Callable[[Scripted, Retries], None],
    retries: Retries,
    answers: list[httpx.Response],
    asked: int,
    slept: list[float],
) -> None:
    scripted = Scripted(*answers)
    with pytest.raises(vestibule.Problem):
        ask(scripted, retries)
    assert (len(scripted.asked), len(slept)) == (asked, asked - 1)


@pytest.mark.parametrize("told", [None, "soon", "-1"])
def test_without_a_time_the_wait_doubles(told: str | None, slept: list[float]) -> None:
    answers = [busy(told) for _ in range(3)]
    ask_sync(Scripted(*answers, DONE), vestibule.WHEN_BUSY)
    assert [least <= wait <= 1.25 * least for least, wait in zip((0.5, 1, 2), slept, strict=True)] == [True] * 3


def test_a_time_may_be_a_date(slept: list[float]) -> None:
    then = datetime.now(UTC) + timedelta(seconds=20)
    ask_sync(Scripted(busy(format_datetime(then, usegmt=True)), busy("Thu, 01 Jan 1970 00:00:00 GMT"), DONE), Retries())
    assert 17 <= slept[0] <= 25
    assert slept[1] == 0
