"""`serve --workers`: requests, metrics and reloads reach all workers, and a dead one is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
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
from index.embedded.reloads import FileReloads
from tests.app.conftest import until
from tests.app.server.test_process import serving
from tests.conftest import encode

TIMEOUT_S = 180.0
DIGIT = {"file": ("digit.png", encode(Image.new("L", (28, 28))))}


class Service:
    """`vestibule serve --workers 2` with two small models, and the lines that it logged."""

    def __init__(self, process: subprocess.Popen[str], address: str, lines: list[str], weights: Path):
        self.process, self.address, self.lines, self.weights = process, address, lines, weights

    @property
    def pids(self) -> list[int]:
        """The ids of all workers started so far, in that order."""
        events = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [event["pid"] for event in events if event["event"] == "worker_started"]

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Send a request on a new connection, which any free worker accepts."""
        return httpx.request(method, self.address + path, timeout=TIMEOUT_S, **options)  # type: ignore[arg-type]

    @contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """Stop this worker for a while, so that the other one answers."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def wait_for(condition: Callable[[], bool], service: Service) -> None:
    until(lambda: service.process.poll() is not None or condition(), TIMEOUT_S)
    assert service.process.poll() is None, service.lines


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    weights = tmp_path_factory.mktemp("weights")
    for name in ("lenet5-mnist", "judge-mnist"):
        shutil.copytree(PROJECT / "weights" / name, weights / name)
    environment = {
        "VESTIBULE_WEIGHTS": str(weights),
        "VESTIBULE_STATE": str(tmp_path_factory.mktemp("state")),
        "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
        "VESTIBULE_WORKERS": "2",
    }
    with serving(**environment) as (process, address, lines):
        yield Service(process, address, lines, weights)


def classify(service: Service) -> bool:
    return service.request("POST", "/classify", files=DIGIT).status_code == 200


def test_each_worker_answers_and_their_metrics_are_summed(service: Service) -> None:
    first, second = service.pids
    for pid in (first, second):
        with service.stopped(pid):
            assert classify(service)
    metrics = service.request("GET", "/metrics").text.splitlines()
    (answered,) = [line for line in metrics if line.startswith("vestibule_requests_total") and "/classify" in line]
    assert float(answered.split()[-1]) == 2
    assert 'vestibule_model_loaded{model="lenet5-mnist",version="' in "".join(metrics)


def test_a_reload_reaches_all_workers(service: Service) -> None:
    shutil.rmtree(service.weights / "judge-mnist")
    assert service.request("POST", "/models/judge-mnist/reload").json()["change"] == "removed"
    for pid in service.pids:
        with service.stopped(pid):
            wait_for(lambda: service.request("GET", "/models/judge-mnist").status_code == 404, service)


def test_a_dead_worker_is_restarted_while_the_other_answers(service: Service) -> None:
    first, second = service.pids
    os.kill(first, signal.SIGKILL)
    for _ in range(5):
        assert classify(service)
    wait_for(lambda: len(service.pids) == 3, service)
    os.kill(service.pids[2], signal.SIGKILL)  # before it has reported that it serves
    wait_for(lambda: len(service.pids) == 4, service)
    with service.stopped(second):
        assert classify(service)  # waits until the new worker is ready


def test_sigterm_lets_a_request_in_progress_finish(service: Service) -> None:
    data = DIGIT["file"][1]

    def is_in_progress() -> bool:
        return "vestibule_requests_in_flight 1.0" in service.request("GET", "/metrics").text

    def slow_body() -> Iterator[bytes]:
        yield data[:40]
        wait_for(is_in_progress, service)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        yield data[40:]

    response = service.request("POST", "/classify", content=slow_body(), headers={"content-type": "image/png"})
    assert response.status_code == 200
    assert service.process.wait(TIMEOUT_S) == 0
    for pid in service.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_sees_each_reload_of_another_worker_once(tmp_path: Path) -> None:
    def start() -> ReloadSync:
        return ReloadSync(FileReloads(tmp_path / "reload_sync"))

    one, other = start(), start()
    one.announce("lenet5-mnist")
    assert (one.take_changes(), other.take_changes(), other.take_changes()) == ([], ["lenet5-mnist"], [])
    other.announce("lenet5-mnist")
    one.announce("vgg-cifar10")
    assert (one.take_changes(), other.take_changes()) == (["lenet5-mnist"], ["vgg-cifar10"])
    assert start().take_changes() == []  # a new worker has read the current weights folder


def test_each_worker_sees_one_gpu() -> None:
    assert [device(number, None) for number in range(3)] == ["0", "1", "2"]
    assert [device(number, "4,GPU-ab") for number in range(3)] == ["4", "GPU-ab", "4"]
    assert device(1, "") == ""  # hidden from the parent, and so from the workers
