"""The number of this project's modules that a request runs through: each more costs a reader one more file."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import httpx
import pytest

from app.background_tasks import BACKGROUND
from app.cli.main import _server
from app.main import create_app
from app.server import logging_setup
from app.settings import PROJECT, Settings
from tests.app.embedder import random_embedder
from tests.app.threaded import running_server
from tests.conftest import encode, photo

PACKAGES = tuple(f"{PROJECT / package}/" for package in ("app", "index", "models"))
FRONT = ("app/server/", "app/middleware/")  # what every request passes
JPEG = {"content-type": "image/jpeg"}
IMAGE = encode(photo("coffee").resize((64, 64)), "JPEG")
FACE = encode(photo("astronaut").crop((150, 0, 300, 150)), "JPEG")


class Tracer:
    """A profile function that records the modules of all calls but those of background tasks and threads."""

    def __init__(self) -> None:
        self.modules: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGES) and not self._is_background():
            self.modules.add(file.removeprefix(f"{PROJECT}/"))

    def _is_background(self) -> bool:
        if threading.current_thread().name.startswith(("maintenance", "work_")):
            return True
        task = asyncio.current_task() if asyncio._get_running_loop() else None
        return task is not None and task.get_name() == BACKGROUND


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Tracer]]:
    """A client of a service with one enrolled face, and the tracer of all threads of the service."""
    weights = tmp_path_factory.mktemp("weights")
    random_embedder(weights)
    settings = Settings(
        weights=weights, default_classifier="lenet5-mnist", state=tmp_path_factory.mktemp("state"), port=0, upkeep_s=1e6
    )
    tracer = Tracer()
    threading.setprofile(tracer)
    try:
        with (
            running_server(_server(create_app(settings), settings, lambda port: None)) as (host, port),
            httpx.Client(base_url=f"http://{host}:{port}", timeout=120) as client,
        ):
            for path in ("/collections/c", "/collections/c/subjects/a"):
                client.put(path, json={}).raise_for_status()
            client.post("/collections/c/subjects/a/faces", content=FACE, headers=JPEG).raise_for_status()
            yield client, tracer
    finally:
        threading.setprofile(None)


# The aims are 14 and 22 for /classify, 22 and 32 for /search. A merge of modules lowers these numbers.
@pytest.mark.usefixtures("_restore_logging")
@pytest.mark.parametrize(
    ("path", "image", "most_behind", "most"),
    [("/classify", IMAGE, 18, 27), ("/search?collection=c", FACE, 45, 54)],
)
def test_a_request_passes_few_modules(
    traced: tuple[httpx.Client, Tracer], path: str, image: bytes, most_behind: int, most: int
) -> None:
    client, tracer = traced
    logging_setup.configure()
    passed: set[str] | None = None
    for _ in range(4):
        tracer.modules = set()
        response = client.post(path, content=image, headers=JPEG)
        assert response.status_code == 200, response.text
        # Commits of background tasks are made by the same thread as the request's: they are not in every request.
        passed = tracer.modules if passed is None else passed & tracer.modules
    assert passed is not None
    behind = sorted(module for module in passed if not module.startswith(FRONT))
    assert "app/middleware/load_shedding.py" in passed
    assert sys.getprofile() is None  # of this thread: the client's calls are not counted
    assert len(behind) <= most_behind, behind
    assert len(passed) <= most, sorted(passed)
