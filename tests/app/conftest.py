"""The service in this process, with the shipped weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every service of these tests, in this process and in others, keeps its gallery here."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VESTIBULE_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """A client of the running service; its lifespan is up. Errors of the service are answers, not exceptions."""
    with TestClient(create_app(Settings()), base_url=BASE_URL, raise_server_exceptions=False) as running:
        yield running
