"""HEAD wherever GET answers, sub-paths behind a reverse proxy, and probes that are not HTTP/1.1."""

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

from app.auth.scopes import Routes
from app.cli.main import cli
from app.main import create_app
from app.settings import ConfigurationError, Settings
from tests.app.threaded import serving_here
from vestibule_client import Client

ROOT = "/vision/one"


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service that has VESTIBULE_ROOT_PATH, without that path."""
    settings = Settings(
        root_path=ROOT, state=tmp_path_factory.mktemp("below"), default_classifier="lenet5-mnist", runtime="torch"
    )
    with serving_here(settings) as url:
        yield url


def test_every_path_that_answers_get_answers_head(client: TestClient) -> None:
    routes = Routes(client.app)  # type: ignore[arg-type]
    paths = [one.route.path for one in routes.all if one.methods and "GET" in one.methods]
    names = {"{name:path}": "app.js", "{name}": "lenet5-mnist"}
    filled = [re.sub(r"\{name(:path)?\}", lambda found: names[found[0]], path) for path in paths if path]
    plain = [path for path in filled if "{" not in path and path != "/generate/interpolate"]
    assert len(plain) > 12
    for path in plain:
        got, headed = client.get(path), client.head(path)
        assert (path, headed.status_code, headed.content) == (path, got.status_code, b"")
        assert headed.headers.get("content-type") == got.headers.get("content-type")
        if path not in ("/metrics", "/generate"):
            assert headed.headers.get("content-length") == got.headers.get("content-length")


def test_head_where_there_is_no_get(client: TestClient) -> None:
    assert client.head("/classify").status_code == 405
    assert client.head("/nothing").status_code == 404
    assert client.put("/models").headers["allow"] == "GET, HEAD"


def raw(url: str, request: bytes) -> bytes:
    """All that the server sends until it closes."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as line:
        line.sendall(request)
        answer = b""
        while data := line.recv(65536):
            answer += data
    return answer


def test_probes_at_the_wire(live: str) -> None:
    assert raw(live, b"GET /health/ready HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw(live, b"GET /models HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    head, body = raw(live, b"HEAD /health/live HTTP/1.0\r\n\r\n").split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b""
    twice = b"GET /models HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
    assert raw(live, twice).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("prefix", ["", ROOT], ids=["the proxy strips the prefix", "the proxy passes it on"])
def test_below_a_sub_path(below: str, prefix: str) -> None:
    def get(path: str) -> httpx.Response:
        """As a browser beyond the proxy asks: all that it asks for is below the sub-path."""
        assert path.startswith(f"{ROOT}/")
        return httpx.get(below + prefix + path.removeprefix(ROOT))

    assert get(f"{ROOT}/health/ready").status_code == 200
    for page in (f"{ROOT}/docs", f"{ROOT}/"):
        shown = get(page)
        links = [link for link in re.findall(r"(?:src|href)=[\"']([^\"'#]+)", shown.text) if link]
        assert (shown.status_code, len(links) > 2) == (200, True)
        for link in links:
            assert get(urljoin(page, link)).status_code == 200
    (document,) = re.findall(r"url: '([^']+)'", get(f"{ROOT}/docs").text)
    assert get(urljoin(f"{ROOT}/docs", document)).json()["servers"] == [{"url": ROOT}]
    moved = get(f"{ROOT}/models/")
    assert (moved.status_code, moved.headers["location"]) == (307, f"{ROOT}/models")
    assert get(f"{ROOT}/v2/nothing").json().keys() == {"error"}  # in the protocol's own form
    assert get(f"{ROOT}/v1/nothing").json()["message"]


def test_the_sub_path_itself_leads_to_the_console(below: str) -> None:
    moved = httpx.get(below + ROOT)
    assert (moved.status_code, moved.headers["location"]) == (307, f"{ROOT}/")
    assert httpx.get(f"{below}{ROOT}s/models").status_code == 404
    with Client(below + ROOT) as client:
        assert client.ready().status == "ready"


@pytest.mark.parametrize(
    ("text", "path"), [("", ""), ("/", ""), ("/vision", "/vision"), ("/vision/", "/vision"), ("/a/b.c", "/a/b.c")]
)
def test_root_path(text: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_ROOT_PATH", text)
    assert Settings().root_path == path


@pytest.mark.parametrize("text", ["vision", "https://example.org/vision", "//evil.example", "/a/../b", "/a b", "/a?b"])
def test_what_is_no_path_is_refused(text: str) -> None:
    told = CliRunner().invoke(cli, ["models"], env={"VESTIBULE_ROOT_PATH": text}).stderr
    assert told.startswith("vestibule: VESTIBULE_ROOT_PATH: ")


def test_a_sub_path_that_is_a_path_of_the_service(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="VESTIBULE_ROOT_PATH: /v1 is a path of the service"):
        create_app(Settings(root_path="/v1", state=tmp_path))
    create_app(Settings(root_path="/v", state=tmp_path))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "::1", "[::1]", "::"])
def test_health_asks_where_the_service_listens(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        asked = CliRunner().invoke(cli, ["health"], env=env)
    assert (asked.exit_code, '"ready"' in asked.stdout) == (0, True), asked.output
