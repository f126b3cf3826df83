"""The door: Host allow-list, Origin rule, and where the service may listen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.auth.keys import Keys
from app.auth.scopes import PROBES, Routes
from app.main import create_app
from app.middleware.authentication import _bearer
from app.middleware.host_and_origin import Exposed, refuse_exposure
from app.middleware.load_shedding import takes_a_place
from app.settings import Settings, is_loopback
from tests.app.conftest import BASE_URL


@pytest.fixture(scope="module")
def friendly() -> TestClient:
    """The service, not started, that another site's pages may call."""
    return TestClient(create_app(Settings(allowed_origins=("https://friend.example",))), base_url=BASE_URL)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.0.1:", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("example.org", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::2]:8000", 403),
        ("", 403),
        ("[::1].evil.com", 403),
        ("[::1]evil.com", 403),
        ("[::1", 403),
        ("[::1]:8000.evil.com", 403),
        ("::1", 403),
        ("localhost:80:evil.com", 403),
        ("localhost:evil", 403),
        ("evil@localhost", 403),
        ("localhost@evil.com", 403),
        ("localhost/evil.com", 403),
        ("localhost,evil.com", 403),
        ("local host", 403),
    ],
)
def test_host_allow_list(client: TestClient, host: str, status: int) -> None:
    assert client.get("/models", headers={"host": host}).status_code == status


def test_two_hosts_are_refused_and_so_are_two_keys(client: TestClient) -> None:
    hosts = [("host", "127.0.0.1"), ("host", "127.0.0.1")]
    assert client.get("/models", headers=hosts).status_code == 403
    keys = [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]
    assert _bearer({"type": "http", "headers": keys[:1]}) == "a"
    assert _bearer({"type": "http", "headers": keys}) is None


@pytest.mark.parametrize("path", sorted(PROBES))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("host", ["10.1.2.3:8000", "[fd00::1]:8000", "evil.example", ""])
def test_probes_may_name_any_host(client: TestClient, path: str, method: str, host: str) -> None:
    assert client.request(method, path, headers={"host": host}).status_code == 200


# Refused requests get 403 here; the others get past the door, to the 400 of an empty body.
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"origin": BASE_URL}, 400),
        ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 400),
        ({"sec-fetch-site": "none"}, 400),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://friend.example", "sec-fetch-site": "cross-site"}, 400),
    ],
)
def test_origin_rule(friendly: TestClient, headers: dict[str, str], status: int) -> None:
    response = friendly.post("/classify", content=b"", headers={"content-type": "image/png"} | headers)
    assert response.status_code == status


def preflight(client: TestClient, origin: str) -> Any:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return client.options("/classify", headers={"origin": origin, "sec-fetch-site": "cross-site", **asked})


def test_a_page_of_an_allowed_origin_may_ask_and_read(friendly: TestClient) -> None:
    asked = preflight(friendly, "https://friend.example")
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://friend.example"
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    got = friendly.get("/health/live", headers={"origin": "https://friend.example"})
    assert got.headers["access-control-allow-origin"] == "https://friend.example"
    assert "x-request-id" in got.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://friend.example.evil.example"])
def test_a_page_of_another_origin_may_not(friendly: TestClient, origin: str) -> None:
    assert preflight(friendly, origin).status_code == 400
    assert "access-control-allow-origin" not in preflight(friendly, origin).headers
    assert "access-control-allow-origin" not in friendly.get("/health/live", headers={"origin": origin}).headers


def test_without_allowed_origins_no_page_may(client: TestClient) -> None:
    answer = preflight(client, "https://friend.example")
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/models", "/nothing", "/docs", "/v2", "/metrics"])
def test_answers_are_kept_by_nobody_and_shown_in_no_other_page(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"


def test_what_changes_or_computes_is_closed_to_other_pages_and_what_reads_is_open(client: TestClient) -> None:
    """Each route, whatever its method: a page can send GET by an <img> alone."""
    routes = Routes(client.app)  # type: ignore[arg-type]
    closed = set()
    for route in routes.all:
        path = re.sub(r"\{[^}]+\}", "x", route.route.path or "")
        for method in route.methods or ():
            answer = client.request(method, path, headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"})
            refused = answer.status_code == 403
            assert refused == (method not in ("GET", "HEAD") or takes_a_place(route)), (method, path)
            if refused and method == "GET":
                closed.add(path)
    assert closed == {"/generate", "/generate/interpolate"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"referer": BASE_URL + "/console?a=b"}, 200),
        ({"referer": BASE_URL + ".evil.example/"}, 403),
        ({"referer": "http://evil.example/page"}, 403),
        ({"referer": "http://evil.example"}, 403),
        ({"referer": "http://evil.example/", "sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ({"origin": "https://evil.example"}, 403),
    ],
)
def test_drawing_by_get(client: TestClient, headers: dict[str, str], status: int) -> None:
    for path in ("/generate?n=1&seed=1", "/generate/interpolate?from_seed=1&to_seed=2&label=2"):
        assert client.get(path, headers=headers).status_code == status
        assert client.head(path, headers=headers).status_code == status


def test_reading_is_open_to_links_from_other_pages(client: TestClient) -> None:
    assert client.get("/models", headers={"sec-fetch-site": "cross-site"}).status_code == 200


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
def test_only_loopback_needs_no_keys(host: str, loopback: bool, tmp_path: Path) -> None:
    assert is_loopback(host) == loopback
    keys = Keys(tmp_path / "keys")
    if loopback:
        refuse_exposure(Settings(host=host), keys)
        return
    with pytest.raises(Exposed, match="refusing to listen"):
        refuse_exposure(Settings(host=host), keys)
    refuse_exposure(Settings(host=host, allow_public=True), keys)
    refuse_exposure(Settings(host=host, require_keys=True), keys)


def test_where_there_was_a_key_it_may_listen_anywhere(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys")
    made, _ = keys.create("one", ["infer"])
    refuse_exposure(Settings(host="0.0.0.0"), keys)
    keys.revoke(made.id)
    refuse_exposure(Settings(host="0.0.0.0"), keys)  # closed to all it is
    keys.close()
