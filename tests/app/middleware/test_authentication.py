"""The gate: every route with no key, a wrong one, one that ran out, one for something else, and a right one."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.auth.keys import FOLDER, SCOPES, Keys, Scope
from app.auth.rate_limit import SlidingWindow
from app.auth.scopes import ADMIN, INFER, Routes, Unguarded
from app.errors import HostNotAllowed, NotReady, OriginNotAllowed, RateLimited, ScopeMissing, Unauthorized
from app.main import create_app
from app.middleware.authentication import Gate
from app.observability.metrics import Metrics
from app.server import logging_setup
from app.settings import Settings
from tests.app.conftest import BASE_URL

# By hand, so that a scope is changed in two places or not at all. "" is open.
EXPECTED: dict[str, str] = {
    "": """
        GET /  GET /web/{name:path}  GET /health/live  GET /health/ready
        GET /v2/health/live  GET /v2/health/ready  GET /docs
        GET /openapi.json HEAD /openapi.json  GET /static-offline-docs
    """,
    "infer": """
        POST /classify  POST /faces/detect  POST /embed  POST /v1/embeddings  POST /verify  POST /verify/embeddings
        GET /generate  POST /generate  GET /generate/interpolate  POST /v1/images/generations  POST /denoise
        POST /encode  POST /reconstruct  POST /search  POST /collections/{collection}/subjects/{subject}/verify
        GET /models  GET /models/{name}  GET /v1/models  GET /v1/models/{name}
        GET /v2  POST /v2/repository/index  GET /v2/models/{name}
        GET /v2/models/{name}/versions/{version}  GET /v2/models/{name}/ready
        GET /v2/models/{name}/versions/{version}/ready  POST /v2/models/{name}/infer
        POST /v2/models/{name}/versions/{version}/infer
    """,
    "enrol": """
        GET /collections  PUT /collections/{collection}  GET /collections/{collection}
        DELETE /collections/{collection}  GET /collections/{collection}/subjects
        PUT /collections/{collection}/subjects/{subject}  GET /collections/{collection}/subjects/{subject}
        DELETE /collections/{collection}/subjects/{subject}  GET /collections/{collection}/subjects/{subject}/faces
        POST /collections/{collection}/subjects/{subject}/faces
        POST /collections/{collection}/subjects/{subject}/feedback
        GET /collections/{collection}/subjects/{subject}/feedback
        DELETE /collections/{collection}/subjects/{subject}/feedback/{feedback}
        DELETE /collections/{collection}/faces/{face}  POST /collections/{collection}/faces:bulk
        GET /collections/{collection}/jobs  GET /collections/{collection}/jobs/{job}
        GET /collections/{collection}/jobs/{job}/items  DELETE /collections/{collection}/jobs/{job}
        POST /collections/{collection}/reembed  GET /collections/{collection}/reembed
        DELETE /collections/{collection}/reembed  GET /erasures/{receipt}
    """,
    "admin": "POST /models/{name}/reload  GET /metrics",
}


CALLS = [(*call, scope) for scope, calls in EXPECTED.items() for call in re.findall(r"([A-Z]+) (/\S*)", calls)]


def name(call: tuple[str, str, str]) -> str:
    return f"{call[0]} {call[1]}"


def path(template: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", template)


class Absent:
    """In place of what would load models or open the gallery."""

    def __getattr__(self, name: str) -> Any:
        raise NotReady(name)


@dataclass
class Service:
    """A service that is not started: who is refused is refused without any model, and who passes finds none."""

    app: FastAPI
    keys: Keys
    client: TestClient
    headers: dict[str, dict[str, str]]


def key(keys: Keys, *scopes: Scope, **limits: Any) -> dict[str, str]:
    """Headers with a new key."""
    return {"authorization": f"Bearer {keys.create('a key', scopes, **limits)[1]}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("state")
    app, keys = create_app(Settings(state=state)), Keys(state / FOLDER)
    app.state.gallery = app.state.generation = Absent()
    app.openapi_schema = {"openapi": "3.1.0"}  # which takes seconds to make
    headers = {"wrong": {"authorization": "Bearer vst_" + "A" * 43}, "expired": key(keys, *SCOPES, expires_at=1.0)}
    headers["revoked"] = key(keys, *SCOPES)
    keys.revoke(keys.all()[-1].id)
    for scope in SCOPES:
        headers[scope] = key(keys, scope)
        headers[f"not {scope}"] = key(keys, *(other for other in SCOPES if other != scope))
    yield Service(app, keys, TestClient(app, base_url=BASE_URL, raise_server_exceptions=False), headers)
    keys.close()


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    made = Keys(tmp_path / FOLDER)
    yield made
    made.close()


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await Response(status_code=204)(scope, receive, send)


@pytest.fixture
def gated(service: Service, keys: Keys) -> Callable[..., TestClient]:
    """Makes a gate with settings and a clock of its own, and nothing behind it."""

    def make(clock: Callable[[], float] = time.monotonic, **given: Any) -> TestClient:
        routes = Routes(service.app)
        return TestClient(Gate(nothing, keys, routes, Settings(**given), Metrics(), clock), base_url=BASE_URL)

    return make


def test_what_each_route_needs_is_what_was_decided(service: Service) -> None:
    found = [
        (method, one.route.path, one.scope or "")
        for one in Routes(service.app).all
        for method in one.methods or ["GET"]
    ]
    assert sorted(found) == sorted(CALLS)


def test_a_route_that_states_nothing_or_two_scopes_or_opens_what_is_open_is_no_service() -> None:
    async def answer() -> None: ...

    for dependencies, at in (((), "/new"), ((*INFER, *ADMIN), "/new"), (INFER, "/health/live")):
        router, app = APIRouter(), FastAPI(openapi_url=None)
        router.get(at, dependencies=dependencies)(answer)
        app.include_router(router)
        with pytest.raises(Unguarded, match=at):
            Routes(app)


TITLES = {
    error.title: error.type for error in (Unauthorized, ScopeMissing, HostNotAllowed, OriginNotAllowed, RateLimited)
}


def problem(answer: Any) -> str:
    """The type of what was refused, also where another protocol tells it in other words."""
    body = answer.json()
    return TITLES[body["error"].split(":")[0]] if "error" in body else body["type"].rpartition(":")[2]


@pytest.mark.parametrize("call", [call for call in CALLS if call[2]], ids=name)
def test_each_route_by_key(service: Service, call: tuple[str, str, str]) -> None:
    method, template, scope = call

    def ask(**headers: str) -> Any:
        return service.client.request(method, path(template), headers=headers)

    def told(answer: Any, status: int, kind: str, challenge: str) -> None:
        assert (answer.status_code, problem(answer), answer.headers["www-authenticate"]) == (status, kind, challenge)

    told(ask(), 401, "unauthorized", "Bearer")
    refused = [ask(**service.headers[which]) for which in ("wrong", "expired", "revoked")]
    for answer in refused:
        told(answer, 401, "unauthorized", 'Bearer error="invalid_token"')
    assert len({answer.content for answer in refused}) == 1  # which of these it is nobody is told
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    told(ask(**service.headers[f"not {scope}"]), 403, "scope-missing", challenge)
    right = service.headers[scope]
    assert problem(ask(**right, host="evil.example")) == "host-not-allowed"
    if method != "GET":
        assert problem(ask(**right, origin="https://evil.example")) == "origin-not-allowed"


@pytest.mark.parametrize("call", CALLS, ids=name)
def test_a_right_key_or_none_where_it_is_open_reaches_just_the_route_that_was_judged(
    service: Service, call: tuple[str, str, str]
) -> None:
    method, template, scope = call
    at = path(template) if template != "/static-offline-docs" else f"{template}/favicon.png"  # all of a folder
    seen: list[dict[str, Any]] = []

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await service.app(scope, receive, send)

    client = TestClient(recorded, base_url=BASE_URL, raise_server_exceptions=False)
    answer = client.request(method, at, headers=service.headers.get(scope, {}))
    assert answer.status_code not in (401, 403)
    judged = Routes(service.app).find({"method": method, "path": at})
    assert judged is not None
    assert (judged.route.path, judged.scope) == (template, scope or None)
    if method == "HEAD":  # it is answered as GET, in a scope of its own
        return
    assert seen[0]["endpoint"] == (judged.route.endpoint or judged.route.app)
    assert (seen[0]["state"]["caller"] is None) == (not scope)


def test_what_no_route_has_needs_any_key(service: Service) -> None:
    for method, at, status in (("GET", "/nothing", 404), ("DELETE", "/classify", 405), ("GET", "/metrics/", 307)):
        assert service.client.request(method, at).status_code == 401
        answer = service.client.request(method, at, headers=service.headers["infer"], follow_redirects=False)
        assert answer.status_code == status
    assert service.client.get("/metrics/", headers=service.headers["infer"]).status_code == 403


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "{secret}", "Bearer {secret}x", "Bearer {secret} x", "Bearer \xff"],
)
def test_only_a_whole_key_in_its_own_scheme_is_one(service: Service, sent: str) -> None:
    secret = service.headers["infer"]["authorization"].removeprefix("Bearer ")
    headers = {b"authorization": sent.format(secret=secret).encode("latin-1")}
    assert service.client.get("/models", headers=headers).status_code == 401
    for scheme in ("bearer", "BEARER "):
        assert service.client.get("/models", headers={"authorization": f"{scheme} {secret}"}).status_code == 200


def test_a_body_is_not_read_for_who_is_refused(service: Service) -> None:
    async def receive() -> Any:
        raise AssertionError("somebody reads the body")

    def ask(**headers: str) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        given = {"host": "127.0.0.1", "content-type": "application/json", "content-length": "1000", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/verify/embeddings",
            "headers": [(key.encode(), value.encode()) for key, value in given.items()],
            "query_string": b"",
        }
        asyncio.run(service.app(scope, receive, send))
        return sent

    assert ask()[0]["status"] == 401
    assert ask(**service.headers["not infer"])[0]["status"] == 403
    assert ask(**service.headers["infer"])[0]["status"] == 400  # it was read: else the two above prove nothing


def test_it_is_open_until_there_is_a_key_and_then_stays_closed(gated: Callable[..., TestClient], keys: Keys) -> None:
    client = gated()
    assert client.get("/models").status_code == 204
    assert not keys._folder.exists()
    headers = key(keys, "infer")
    assert client.get("/models").status_code == 401
    assert client.get("/models", headers=headers).status_code == 204
    assert client.get("/").status_code == 204
    keys.revoke(keys.all()[0].id)
    assert client.get("/models").status_code == client.get("/models", headers=headers).status_code == 401


def test_keys_may_be_asked_for_before_there_is_one(gated: Callable[..., TestClient]) -> None:
    client = gated(require_keys=True)
    assert client.get("/models").status_code == 401
    assert client.get("/health/live").status_code == 204


def test_refusals_are_counted_as_their_route_s(service: Service) -> None:
    service.client.get("/collections/a-name")
    figures = service.client.get("/metrics", headers=service.headers["admin"]).text
    assert 'vestibule_requests_total{method="GET",route="/collections/{collection}",status="401"}' in figures
    assert "a-name" not in figures


def test_a_key_has_so_many_requests_a_minute(gated: Callable[..., TestClient], keys: Keys) -> None:
    now = 1000.0
    client = gated(lambda: now, rate_per_minute=3)
    usual, own = key(keys, "infer"), key(keys, "infer", rate_per_minute=1)

    def ask(headers: dict[str, str]) -> int:
        return client.get("/models", headers=headers).status_code

    assert [ask(usual) for _ in range(4)] == [204, 204, 204, 429]
    assert [ask(own) for _ in range(2)] == [204, 429]
    now += 20.5
    refused = client.get("/models", headers=own)
    assert (problem(refused), refused.headers["retry-after"]) == ("rate-limited", "40")
    assert "1 requests a minute" in refused.json()["detail"]
    assert client.get("/health/live").status_code == 204
    now += 39.5
    assert [ask(own), ask(usual)] == [204, 204]


def test_a_key_has_so_many_requests_at_once(service: Service, keys: Keys) -> None:
    busy, other = key(keys, "infer"), key(keys, "infer", concurrency=2)
    ended = asyncio.Event()

    async def held(scope: Any, receive: Any, send: Any) -> None:
        await ended.wait()
        await nothing(scope, receive, send)

    gate = Gate(held, keys, Routes(service.app), Settings(key_concurrency=1), Metrics())

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url=BASE_URL) as client:

            async def ask(headers: dict[str, str]) -> tuple[int, str | None]:
                answer = await client.get("/models", headers=headers)
                return answer.status_code, answer.headers.get("retry-after")

            under_way = [asyncio.create_task(ask(headers)) for headers in (busy, other, other)]
            await asyncio.sleep(0)
            assert await ask(busy) == await ask(other) == (429, "1")
            under_way[0].cancel()
            await asyncio.wait(under_way[:1])
            under_way.append(asyncio.create_task(ask(busy)))
            await asyncio.sleep(0)
            ended.set()
            assert await asyncio.gather(*under_way[1:]) == [(204, None)] * 3
            assert await ask(busy) == (204, None)

    asyncio.run(scenario())


@pytest.mark.usefixtures("_as_it_was")
def test_no_key_is_in_the_log(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", lines := io.StringIO())
    logging_setup.configure("DEBUG")
    for headers in service.headers.values():
        for at in ("/models", "/collections", "/nothing", "/models/x/reload"):
            service.client.get(at, headers=headers)
            service.client.post(at, headers=headers, content=b"x")
    told = lines.getvalue()
    assert "/models/x/reload" in told
    for headers in service.headers.values():
        assert headers["authorization"].removeprefix("Bearer ") not in told


@settings(max_examples=50)
@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.floats(0, 30, allow_nan=False) | st.sampled_from([0.0, 12.0, 60.0]), max_size=40),
)
def test_a_window_lets_just_so_many_pass_whenever_it_begins(limit: int, steps: list[float]) -> None:
    window, now, passed = SlidingWindow(limit), 0.0, list[float]()
    for step in steps:
        now += step
        within = [at for at in passed if at + 60.0 > now]  # by brute force
        wait = window.take(now)
        assert (wait == 0.0) == (len(within) < limit)
        if wait:
            assert wait == pytest.approx(within[0] + 60.0 - now)
        else:
            passed.append(now)


def test_the_openapi_document_says_what_each_call_needs(service: Service) -> None:
    service.app.openapi_schema = None
    document = service.app.openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for at, operations in document["paths"].items():
        for method, operation in operations.items():
            (scope,) = (scope for known, path, scope in CALLS if (known, path) == (method.upper(), at))
            assert operation.get("security", []) == ([{"key": [scope]}] if scope else [])
            assert not scope or {"401", "403", "429"} <= operation["responses"].keys()
