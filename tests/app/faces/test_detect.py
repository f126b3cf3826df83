"""POST /faces/detect end to end, with the converted weights and pictures of an astronaut and an admiral."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.inference import loader
from app.settings import PROJECT
from models import align, checkpoint, detection_scale
from models.detector import CenterFaceDetector, Face
from tests.app.embedder import PREPROCESS
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo

URL = "/faces/detect"


def detect(client: TestClient, picture: Image.Image, threshold: float = 0.5) -> dict[str, Any]:
    response = client.post(
        URL, params={"threshold": threshold}, content=encode(picture), headers={"content-type": "image/png"}
    )
    assert response.status_code == 200, response.text
    (item,) = response.json()["data"]
    assert item["index"] == 0
    return dict(item)


def test_the_same_faces_as_the_detector_finds(client: TestClient) -> None:
    picture = side_by_side()
    answer = detect(client, picture)
    assert (answer["width"], answer["height"]) == picture.size
    network, card = checkpoint.load(PROJECT / "weights" / "centerface")
    expected = CenterFaceDetector(network.eval(), card.preprocess)(picture)
    assert len(expected) == 2
    for ours, theirs in zip(answer["faces"], expected, strict=True):
        assert ours["box"] == pytest.approx(theirs.box, abs=1e-2)
        assert ours["confidence"] == pytest.approx(theirs.score, abs=1e-4)
        assert np.allclose(list(ours["landmarks"].values()), theirs.landmarks, atol=1e-2)
        quality = align.measure(theirs, align.align(picture, theirs.landmarks))
        assert ours["quality"]["brightness"] == pytest.approx(quality.brightness, abs=0.5)
        assert ours["reasons"] == []


def test_landmarks_lie_where_their_names_say(client: TestClient) -> None:
    (face,) = detect(client, photo("astronaut"))["faces"]
    left, top, right, bottom = face["box"]
    points = face["landmarks"]
    assert left < points["left_eye"][0] < points["nose"][0] < points["right_eye"][0] < right
    assert top < points["left_eye"][1] < points["nose"][1] < points["left_mouth"][1] < bottom


def test_a_face_whose_landmarks_are_one_point_is_left_out(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = detection_scale.merge
    odd = Face((10.0, 10.0, 60.0, 60.0), 0.99, ((30.0, 30.0),) * 5)
    expected = detect(client, photo("astronaut"))
    monkeypatch.setattr(detection_scale, "merge", lambda scan, found: [odd, *merge(scan, found)])
    assert detect(client, photo("astronaut")) == expected
    monkeypatch.setattr(detection_scale, "merge", lambda scan, found: [odd])
    sent: dict[str, Any] = {"content": encode(photo("astronaut")), "headers": {"content-type": "image/png"}}
    assert client.post("/embed", **sent).json()["type"].endswith("no-face")


def test_a_cup_of_coffee_has_no_face(client: TestClient) -> None:
    assert detect(client, photo("coffee"))["faces"] == []


def test_a_poor_face_comes_with_its_reasons(client: TestClient) -> None:
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    (face,) = detect(client, dark)["faces"]
    assert {"SMALL_BOUNDING_BOX", "LOW_BRIGHTNESS"} <= set(face["reasons"])


def test_a_threshold_hides_unsure_faces(client: TestClient) -> None:
    assert detect(client, photo("astronaut"), threshold=0.99)["faces"] == []


def test_pictures_of_any_shapes_together_and_a_bad_one_between(client: TestClient) -> None:
    pictures = [photo("astronaut"), photo("astronaut").resize((200, 300)), photo("coffee"), grace_hopper()]
    files = [("file", (f"{i}.png", encode(picture))) for i, picture in enumerate(pictures)]
    files.insert(2, ("file", ("bad.png", b"no picture")))
    data = client.post(URL, files=files).json()["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3, 4]
    assert [len(item["faces"]) if "faces" in item else item["problem"]["status"] for item in data] == [1, 1, 415, 0, 1]
    alone = detect(client, pictures[1])["faces"]
    assert data[1]["faces"][0]["box"] == pytest.approx(alone[0]["box"], abs=1e-2)


@pytest.mark.parametrize(
    ("query", "status", "kind"),
    [
        ("model=lenet5-mnist", 422, "unknown-model"),
        ("threshold=0", 422, "invalid-parameters"),
        ("threshold=nan", 422, "invalid-parameters"),
        ("treshold=0.5", 422, "invalid-parameters"),
    ],
)
def test_bad_queries(client: TestClient, query: str, status: int, kind: str) -> None:
    response = client.post(f"{URL}?{query}", content=encode(photo("coffee")), headers={"content-type": "image/png"})
    assert (response.status_code, response.json()["type"]) == (status, f"urn:vestibule:problem:{kind}")


def test_no_more_pixels_go_through_at_once_than_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class Sums:
        name, size = "sums", 0

        def __call__(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(batch.shape))
            return batch.sum(dim=(1, 2, 3))

    monkeypatch.setattr(loader, "MAX_BATCH_PIXELS", 2 * 8 * 8)
    pictures = [torch.full((3, side, 8), float(i)) for i, side in enumerate((8, 4, 8, 8, 40, 4))]
    outputs = loader.run_by_shape(PREPROCESS, Sums(), pictures)
    assert [float(output) for output in outputs] == [float(picture.sum()) for picture in pictures]
    assert sorted(seen) == [(1, 3, 8, 8), (1, 3, 40, 8), (2, 3, 4, 8), (2, 3, 8, 8)]
