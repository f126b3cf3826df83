"""The service in its own process: its output, its shutdown, and the commands."""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0
from typer.testing import CliRunner

from app.cli.main import cli
from app.main import create_app
from app.settings import Settings
from models import torchvision_weights
from tests.app import bad_inputs
from tests.app.conftest import BASE_URL, until
from tests.conftest import encode, photo
from tests.models.helpers import enliven


@contextmanager
def serving(**environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `vestibule serve` on a free port; yield the process, its address, and the lines printed so far."""
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    lines: list[str] = []
    ready: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "ready on http" in line:
                ready.put(line.split()[-1])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, ready.get(timeout=300), lines  # a busy machine takes minutes to import torch
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_the_printed_example_works() -> None:
    with serving() as (process, address, lines):
        until(lambda: any("docs:" in line for line in lines))
        attempt = next(line.split("try:")[1].strip() for line in lines if "try:" in line)
        assert attempt.startswith("curl -F file=@")
        image = Path(attempt.split("@")[1].split()[0])
        url = attempt.split("'")[1]
        assert url.startswith(address)
        assert bad_inputs.is_espresso(httpx.post(url, files={"file": image.read_bytes()}))
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_a_stopping_service_answers_until_load_balancers_have_noticed(tmp_path: Path) -> None:
    shutil.copytree(Settings().weights / "lenet5-mnist", tmp_path / "weights" / "lenet5-mnist")
    settings = {"STATE": tmp_path / "state", "WEIGHTS": tmp_path / "weights", "DEFAULT_CLASSIFIER": "lenet5-mnist"}
    environment = {f"VESTIBULE_{name}": str(value) for name, value in settings.items()}
    with serving(**environment, VESTIBULE_STOP_DELAY_S="600") as (process, address, _):
        assert httpx.get(f"{address}/health/ready").status_code == 200
        process.send_signal(signal.SIGINT)
        until(lambda: httpx.get(f"{address}/health/ready").status_code == 503)
        assert httpx.get(f"{address}/health/ready").json()["detail"] == "the service is stopping"
        digit = {"file": encode(Image.new("L", (28, 28)))}
        assert httpx.post(f"{address}/classify", files=digit).status_code == 200
        process.send_signal(signal.SIGINT)  # does not wait any longer
        process.wait(60)


def test_listening_beyond_loopback_without_keys_is_refused() -> None:
    result = CliRunner().invoke(cli, ["serve", "--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "refusing to listen on 0.0.0.0" in result.output


def test_missing_weights_are_a_one_line_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert result.exit_code == 1
    assert "make install" in result.output
    assert "Traceback" not in result.output


def test_models_lists_models_and_refused_folders(tmp_path: Path) -> None:
    assert "lenet5-mnist" in CliRunner().invoke(cli, ["models"]).output
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    result = CliRunner().invoke(cli, ["models"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert "broken: refused" in result.output
    shutil.copytree(Settings().weights / "lenet5-mnist", tmp_path / "digits")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"")
    result = CliRunner().invoke(cli, ["models"], env={"VESTIBULE_WEIGHTS": str(tmp_path)})
    assert "digits: refused: the folder is digits, but its card is that of lenet5-mnist" in result.stderr
    assert "bare: refused: it has model.safetensors and no card.json" in result.stderr
    assert result.stdout == ""


def test_imported_torchvision_weights_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = EfficientNet_B0_Weights.DEFAULT
    coffee, astronaut = (weights.transforms()(photo(name)) for name in ("coffee", "astronaut"))
    torch.manual_seed(0)
    network = efficientnet_b0()
    enliven(network, torch.stack([coffee, astronaut]))
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    digest = hashlib.sha256((tmp_path / "mine.pth").read_bytes()).hexdigest()
    row = torchvision_weights.TorchvisionFile(prefix=digest[:8], url=weights.url, weights=weights)
    monkeypatch.setattr(torchvision_weights, "published_files", lambda name: [row])

    folder = tmp_path / "weights"
    command = ["import", "torchvision:efficientnet_b0", "--from", str(tmp_path / "mine.pth")]
    result = CliRunner().invoke(cli, command, env={"VESTIBULE_WEIGHTS": str(folder)})
    assert result.exit_code == 0, result.output
    assert str(folder / "efficientnet-b0") in result.output

    settings = Settings(weights=folder, default_classifier="efficientnet-b0")
    with TestClient(create_app(settings), base_url=BASE_URL) as client:
        body = client.post("/classify?top_k=1", files={"file": encode(photo("coffee"))}).json()
    with torch.inference_mode():
        expected = network.eval()(coffee[None])[0].softmax(0)
    assert body["model"] == "efficientnet-b0"
    (prediction,) = body["data"][0]["predictions"]
    assert prediction["class_id"] == int(expected.argmax())
    assert prediction["class"] == weights.meta["categories"][prediction["class_id"]]
    assert prediction["confidence"] == pytest.approx(float(expected.max()), abs=1e-3)


def test_an_unknown_weights_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"no weights")
    command = ["import", "torchvision:resnet50", "--from", str(tmp_path / "mine.pth")]
    result = CliRunner().invoke(cli, command, env={"VESTIBULE_WEIGHTS": str(tmp_path / "weights")})
    assert result.exit_code == 1
    assert "expected: resnet50-11ad3fa6.pth" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "weights").exists()
