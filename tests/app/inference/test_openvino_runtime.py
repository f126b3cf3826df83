"""The service answers the same with OpenVINO as with torch."""

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
from tests.app.conftest import BASE_URL
from tests.conftest import encode, photo

PHOTOS = ("coffee", "chelsea", "rocket", "astronaut")


def create_client(
    tmp_path: Path, runtime: RuntimeSetting, *models: str, probes: Path = PROJECT / "examples"
) -> TestClient:
    """Return a client of a service with these shipped models, LeNet-5 and the runtime."""
    weights = tmp_path / "weights"
    weights.mkdir(exist_ok=True)
    for name in ("lenet5-mnist", *models):
        if not (weights / name).exists():
            (weights / name).symlink_to(PROJECT / "weights" / name)
    settings = Settings(
        weights=weights,
        default_classifier="lenet5-mnist",
        state=tmp_path / "state",
        probes=probes,
        runtime=runtime,
        upkeep_s=60,
    )
    return TestClient(create_app(settings), base_url=BASE_URL)


def selected_runtime(client: TestClient, name: str) -> str:
    """Wait until the model's runtime is selected, and return its name."""
    deadline = time.monotonic() + 300
    while (model := client.get(f"/models/{name}").json())["choosing"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runtime: str = model["runtime"]
    return runtime


def classify_and_search(tmp_path: Path, runtime: RuntimeSetting) -> tuple[str, list[dict[int, float]], list[float]]:
    """Return the runtime's name, each photo's probabilities, and the distances from one photo's features to all."""
    with create_client(tmp_path, runtime, "resnet-cifar10") as client:
        files = [("file", (f"{name}.png", encode(photo(name)))) for name in PHOTOS]
        client.post("/classify?model=resnet-cifar10", files=files)
        client.put(f"/collections/{runtime}", json={"embedder": "resnet-cifar10"})
        selected = selected_runtime(client, "resnet-cifar10")
        images = client.post("/classify?model=resnet-cifar10&top_k=10", files=files).json()["data"]
        for name, file in zip(PHOTOS, files, strict=True):
            enrolled = client.post(f"/collections/{runtime}/subjects/{name}/faces", files=[file])
            assert enrolled.json()["indexed"], enrolled.text
        (image,) = client.post(f"/search?collection={runtime}&limit=4", files=files[:1]).json()["data"]
    classes = [{item["class_id"]: item["confidence"] for item in image["predictions"]} for image in images]
    return selected, classes, [candidate["distance"] for candidate in image["faces"][0]["candidates"]]


def test_classes_and_features_are_equal(tmp_path: Path) -> None:
    runtime, classes, distances = classify_and_search(tmp_path, "torch")
    assert runtime == "torch-cpu-float32"
    assert len(distances) == len(PHOTOS)
    runtime, openvino_classes, openvino_distances = classify_and_search(tmp_path, "openvino-f32")
    assert runtime == "openvino-cpu-f32"
    assert openvino_classes == [pytest.approx(probabilities, abs=1e-4) for probabilities in classes]
    assert openvino_distances == pytest.approx(distances, abs=1e-4)
    assert len(list((tmp_path / "state" / "compiled").glob("*.xml"))) == 3  # two models, and the features of one


def test_faces_and_denoised_images_are_equal(tmp_path: Path) -> None:
    (tmp_path / "probe.jpg").write_bytes(encode(photo("chelsea").resize((160, 128)), "JPEG"))
    boxes, denoised = [], []
    runtime: RuntimeSetting
    for runtime, expected in (("torch", "torch-cpu-float32"), ("openvino-f32", "openvino-cpu-f32")):
        with create_client(tmp_path, runtime, "centerface", "denoiser-photo", probes=tmp_path) as client:
            small = encode(photo("astronaut").resize((200, 200)))
            assert client.post("/denoise", files={"file": small}).status_code == 200
            for name in ("centerface", "denoiser-photo"):
                assert selected_runtime(client, name) == expected
            files = [("file", ("a.png", encode(photo("astronaut")))), ("file", ("b.png", small))]
            images = client.post("/faces/detect", files=files).json()["data"]
            boxes.append([face["box"] for image in images for face in image["faces"]])
            image = Image.open(io.BytesIO(client.post("/denoise", files={"file": small}).content))
            denoised.append(np.asarray(image, dtype=int))
    assert len(boxes[0]) == 2
    assert boxes[1] == [pytest.approx(box, abs=0.01) for box in boxes[0]]
    assert np.abs(denoised[0] - denoised[1]).max() <= 1
