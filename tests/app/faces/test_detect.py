"""POST /faces/detect end to end, with the converted weights and photos of two people."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.inference import loaded_model
from app.settings import PROJECT
from models import align, checkpoint, detection_scale
from models.detection_scale import CenterFaceDetector
from models.detector import Face
from tests.app.conftest import started, until
from tests.app.embedder import PREPROCESS
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo

URL = "/faces/detect"


PNG = {"content-type": "image/png"}


def detect(client: TestClient, image: Image.Image, threshold: float = 0.5) -> dict[str, Any]:
    response = client.post(URL, params={"threshold": threshold}, content=encode(image), headers=PNG)
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert item["index"] == 0
    return dict(item)


def test_faces_equal_the_detector_s(client: TestClient) -> None:
    image = side_by_side()
    result = detect(client, image)
    assert (result["width"], result["height"]) == image.size
    network, card = checkpoint.load(PROJECT / "weights" / "centerface")
    expected = CenterFaceDetector(network.eval(), card.preprocess)(image)
    assert len(expected) == 2
    for face, own in zip(result["faces"], expected, strict=True):
        assert face["box"] == pytest.approx(own.box, abs=1e-2)
        assert face["confidence"] == pytest.approx(own.score, abs=1e-4)
        assert np.allclose(list(face["landmarks"].values()), own.landmarks, atol=1e-2)
        quality = align.measure(own, align.align(image, own.landmarks))
        assert face["quality"]["brightness"] == pytest.approx(quality.brightness, abs=0.5)
        assert face["reasons"] == []


def test_the_quantised_network_finds_the_same_faces(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "centerface").symlink_to(PROJECT / "weights/centerface")
    (tmp_path / "lenet5-mnist").symlink_to(PROJECT / "weights/lenet5-mnist")
    expected = detect(client, side_by_side())["faces"]
    with started(tmp_path, state=tmp_path / "state", runtime="openvino-int8", probes=PROJECT / "examples") as int8:
        detect(int8, side_by_side())  # loads it
        until(lambda: int8.get("/models/centerface").json()["choosing"] is False)
        assert int8.get("/models/centerface").json()["runtime"] == "openvino-cpu-int8"
        faces = detect(int8, side_by_side())["faces"]
    assert len(faces) == len(expected) == 2
    for face, own in zip(faces, expected, strict=True):
        assert face["box"] != own["box"]
        eyes = math.dist(own["landmarks"]["left_eye"], own["landmarks"]["right_eye"])
        for name, point in own["landmarks"].items():
            assert math.dist(face["landmarks"][name], point) <= 0.15 * eyes


def test_face_with_degenerate_landmarks_is_dropped(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = detection_scale.merge
    degenerate = Face((10.0, 10.0, 60.0, 60.0), 0.99, ((30.0, 30.0),) * 5)
    expected = detect(client, photo("astronaut"))
    monkeypatch.setattr(detection_scale, "merge", lambda *args: [degenerate, *merge(*args)])
    assert detect(client, photo("astronaut")) == expected
    monkeypatch.setattr(detection_scale, "merge", lambda *_: [degenerate])
    response = client.post("/embed", content=encode(photo("astronaut")), headers=PNG)
    assert response.json()["type"].endswith("no-face")


def test_threshold_and_reasons(client: TestClient) -> None:
    assert detect(client, photo("astronaut"), threshold=0.99)["faces"] == []
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    (face,) = detect(client, dark)["faces"]
    assert {"SMALL_BOUNDING_BOX", "LOW_BRIGHTNESS"} <= set(face["reasons"])


def test_list_of_images_of_several_sizes(client: TestClient) -> None:
    images = [photo("astronaut"), photo("astronaut").resize((200, 300)), photo("coffee"), grace_hopper()]
    files = [("file", (f"{i}.png", encode(image))) for i, image in enumerate(images)]
    files.insert(2, ("file", ("bad.png", b"no image")))
    data = client.post(URL, files=files).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3, 4]
    assert [len(item["faces"]) if "faces" in item else item["problem"]["status"] for item in data] == [1, 1, 415, 0, 1]
    single = detect(client, images[1])["faces"]
    assert data[1]["faces"][0]["box"] == pytest.approx(single[0]["box"], abs=1e-2)


@pytest.mark.parametrize(
    ("query", "kind"), [("model=lenet5-mnist", "unknown-model"), ("threshold=nan", "invalid-parameters")]
)
def test_invalid_queries(client: TestClient, query: str, kind: str) -> None:
    response = client.post(f"{URL}?{query}", content=encode(photo("coffee")), headers=PNG)
    assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{kind}")


def test_batches_have_a_maximum_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    class Sums:
        name, size = "sums", 0

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(batch.shape))
            return batch.sum(dim=(1, 2, 3))

    monkeypatch.setattr(loaded_model, "MAX_BATCH_PIXELS", 2 * 8 * 8)
    items = [torch.full((3, side, 8), float(i)) for i, side in enumerate((8, 4, 8, 8, 40, 4))]
    outputs = loaded_model.run_by_shape(PREPROCESS, Sums(), items)
    assert [float(output) for output in outputs] == [float(item.sum()) for item in items]
    assert sorted(shapes) == [(1, 3, 8, 8), (1, 3, 40, 8), (2, 3, 4, 8), (2, 3, 8, 8)]
