"""The service with OpenVINO behind it answers what it answers with torch."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.main import create_app
from app.settings import PROJECT, Settings
from models.runtime_names import RuntimeSetting
from models.runtime_selection import RuntimeComparison
from tests.app.conftest import BASE_URL
from tests.conftest import encode, photo

PICTURES = ("coffee", "chelsea", "rocket", "astronaut")


def client(tmp_path: Path, wanted: RuntimeSetting, probes: Path = PROJECT / "examples") -> TestClient:
    weights = tmp_path / "weights"
    weights.mkdir(exist_ok=True)
    for name in ("lenet5-mnist", "resnet-cifar10"):
        if not (weights / name).exists():
            (weights / name).symlink_to(PROJECT / "weights" / name)
    state = tmp_path / "state"
    settings = Settings(
        weights=weights, default_classifier="lenet5-mnist", state=state, probes=probes, runtime=wanted, upkeep_s=60
    )
    return TestClient(create_app(settings), base_url=BASE_URL)


def settled(service: TestClient, name: str) -> str:
    """The model's runtime, once that is chosen."""
    deadline = time.monotonic() + 60
    while (told := service.get(f"/models/{name}").json())["choosing"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runtime: str = told["runtime"]
    return runtime


def answers(tmp_path: Path, wanted: RuntimeSetting) -> tuple[str, list[dict[int, float]], list[float]]:
    """The runtime's name, each picture's probabilities, and how far one picture's features are from the others'."""
    with client(tmp_path, wanted) as service:
        files = [("file", (f"{name}.png", encode(photo(name)))) for name in PICTURES]
        service.post("/classify?model=resnet-cifar10", files=files)
        service.put(f"/collections/{wanted}", json={"embedder": "resnet-cifar10"})
        runtime = settled(service, "resnet-cifar10")
        classes = service.post("/classify?model=resnet-cifar10&top_k=10", files=files).json()["data"]
        for name, file in zip(PICTURES, files, strict=True):
            enrolled = service.post(f"/collections/{wanted}/subjects/{name}/faces", files=[file])
            assert enrolled.json()["indexed"], enrolled.text
        found = service.post(f"/search?collection={wanted}&limit=4", files=files[:1]).json()["data"][0]["faces"][0]
    seen = [{one["class_id"]: one["confidence"] for one in each["predictions"]} for each in classes]
    return runtime, seen, [candidate["distance"] for candidate in found["candidates"]]


def test_the_same_classes_and_features(tmp_path: Path) -> None:
    runtime, classes, distances = answers(tmp_path, "torch")
    assert runtime == "torch-cpu-float32"
    assert len(distances) == len(PICTURES)
    fast, fast_classes, fast_distances = answers(tmp_path, "openvino-f32")
    assert fast == "openvino-cpu-f32"
    assert fast_classes == [pytest.approx(one, abs=1e-4) for one in classes]
    assert fast_distances == pytest.approx(distances, abs=1e-4)
    assert len(list((tmp_path / "state" / "compiled").glob("*.xml"))) == 3  # two wholes, and one's features


def test_the_fastest_is_chosen_by_itself(tmp_path: Path) -> None:
    with client(tmp_path, "auto") as service:
        runtime = settled(service, "lenet5-mnist")
    (verdict,) = (tmp_path / "state" / "compiled").glob("*.json")
    assert RuntimeComparison.model_validate_json(verdict.read_bytes()).fastest == runtime


def test_faces_and_clean_pictures_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "probe.jpg").write_bytes(encode(photo("chelsea").resize((160, 128)), "JPEG"))
    (tmp_path / "weights").mkdir()
    for name in ("centerface", "denoiser-photo"):
        (tmp_path / "weights" / name).symlink_to(PROJECT / "weights" / name)
    found, clean = [], []
    wanted: RuntimeSetting
    for wanted, expected in (("torch", "torch-cpu-float32"), ("openvino-f32", "openvino-cpu-f32")):
        with client(tmp_path, wanted, probes=tmp_path) as service:
            small = encode(photo("astronaut").resize((200, 200)))
            assert service.post("/denoise", files={"file": small}).status_code == 200
            assert (settled(service, "centerface"), settled(service, "denoiser-photo")) == (expected, expected)
            pictures = [("file", ("a.png", encode(photo("astronaut")))), ("file", ("b.png", small))]
            found.append(service.post("/faces/detect", files=pictures).json()["data"])
            cleaned = Image.open(io.BytesIO(service.post("/denoise", files={"file": small}).content))
            clean.append(np.asarray(cleaned, dtype=int))
    assert [len(one["faces"]) for one in found[0]] == [1, 1]
    for one, other in zip(*found, strict=True):
        assert other["faces"][0]["box"] == pytest.approx(one["faces"][0]["box"], abs=0.01)
    assert np.abs(clean[0] - clean[1]).max() <= 1
