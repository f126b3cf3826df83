"""`serve --workers`: what one process behind a port must do, and that the others are there when it dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.inference.reload_sync import ReloadSync
from app.server.supervisor import device
from app.settings import PROJECT
from tests.conftest import encode

PATIENCE_S = 180.0  # a bound, not what it takes
DIGIT = {"file": ("digit.png", encode(Image.new("L", (28, 28))))}


class Service:
    """`vestibule serve --workers 2` with two small models, and what it logged."""

    def __init__(self, folder: Path):
        self.weights = folder / "weights"
        for name in ("lenet5-mnist", "judge-mnist"):
            shutil.copytree(PROJECT / "weights" / name, self.weights / name)
        environment = os.environ | {
            "VESTIBULE_WEIGHTS": str(self.weights),
            "VESTIBULE_STATE": str(folder / "state"),
            "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
        }
        command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0", "--workers", "2"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def address(self) -> str:
        return next(line.split()[-1] for line in self.lines if "ready on http" in line)

    @property
    def pids(self) -> list[int]:
        """Of all workers so far, in the order they were started in."""
        events = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [event["pid"] for event in events if event["event"] == "worker_started"]

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """On a connection of its own, which whoever is free takes."""
        return httpx.request(method, self.address + path, timeout=PATIENCE_S, **options)  # type: ignore[arg-type]

    @contextmanager
    def without(self, pid: int) -> Iterator[None]:
        """This worker stands still meanwhile: the other one answers."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def wait_for(condition: Callable[[], bool], service: Service) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert service.process.poll() is None, service.lines
        assert time.monotonic() < deadline, service.lines
        time.sleep(0.05)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("workers"))
    try:
        wait_for(lambda: any("ready on http" in line for line in service.lines), service)
        yield service
    finally:
        service.end()


def classified(service: Service) -> bool:
    return service.request("POST", "/classify", files=DIGIT).status_code == 200


def test_each_of_them_answers_and_their_figures_are_one(service: Service) -> None:
    first, second = service.pids
    for pid in (first, second):
        with service.without(pid):
            assert classified(service)
    figures = service.request("GET", "/metrics").text.splitlines()
    (answered,) = [line for line in figures if line.startswith("vestibule_requests_total") and "/classify" in line]
    assert float(answered.split()[-1]) == 2
    assert 'vestibule_model_loaded{model="lenet5-mnist",version="' in "".join(figures)


def test_a_reload_reaches_both(service: Service) -> None:
    shutil.rmtree(service.weights / "judge-mnist")
    assert service.request("POST", "/models/judge-mnist/reload").json()["change"] == "removed"
    for pid in service.pids:
        with service.without(pid):
            wait_for(lambda: service.request("GET", "/models/judge-mnist").status_code == 404, service)


def test_one_is_killed_the_other_answers_and_it_comes_back(service: Service) -> None:
    first, second = service.pids
    os.kill(first, signal.SIGKILL)
    for _ in range(5):
        assert classified(service)
    wait_for(lambda: len(service.pids) == 3, service)
    with service.without(second):
        assert classified(service)  # by the new one, once it is ready: nobody was refused until then


def test_sigterm_lets_the_request_under_way_finish(service: Service) -> None:
    data = DIGIT["file"][1]

    def is_under_way() -> bool:
        return "vestibule_requests_in_flight 1.0" in service.request("GET", "/metrics").text

    def slow_body() -> Iterator[bytes]:
        yield data[:40]
        wait_for(is_under_way, service)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        yield data[40:]

    answer = service.request("POST", "/classify", content=slow_body(), headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert service.process.wait(PATIENCE_S) == 0
    for pid in service.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_hears_of_what_the_others_reloaded_and_only_once(tmp_path: Path) -> None:
    one, other = ReloadSync(tmp_path / "reloads"), ReloadSync(tmp_path / "reloads")
    one.announce("lenet5-mnist")
    assert (one.take_changes(), other.take_changes(), other.take_changes()) == ([], ["lenet5-mnist"], [])
    other.announce("lenet5-mnist")
    one.announce("vgg-cifar10")
    assert (one.take_changes(), other.take_changes()) == (["lenet5-mnist"], ["vgg-cifar10"])
    assert ReloadSync(tmp_path / "reloads").take_changes() == []  # it has read the weights folder since


def test_each_worker_sees_a_gpu_of_its_own() -> None:
    assert [device(number, None) for number in range(3)] == ["0", "1", "2"]
    assert [device(number, "4,GPU-ab") for number in range(3)] == ["4", "GPU-ab", "4"]
    assert device(1, "") == ""  # hidden from the parent, so from the workers
