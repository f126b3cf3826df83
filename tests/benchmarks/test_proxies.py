"""Benchmarks reach a service on this machine directly, whatever proxies the environment names."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from app.settings import PROJECT
from benchmarks.proxies import uses_proxies

SENDING = {"Client", "AsyncClient", "get", "post", "put", "patch", "delete", "head", "options", "request", "stream"}


def calls(path: Path) -> Iterator[ast.Call]:
    """Calls of httpx that send requests, or make what does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr in SENDING) == ("httpx", True)
        ):
            yield node


def test_every_client_of_the_benchmarks_says_whether_it_uses_proxies() -> None:
    found = [(path, call) for path in sorted((PROJECT / "benchmarks").rglob("*.py")) for call in calls(path)]
    assert len(found) > 15
    silent = [
        f"{path.name}:{call.lineno}"
        for path, call in found
        if not any(option.arg == "trust_env" for option in call.keywords)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000/models", False),
        ("http://[::1]:8000", False),
        ("https://example.org", True),
        ("http://10.0.0.7:8000", True),
    ],
)
def test_only_other_machines_are_reached_by_proxies(url: str, expected: bool) -> None:
    assert uses_proxies(url) is expected
    assert uses_proxies("https://example.com", url) is expected


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_service_on_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert httpx.get(url, trust_env=uses_proxies(url)).status_code == 200
        finally:
            server.shutdown()
            thread.join()
