"""The Host allow-list, the Origin rule, and the addresses that the service may listen on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.auth.keys import ApiKeys
from app.auth.scopes import PROBES
from app.main import create_app
from app.middleware.host_and_origin import ExposedError, refuse_exposure
from app.middleware.routing import RouteTable
from app.settings import Settings, is_loopback
from index.factory import open_keys
from tests.app.conftest import BASE_URL


@pytest.fixture(scope="module")
def friendly() -> TestClient:
    """The service, not started, with an allowed origin."""
    return TestClient(create_app(Settings(allowed_origins=("https://friend.example",))), base_url=BASE_URL)


ALLOWED_HOSTS = ["127.0.0.1", "127.0.0.1:8000", "127.0.0.1:", "LOCALHOST:1", "[::1]:8000", "[::1]"]
REFUSED_HOSTS = """
    example.org 127.0.0.1.evil.example [::2]:8000 [::1].evil.com [::1]evil.com [::1 [::1]:8000.evil.com ::1
    localhost:80:evil.com localhost:evil evil@localhost localhost@evil.com localhost/evil.com localhost,evil.com
"""


@pytest.mark.parametrize("host", [*ALLOWED_HOSTS, "", "local host", *REFUSED_HOSTS.split()])
def test_only_allowed_hosts_are_served(client: TestClient, host: str) -> None:
    assert client.get("/models", headers={"host": host}).status_code == (200 if host in ALLOWED_HOSTS else 403)


@pytest.mark.parametrize("path", sorted(PROBES))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("host", ["10.1.2.3:8000", "[fd00::1]:8000", ""])
def test_health_probes_may_send_any_host(client: TestClient, path: str, method: str, host: str) -> None:
    assert client.request(method, path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),
        ({"origin": BASE_URL}, False),
        ({"origin": "http://127.0.0.1:8001"}, True),
        ({"origin": "https://evil.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "https://friend.example", "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "same-site"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
        ({"referer": BASE_URL + "/console?a=b"}, False),
        ({"referer": BASE_URL + ".evil.example/"}, True),
        ({"referer": "http://evil.example/page"}, True),
        ({"referer": "http://evil.example"}, True),
        ({"referer": "http://evil.example/", "sec-fetch-site": "none"}, False),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/classify"),
        ("GET", "/generate?n=0"),
        ("HEAD", "/generate?n=0"),
        ("GET", "/generate/interpolate"),
        ("GET", "/alerts/stream?collection="),
        ("HEAD", "/alerts/stream?collection="),
        ("GET", "/collections/people/duplicates?limit=0"),
    ],
)
def test_cross_origin_requests(
    friendly: TestClient, method: str, path: str, headers: dict[str, str], is_refused: bool
) -> None:
    """The requests are invalid: those that are not refused get another error."""
    response = friendly.request(method, path, headers={"content-type": "image/png"} | headers)
    assert (response.status_code == 403) == is_refused, response.text


def preflight(client: TestClient, origin: str) -> Any:
    headers = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return client.options("/classify", headers={"origin": origin, "sec-fetch-site": "cross-site", **headers})


def test_a_page_of_an_allowed_origin_may_call_and_read(friendly: TestClient) -> None:
    response = preflight(friendly, "https://friend.example")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://friend.example"
    assert "authorization" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers
    headers = friendly.get("/health/live", headers={"origin": "https://friend.example"}).headers
    assert headers["access-control-allow-origin"] == "https://friend.example"
    assert "x-request-id" in headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://friend.example.evil.example"])
def test_a_page_of_another_origin_may_not_read(friendly: TestClient, origin: str) -> None:
    assert preflight(friendly, origin).status_code == 400
    assert "access-control-allow-origin" not in preflight(friendly, origin).headers
    assert "access-control-allow-origin" not in friendly.get("/health/live", headers={"origin": origin}).headers


def test_without_allowed_origins_there_are_no_cors_headers(client: TestClient) -> None:
    response = preflight(client, "https://friend.example")
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/models", "/nothing", "/docs", "/v2", "/metrics"])
def test_default_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_routes_with_effects_refuse_other_origins(client: TestClient) -> None:
    """Also by GET, which a page can send with an <img> alone; reading is open to links."""
    closed = set()
    for route in RouteTable(client.app).all:  # type: ignore[arg-type]
        path = re.sub(r"\{[^}]+\}", "x", route.route.path or "")
        for method in route.methods or ():
            headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
            is_refused = client.request(method, path, headers=headers).status_code == 403
            assert is_refused == (method not in ("GET", "HEAD") or route.is_costly), (method, path)
            if is_refused and method == "GET":
                closed.add(path)
    assert closed == {"/generate", "/generate/interpolate", "/alerts/stream", "/collections/x/duplicates"}


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
    ],
)
def test_listening_beyond_loopback_needs_a_key_or_an_override(host: str, loopback: bool, tmp_path: Path) -> None:
    assert is_loopback(host) == loopback
    keys = ApiKeys(open_keys(tmp_path))
    if loopback:
        refuse_exposure(Settings(host=host), keys)
        return
    with pytest.raises(ExposedError, match="refusing to listen"):
        refuse_exposure(Settings(host=host), keys)
    refuse_exposure(Settings(host=host, allow_public=True), keys)
    refuse_exposure(Settings(host=host, require_keys=True), keys)
    key, _ = keys.create("a key", ["infer"])
    refuse_exposure(Settings(host=host), keys)
    keys.revoke(key.id)
    refuse_exposure(Settings(host=host), keys)  # the service stays closed to everyone
    keys.close()
