"""Proxy variables: loopback is contacted directly, every other host through the proxy."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import PROJECT
from vestibule_client import NEVER, AsyncClient, Client, VestibuleError

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
COFFEE = PROJECT / "examples" / "coffee.jpg"


class Proxy(socketserver.ThreadingTCPServer):
    """A proxy that refuses every request and records its first line."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.lines: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Refuse(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Proxy)
        self.server.lines.append(self.rfile.readline().decode().strip())
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that all proxy variables name, in upper and lower case."""
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in VARIABLES:
            for spelling in (name, name.lower()):
                monkeypatch.delenv(spelling, raising=False)
                if name != "NO_PROXY":
                    monkeypatch.setenv(spelling, server.url)
        yield server
        server.shutdown()
        thread.join()


def test_loopback_bypasses_the_proxy(live: str, proxy: Proxy) -> None:
    with Client(live) as client:
        assert client.classify(COFFEE).first.predictions[0].class_ == "espresso"
    for host in ("localhost", "0.0.0.0"):
        with Client(live.replace("127.0.0.1", host)) as client:
            assert client.live().status == "live"

    async def ask() -> str:
        async with AsyncClient(live) as client:
            return (await client.live()).status

    assert asyncio.run(ask()) == "live"
    result = CliRunner().invoke(cli, ["classify", "--url", live, "--top-k", "1", str(COFFEE)])
    assert (result.exit_code, "espresso" in result.stdout) == (0, True)
    assert proxy.lines == []


@pytest.mark.parametrize("host", ["127.8.8.8", "[::1]", "[::ffff:127.0.0.1]", "localhost.", "LOCALHOST", "x.localhost"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_other_names_of_loopback_bypass_the_proxy(scheme: str, host: str, proxy: Proxy) -> None:
    with Client(f"{scheme}://{host}:1", retries=NEVER, timeout=5) as client, pytest.raises(VestibuleError):
        client.live()
    assert proxy.lines == []


def test_other_hosts_use_the_proxy(proxy: Proxy) -> None:
    hosts = ("vision.example", "10.0.0.1", "[::ffff:10.0.0.1]", "localhost.evil.example", "127.0.0.1.evil.example")
    for host in hosts:
        with Client(f"http://{host}", retries=NEVER) as client, pytest.raises(VestibuleError):
            client.live()
    assert [line.split("/")[2] for line in proxy.lines] == [host.strip("[]") for host in hosts]


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:9", "gopher://x", "http://[x"])
def test_unusable_proxy(live: str, monkeypatch: pytest.MonkeyPatch, proxy: Proxy, value: str) -> None:
    for name in ("ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, value)
    with Client(live) as client:
        assert client.live().status == "live"
    result = CliRunner().invoke(cli, ["classify", "--url", "http://vision.example", str(COFFEE)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert type(result.exception) is SystemExit
