"""HEAD wherever GET is allowed, sub-paths behind a reverse proxy, and health probes that are not HTTP/1.1."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.alerts import stream
from app.cli.main import cli
from app.main import create_app
from app.middleware.routing import RouteTable
from app.settings import ConfigurationError, Settings
from tests.app.threaded import serving_here
from vestibule_client import Client

ROOT = "/vision/one"


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with VESTIBULE_ROOT_PATH, without that path."""
    state = tmp_path_factory.mktemp("state")
    with serving_here(Settings(root_path=ROOT, state=state, default_classifier="lenet5-mnist")) as url:
        yield url


def test_head_is_answered_as_get_without_the_body(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STREAM_S", 0.0)  # /alerts/stream ends at once
    routes = RouteTable(client.app)  # type: ignore[arg-type]
    names = {"{name:path}": "app.js", "{name}": "lenet5-mnist"}
    paths = [
        re.sub(r"\{name(:path)?\}", lambda match: names[match[0]], route.route.path or "")
        for route in routes.all
        if route.methods and "GET" in route.methods
    ]
    paths = [path for path in paths if path and "{" not in path and path != "/generate/interpolate"]
    assert len(paths) > 12
    for path in paths:
        get, head = client.get(path), client.head(path)
        assert (path, head.status_code, head.content) == (path, get.status_code, b"")
        assert head.headers.get("content-type") == get.headers.get("content-type")
        if path not in ("/metrics", "/generate"):
            assert head.headers.get("content-length") == get.headers.get("content-length")
    assert client.head("/classify").status_code == 405
    assert client.head("/nothing").status_code == 404
    assert client.put("/models").headers["allow"] == "GET, HEAD"


def raw_response(url: str, request: bytes) -> bytes:
    """Everything that the server sends until it closes the connection."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /health/ready HTTP/1.0", b"200"),
        (b"GET /models HTTP/1.0", b"403"),
        (b"HEAD /health/live HTTP/1.0", b"200"),
        (b"GET /models HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\nconnection: close", b"403"),
    ],
)
def test_missing_and_repeated_host_headers(live: str, request_head: bytes, status: bytes) -> None:
    head, body = raw_response(live, request_head + b"\r\n\r\n").split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert bool(body) == (not request_head.startswith(b"HEAD"))


@pytest.mark.parametrize("prefix", ["", ROOT], ids=["the proxy strips the prefix", "the proxy passes it on"])
def test_all_links_work_below_a_sub_path(service_url: str, prefix: str) -> None:
    def get(path: str) -> httpx.Response:
        """What a browser gets through the proxy, which only forwards the sub-path."""
        assert path.startswith(f"{ROOT}/")
        return httpx.get(service_url + prefix + path.removeprefix(ROOT))

    assert get(f"{ROOT}/health/ready").status_code == 200
    for page in (f"{ROOT}/docs", f"{ROOT}/"):
        response = get(page)
        links = [link for link in re.findall(r"(?:src|href)=[\"']([^\"'#]+)", response.text) if link]
        assert (response.status_code, len(links) > 2) == (200, True)
        for link in links:
            assert get(urljoin(page, link)).status_code == 200
    (document,) = re.findall(r"url: '([^']+)'", get(f"{ROOT}/docs").text)
    assert get(urljoin(f"{ROOT}/docs", document)).json()["servers"] == [{"url": ROOT}]
    redirect = get(f"{ROOT}/models/")
    assert (redirect.status_code, redirect.headers["location"]) == (307, f"{ROOT}/models")
    assert get(f"{ROOT}/v2/nothing").json().keys() == {"error"}  # in the format of the protocol
    assert get(f"{ROOT}/v1/nothing").json()["message"]


def test_the_sub_path_itself_redirects_to_the_console(service_url: str) -> None:
    redirect = httpx.get(service_url + ROOT)
    assert (redirect.status_code, redirect.headers["location"]) == (307, f"{ROOT}/")
    assert httpx.get(f"{service_url}{ROOT}s/models").status_code == 404
    with Client(service_url + ROOT) as client:
        assert client.ready().status == "ready"


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("/vision", "/vision"), ("/vision/", "/vision"), ("/a/b.c", "/a/b.c")]
)
def test_root_path_is_normalised(text: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_ROOT_PATH", text)
    assert Settings().root_path == path


def test_a_root_path_that_is_a_path_of_the_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="VESTIBULE_ROOT_PATH: /v1 is a path of the service"):
        create_app(Settings(root_path="/v1", state=tmp_path))
    create_app(Settings(root_path="/v", state=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::1", "[::1]", "::"])
def test_health_command_reaches_the_service(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an allow-list without loopback, and with proxy variables that lead nowhere."""
    settings = Settings(
        host=host,
        allow_public=True,
        allowed_hosts=("vision.example",),
        state=tmp_path,
        default_classifier="lenet5-mnist",
    )
    with serving_here(settings) as url:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        env = {
            "VESTIBULE_HOST": host,
            "VESTIBULE_PORT": str(urlsplit(url).port),
            "VESTIBULE_ALLOWED_HOSTS": "vision.example",
            "VESTIBULE_STATE": str(tmp_path),
        }
        outcome = CliRunner().invoke(cli, ["health"], env=env)
    assert (outcome.exit_code, '"ready"' in outcome.stdout) == (0, True), outcome.output
