"""Authentication: each route without a key, and with an unknown, expired, revoked, insufficient and sufficient one."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from app.auth.keys import SCOPES, ApiKeys, Scope
from app.auth.rate_limit import KeyUsage
from app.auth.scopes import ADMIN, INFER, ScopeDeclarationError
from app.errors import HostNotAllowed, NotReady, OriginNotAllowed, RateLimited, ScopeMissing, Unauthorized
from app.main import create_app
from app.middleware.authentication import Authentication, _bearer
from app.middleware.routing import RouteTable
from app.observability.metrics import Metrics
from app.server import logging_setup
from app.settings import Settings
from index.factory import open_keys, open_service_state
from tests.app.asgi import http_scope, respond
from tests.app.conftest import BASE_URL, Clock, until

# Written by hand, so that a scope changes only deliberately. "" is open.
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
        POST /v2/models/{name}/versions/{version}/infer  POST /search/embeddings  POST /cluster/embeddings
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
        GET /collections/{collection}/sighting-settings  PUT /collections/{collection}/sighting-settings
        DELETE /sightings/{sighting}
        POST /collections/{collection}/subjects/{subject}/merge  GET /collections/{collection}/merges
        POST /collections/{collection}/merges/{merge}/undo  POST /collections/{collection}/faces/move
        GET /collections/{collection}/duplicates  GET /collections/{collection}/faces/{face}/crop
        POST /collections/{collection}/calibrations  GET /collections/{collection}/calibrations
        GET /collections/{collection}/calibrations/{calibration}
        GET /collections/{collection}/calibration  PUT /collections/{collection}/calibration
        POST /alerts/rules  GET /alerts/rules  GET /alerts/rules/{rule}  PUT /alerts/rules/{rule}
        DELETE /alerts/rules/{rule}  POST /alerts/{alert}/resend
    """,
    "observe": "POST /sightings",
    "review": """
        GET /sightings  GET /sightings/{sighting}  GET /sightings/{sighting}/crop
        GET /alerts  GET /alerts/{alert}  GET /alerts/stream
    """,
    "admin": "POST /models/{name}/reload  GET /metrics",
}


CALLS = [(*call, scope) for scope, calls in EXPECTED.items() for call in re.findall(r"([A-Z]+) (/\S*)", calls)]


def name(call: tuple[str, str, str]) -> str:
    return f"{call[0]} {call[1]}"


def path(template: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", template)


class NotStarted:
    """A domain's service of an application that is not started."""

    def __getattr__(self, name: str) -> Any:
        raise NotReady(name)


@dataclass
class Service:
    """A service that is not started: requests are refused before any model is needed, and others get 503."""

    app: FastAPI
    keys: ApiKeys
    client: TestClient
    headers: dict[str, dict[str, str]]


def key(keys: ApiKeys, *scopes: Scope, **limits: Any) -> dict[str, str]:
    """Return headers with a new key."""
    return {"authorization": f"Bearer {keys.create('a key', scopes, **limits)[1]}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("state")
    app, keys = create_app(Settings(state=state)), ApiKeys(open_keys(state))
    app.state.gallery = app.state.sightings = app.state.generation = NotStarted()
    app.openapi_schema = {"openapi": "3.1.0"}  # building it takes seconds
    headers = {"wrong": {"authorization": "Bearer vst_" + "A" * 43}, "expired": key(keys, *SCOPES, expires_at=1.0)}
    headers["revoked"] = key(keys, *SCOPES)
    keys.revoke(keys.all()[-1].id)
    for scope in SCOPES:
        headers[scope] = key(keys, scope)
        headers[f"not {scope}"] = key(keys, *(other for other in SCOPES if other != scope))
    yield Service(app, keys, TestClient(app, base_url=BASE_URL, raise_server_exceptions=False), headers)
    keys.close()


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[ApiKeys]:
    keys = ApiKeys(open_keys(tmp_path))
    yield keys
    keys.close()


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await Response(status_code=204)(scope, receive, send)


def routed(service: Service, build: Callable[[Any], Authentication], app: Any = nothing) -> TestClient:
    """Return a client of `app` behind the middleware."""
    routes, authentication = RouteTable(service.app), build(app)

    async def with_route(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = {"route": routes.find(scope)}
        await authentication(scope, receive, send)

    return TestClient(with_route, base_url=BASE_URL)


@pytest.fixture
def authenticated(service: Service, keys: ApiKeys) -> Callable[..., TestClient]:
    """Return a function that puts `Authentication` with these settings in front of an application."""

    def build(clock: Callable[[], float] = time.monotonic, app: Any = nothing, **options: Any) -> TestClient:
        return routed(service, lambda app: Authentication(app, keys, Settings(**options), Metrics(), clock), app)

    return build


def test_the_scope_of_each_route_is_the_expected_one(service: Service) -> None:
    scopes = [
        (method, route.route.path, route.scope or "")
        for route in RouteTable(service.app).all
        for method in route.methods or ["GET"]
    ]
    assert sorted(scopes) == sorted(CALLS)


@pytest.mark.parametrize(("dependencies", "at"), [((), "/new"), ((*INFER, *ADMIN), "/new"), (INFER, "/health/live")])
def test_a_route_with_no_scope_two_scopes_or_a_scope_on_an_open_path_is_an_error(dependencies: Any, at: str) -> None:
    async def endpoint() -> None: ...

    router, app = APIRouter(), FastAPI(openapi_url=None)
    router.get(at, dependencies=dependencies)(endpoint)
    app.include_router(router)
    with pytest.raises(ScopeDeclarationError, match=at):
        RouteTable(app)


TITLES = {
    error.title: error.type for error in (Unauthorized, ScopeMissing, HostNotAllowed, OriginNotAllowed, RateLimited)
}


def problem(response: Any) -> str:
    """Return the problem type of a refusal, also in the format of the Open Inference Protocol."""
    body = response.json()
    return TITLES[body["error"].split(":")[0]] if "error" in body else body["type"].rpartition(":")[2]


@pytest.mark.parametrize("call", [call for call in CALLS if call[2]], ids=name)
def test_each_route_needs_a_key_with_its_scope(service: Service, call: tuple[str, str, str]) -> None:
    method, template, scope = call

    def ask(**headers: str) -> Any:
        return service.client.request(method, path(template), headers=headers)

    def check(response: Any, status: int, kind: str, challenge: str) -> None:
        refusal = response.status_code, problem(response), response.headers["www-authenticate"]
        assert refusal == (status, kind, challenge)

    check(ask(), 401, "unauthorized", "Bearer")
    refusals = [ask(**service.headers[kind]) for kind in ("wrong", "expired", "revoked")]
    for response in refusals:
        check(response, 401, "unauthorized", 'Bearer error="invalid_token"')
    assert len({response.content for response in refusals}) == 1  # the response does not say which of these it is
    challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
    check(ask(**service.headers[f"not {scope}"]), 403, "scope-missing", challenge)
    sufficient = service.headers[scope]
    assert problem(ask(**sufficient, host="evil.example")) == "host-not-allowed"
    if method != "GET":
        assert problem(ask(**sufficient, origin="https://evil.example")) == "origin-not-allowed"


@pytest.mark.parametrize("call", CALLS, ids=name)
def test_the_framework_calls_the_route_whose_scope_was_checked(service: Service, call: tuple[str, str, str]) -> None:
    method, template, scope = call
    at = path(template) if template != "/static-offline-docs" else f"{template}/favicon.png"  # a folder of files
    scopes: list[dict[str, Any]] = []

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await service.app(scope, receive, send)

    client = TestClient(recorded, base_url=BASE_URL, raise_server_exceptions=False)
    response = client.request(method, at, headers=service.headers.get(scope, {}))
    assert response.status_code not in (401, 403)
    route = RouteTable(service.app).find({"method": method, "path": at})
    assert route is not None
    assert (route.route.path, route.scope) == (template, scope or None)
    if method == "HEAD":  # answered as GET, in a scope of its own
        return
    assert scopes[0]["endpoint"] == (route.route.endpoint or route.route.app)
    assert (scopes[0]["state"]["caller"] is None) == (not scope)


@pytest.mark.parametrize(
    ("method", "at", "status"),
    [("GET", "/nothing", 404), ("DELETE", "/classify", 405), ("GET", "/metrics/", 307), ("GET", "/metrics", 403)],
)
def test_a_path_without_a_route_needs_any_key(service: Service, method: str, at: str, status: int) -> None:
    assert service.client.request(method, at).status_code == 401
    response = service.client.request(method, at, headers=service.headers["infer"], follow_redirects=False)
    assert response.status_code == status


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "{secret}", "Bearer {secret}x", "Bearer {secret} x", "Bearer \xff"],
)
def test_only_a_whole_key_in_the_bearer_scheme_is_accepted(service: Service, value: str) -> None:
    secret = service.headers["infer"]["authorization"].removeprefix("Bearer ")
    headers = {b"authorization": value.format(secret=secret).encode("latin-1")}
    assert service.client.get("/models", headers=headers).status_code == 401
    for scheme in ("bearer", "BEARER "):
        assert service.client.get("/models", headers={"authorization": f"{scheme} {secret}"}).status_code == 200


def test_a_repeated_authorization_header_is_no_key() -> None:
    fields = [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]
    assert _bearer({"type": "http", "headers": fields[:1]}) == "a"
    assert _bearer({"type": "http", "headers": fields}) is None


def test_the_body_of_a_refused_request_is_not_read(service: Service) -> None:
    def status(kind: str) -> int:
        headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": "1000"}
        scope = http_scope("/verify/embeddings", headers | service.headers.get(kind, {}))
        return int(respond(service.app, scope)[0]["status"])

    assert status("none") == 401
    assert status("not infer") == 403
    assert status("infer") == 400  # FastAPI's answer to the error of reading it


def test_the_service_is_open_until_the_first_key_and_never_again(
    authenticated: Callable[..., TestClient], keys: ApiKeys, tmp_path: Path
) -> None:
    client = authenticated()
    assert client.get("/models").status_code == 204
    assert list(tmp_path.iterdir()) == []
    headers = key(keys, "infer")
    assert client.get("/models").status_code == 401
    assert client.get("/models", headers=headers).status_code == 204
    assert client.get("/").status_code == 204
    keys.revoke(keys.all()[0].id)
    assert client.get("/models").status_code == client.get("/models", headers=headers).status_code == 401


def test_require_keys_applies_before_the_first_key(authenticated: Callable[..., TestClient]) -> None:
    client = authenticated(require_keys=True)
    assert client.get("/models").status_code == 401
    assert client.get("/health/live").status_code == 204


def test_refusals_are_counted_for_their_route(service: Service) -> None:
    service.client.get("/collections/a-name")
    metrics = service.client.get("/metrics", headers=service.headers["admin"]).text
    assert 'vestibule_requests_total{method="GET",route="/collections/{collection}",status="401"}' in metrics
    assert "a-name" not in metrics


def test_requests_per_minute_of_a_key(authenticated: Callable[..., TestClient], keys: ApiKeys, clock: Clock) -> None:
    client = authenticated(clock, rate_per_minute=3)
    default, own = key(keys, "infer"), key(keys, "infer", rate_per_minute=1)

    def ask(headers: dict[str, str]) -> int:
        return client.get("/models", headers=headers).status_code

    assert [ask(default) for _ in range(4)] == [204, 204, 204, 429]
    assert [ask(own) for _ in range(2)] == [204, 429]
    clock.now += 20.5
    refusal = client.get("/models", headers=own)
    assert (problem(refusal), refusal.headers["retry-after"]) == ("rate-limited", "40")
    assert "1 requests a minute" in refusal.json()["detail"]
    assert client.get("/health/live").status_code == 204
    clock.now += 39.5
    assert [ask(own), ask(default)] == [204, 204]


def test_replicas_share_keys_and_limits(service: Service, database_url: str) -> None:
    with ExitStack() as stack:
        states = [stack.enter_context(closing(open_service_state(Path("unused"), database_url))) for _ in range(2)]
        replicas = [ApiKeys(state.keys) for state in states]

        def client(number: int) -> TestClient:
            state = states[number]
            return routed(
                service, lambda app: Authentication(app, replicas[number], Settings(), Metrics(), quotas=state.quotas)
            )

        one, other = client(0), client(1)
        assert one.get("/models").status_code == other.get("/models").status_code == 204
        headers = key(replicas[0], "infer", rate_per_minute=8)
        assert one.get("/models").status_code == 401
        until(lambda: other.get("/models").status_code == 401, 5)
        until(lambda: replicas[1].find_valid(headers["authorization"].removeprefix("Bearer ")) is not None, 5)
        statuses = []
        for _ in range(40):
            statuses += [client.get("/models", headers=headers).status_code for client in (one, other)]
            time.sleep(0.05)
        assert set(statuses) == {204, 429}
        assert 8 <= statuses.count(204) <= 8 + 2 * 2  # each replica has a reserve of a 4th: they do not know each other
        unlimited = key(replicas[1], "infer")
        until(lambda: one.get("/models", headers=unlimited).status_code == 204, 5)
        replicas[0].revoke(replicas[0].all()[1].id)
        until(lambda: other.get("/models", headers=unlimited).status_code == 401, 5)


def test_unknown_keys_are_a_503_and_open_routes_are_answered(service: Service, tmp_path: Path) -> None:
    with closing(open_service_state(tmp_path, "postgresql://127.0.0.1:1/x?connect_timeout=1")) as state:
        keys = ApiKeys(state.keys)
        client = routed(service, lambda app: Authentication(app, keys, Settings(), Metrics()))
        refusal = client.get("/models")
        assert (refusal.status_code, problem(refusal)) == (503, "storage-unavailable")
        assert refusal.headers["retry-after"] == "5"
        assert "127.0.0.1" not in refusal.text
        assert client.get("/health/live").status_code == 204


def test_concurrent_requests_of_a_key(authenticated: Callable[..., TestClient], keys: ApiKeys) -> None:
    default, own = key(keys, "infer"), key(keys, "infer", concurrency=2)
    finish = asyncio.Event()

    async def held(scope: Any, receive: Any, send: Any) -> None:
        await finish.wait()
        await nothing(scope, receive, send)

    app = authenticated(app=held, key_concurrency=1).app

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE_URL) as client:

            async def ask(headers: dict[str, str]) -> tuple[int, str | None]:
                response = await client.get("/models", headers=headers)
                return response.status_code, response.headers.get("retry-after")

            in_progress = [asyncio.create_task(ask(headers)) for headers in (default, own, own)]
            await asyncio.sleep(0)
            assert await ask(default) == await ask(own) == (429, "1")
            in_progress[0].cancel()
            await asyncio.wait(in_progress[:1])
            in_progress.append(asyncio.create_task(ask(default)))
            await asyncio.sleep(0)
            finish.set()
            assert await asyncio.gather(*in_progress[1:]) == [(204, None)] * 3
            assert await ask(default) == (204, None)

    asyncio.run(scenario())


@pytest.mark.usefixtures("_restore_logging")
def test_no_key_is_logged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", lines := io.StringIO())
    logging_setup.configure("DEBUG")
    for headers in service.headers.values():
        for at in ("/models", "/collections", "/nothing", "/models/x/reload"):
            service.client.get(at, headers=headers)
            service.client.post(at, headers=headers, content=b"x")
    logged = lines.getvalue()
    assert "/models/x/reload" in logged
    for headers in service.headers.values():
        assert headers["authorization"].removeprefix("Bearer ") not in logged


@settings(max_examples=50)
@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.floats(0, 30, allow_nan=False) | st.sampled_from([0.0, 12.0, 60.0]), max_size=40),
)
def test_the_requests_of_a_minute_agree_with_brute_force(limit: int, steps: list[float]) -> None:
    usage, now, passed = KeyUsage(limit, None), 0.0, list[float]()
    for step in steps:
        now += step
        within = [at for at in passed if at + 60.0 > now]  # by brute force
        wait = usage.count(now)
        assert (wait == 0.0) == (len(within) < limit)
        if wait:
            assert wait == pytest.approx(within[0] + 60.0 - now)
        else:
            passed.append(now)


def test_the_openapi_document_has_the_scope_of_each_route(service: Service) -> None:
    service.app.openapi_schema = None
    document = service.app.openapi()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for at, operations in document["paths"].items():
        for method, operation in operations.items():
            (scope,) = (scope for known_method, path, scope in CALLS if (known_method, path) == (method.upper(), at))
            assert operation.get("security", []) == ([{"key": [scope]}] if scope else [])
            assert not scope or {"401", "403", "429"} <= operation["responses"].keys()
