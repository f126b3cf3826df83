"""The door: Host allow-list, Origin rule, and where the service may listen."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.main import create_app
from app.settings import Settings, is_loopback
from tests.app.conftest import BASE_URL


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("example.org", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::2]:8000", 403),
        ("", 403),
    ],
)
def test_host_allow_list(client: TestClient, host: str, status: int) -> None:
    assert client.get("/health/live", headers={"host": host}).status_code == status


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
def test_origin_rule(headers: dict[str, str], status: int) -> None:
    app = create_app(Settings(allowed_origins=("https://friend.example",)))
    with TestClient(app, base_url=BASE_URL) as client:
        response = client.post("/classify", content=b"", headers={"content-type": "image/png"} | headers)
    assert response.status_code == status


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
def test_only_loopback_needs_no_keys(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    if loopback:
        assert Settings(host=host).host == host
    else:
        with pytest.raises(ValidationError, match="refusing to listen"):
            Settings(host=host)
        assert Settings(host=host, allow_public=True).host == host
