"""The service in this process, with the shipped weights."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from pydantic import SecretStr

from app.main import create_app
from app.settings import PROJECT, Settings
from tests.app.embedder import random_embedder

BASE_URL = "http://127.0.0.1:8000"


class Clock:
    """A clock that a test sets, in seconds."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait for the condition to become true; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of every service in these tests that names no other, also of other processes."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VESTIBULE_STATE", str(folder))
        yield folder


@pytest.fixture
def _restore_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore this process's logging after the test.

    A logger that caches its configuration at its first use would keep the test's for good, so none caches here.
    """
    config, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    configure = structlog.configure
    monkeypatch.setattr(structlog, "configure", lambda **new: configure(**new | {"cache_logger_on_first_use": False}))
    yield
    configure(**config)
    root.handlers = handlers
    root.setLevel(level)


@contextmanager
def started(weights: Path, **options: Any) -> Iterator[TestClient]:
    """Yield a client of a started service with these weights. Its exceptions are responses here, too."""
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", **options)
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """A client of the started service. Its exceptions are responses here, too."""
    with TestClient(create_app(Settings(deadline_s=120)), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a service with a face embedder of random weights and a gallery that only this module uses.

    Its backups are kept for 1.5 days.
    """
    weights, state = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("state")
    random_embedder(weights)
    (weights / "vgg-cifar10").symlink_to(PROJECT / "weights" / "vgg-cifar10")
    key = SecretStr(base64.b64encode(b"k" * 32).decode())
    with started(weights, state=state, upkeep_s=0.05, encryption_key=key, backup_days=1.5) as client:
        client.app_state["state"] = state
        yield client
