"""`vestibule quantise`: from a folder of images to a service that runs the quantised network."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import PROJECT
from models import checkpoint
from tests.app.conftest import started, until
from tests.app.embedder import random_embedder
from tests.conftest import encode, photo


def digit(row: int) -> Image.Image:
    canvas = Image.new("L", (28, 28))
    pixels = (load_digits().images[row] * (255 / 16)).astype(np.uint8)
    canvas.paste(Image.fromarray(pixels).resize((20, 20)), (4, 4))
    return canvas


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with lenet5-mnist; `images` beside it has 90 digits and a text."""
    shutil.copytree(PROJECT / "weights/lenet5-mnist", tmp_path / "weights/lenet5-mnist")
    for row in range(90):
        path = tmp_path / f"images/{row % 10}/{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digit(row).save(path)
    (tmp_path / "images/notes.txt").write_text("no image")
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "state"))
    return tmp_path / "weights"


def test_the_service_runs_the_quantised_network(weights: Path) -> None:
    images = ["--images", str(weights.parent / "images")]
    result = CliRunner().invoke(cli, ["quantise", "lenet5-mnist", *images, "--agreement", "0.9"])
    assert result.exit_code == 0, result.output
    assert "of 60 images" in result.output
    int8 = checkpoint.read_card(weights / "lenet5-mnist").int8
    assert int8 is not None
    files = [("file", (f"{row}.png", encode(digit(row)))) for row in range(90, 120)]
    photos = weights.parent / "photos"
    photos.mkdir()
    digit(3).save(photos / "3.jpg")
    with started(weights, runtime="openvino-int8", probes=photos) as client:
        until(lambda: client.get("/models/lenet5-mnist").json()["choosing"] is False)
        detail = client.get("/models/lenet5-mnist").json()
        assert (detail["runtime"], detail["card"]["int8"]["agreement"]) == ("openvino-cpu-int8", int8.agreement)
        answers = client.post("/classify?top_k=1", files=files).json()["data"]
        classes = [int(answer["predictions"][0]["class"]) for answer in answers]
        assert np.mean(np.array(classes) == load_digits().target[90:120]) >= 0.8
        (weights / "lenet5-mnist/int8.bin").write_bytes(b"")
        refused = client.post("/models/lenet5-mnist/reload")
        assert (refused.status_code, "sha256 of the int8 files" in refused.text) == (422, True)


@pytest.mark.parametrize("aligned", [False, True])
def test_an_embedder_is_quantised_with_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, aligned: bool) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    random_embedder(weights)
    images = tmp_path / "images"
    images.mkdir()
    # Small photos of the astronaut's face, and one photo without a face.
    face = photo("astronaut").crop((100, 0, 356, 256)).resize((128, 128))
    for number in range(70):
        face.crop((number % 8, number // 8, 112 + number % 8, 112 + number // 8)).save(images / f"{number}.png")
    Image.new("RGB", (112, 112)).save(images / "black.png")
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(weights))
    monkeypatch.setenv("VESTIBULE_STATE", str(tmp_path / "state"))
    options = ["--images", str(images), "--agreement", "0.5", *(["--aligned"] if aligned else [])]
    result = CliRunner().invoke(cli, ["quantise", "mobilefacenet-triplet", *options])
    assert result.exit_code == 0, result.output
    assert f"with torch for {48 if aligned else 47} images" in result.output
    int8 = checkpoint.read_card(weights / "mobilefacenet-triplet").int8
    assert int8 is not None
    assert f"a cosine of at least {int8.agreement:.4f}" in result.output


def test_errors_are_one_line(weights: Path) -> None:
    images = ["--images", str(weights.parent / "images")]
    for name, options, message in (
        ("nobody", images, "card.json"),
        ("lenet5-mnist", ["--images", str(weights.parent / "images/0")], "at least 60 images"),
    ):
        result = CliRunner().invoke(cli, ["quantise", name, *options])
        assert result.exit_code == 1
        assert message in result.output
