"""POST /embed and /verify end to end with a face embedder of random weights, compared with `models` used directly."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.settings import PROJECT
from models import align, checkpoint
from models.detection_scale import CenterFaceDetector
from tests.app.embedder import MATCHING, PREPROCESS
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo


def expected_embeddings(client: TestClient, image: Image.Image) -> list[npt.NDArray[np.float32]]:
    """The embeddings of an image's faces, from left to right, computed with `models`."""
    detector, detector_card = checkpoint.load(PROJECT / "weights" / "centerface")
    weights = client.app.state.settings.weights  # type: ignore[attr-defined]
    network, card = checkpoint.load(weights / "mobilefacenet-triplet")
    vectors = []
    detected = CenterFaceDetector(detector.eval(), detector_card.preprocess)(image)
    for face in sorted(detected, key=lambda face: face.box):
        pixels = torch.from_numpy(align.align(image, face.landmarks)).movedim(-1, 0).float()
        batch = (pixels[None] - 127.5) / 127.5
        with torch.no_grad():
            total = network(batch) + network(batch.flip(3))
        vectors.append((total[0] / total[0].norm()).numpy())
    assert card.preprocess == PREPROCESS
    return vectors


def pair(source: Image.Image | bytes, target: Image.Image | bytes) -> dict[str, tuple[str, bytes]]:
    parts = {"source": source, "target": target}
    return {name: ("a.png", encode(p) if isinstance(p, Image.Image) else p) for name, p in parts.items()}


def verify(client: TestClient, source: Image.Image, target: Image.Image, **query: float) -> dict[str, Any]:
    response = client.post("/verify", params=query, files=pair(source, target))
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_embed_uses_the_most_prominent_face(running: TestClient) -> None:
    astronaut, admiral = expected_embeddings(running, side_by_side())
    response = running.post("/embed", content=encode(side_by_side()), headers={"content-type": "image/png"})
    body = response.json()
    assert (response.status_code, body["object"], body["model"]) == (200, "list", "mobilefacenet-triplet")
    (item,) = body["data"]
    assert np.allclose(item["embedding"], admiral, atol=1e-4)
    assert not np.allclose(item["embedding"], astronaut, atol=1e-2)
    assert item["face"]["box"][0] > 512
    assert {"receive", "decode", "detect", "embed", "queue"} <= {
        part.partition(";")[0] for part in response.headers["server-timing"].split(", ")
    }


def test_base64_encoding(running: TestClient) -> None:
    image = base64.b64encode(encode(photo("astronaut"))).decode()
    plain = running.post("/embed", json={"input": [image, "not base64!"]}).json()["data"]
    encoded = running.post(
        "/v1/embeddings", json={"input": image, "model": "mobilefacenet-triplet", "encoding_format": "base64"}
    ).json()["data"]
    assert plain[1]["problem"]["status"] == 400
    values = np.frombuffer(base64.b64decode(encoded[0]["embedding"]), "<f4")
    assert np.array_equal(values, np.asarray(plain[0]["embedding"], np.float32))
    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-6)


def test_aligned_images_are_embedded_without_detection(running: TestClient) -> None:
    detector, card = checkpoint.load(PROJECT / "weights" / "centerface")
    (face,) = CenterFaceDetector(detector.eval(), card.preprocess)(photo("astronaut"))
    crop = Image.fromarray(align.align(photo("astronaut"), face.landmarks))
    response = running.post("/embed?aligned=true", content=encode(crop), headers={"content-type": "image/png"})
    (item,) = response.json()["data"]
    assert item["face"] is None
    assert np.allclose(item["embedding"], expected_embeddings(running, photo("astronaut"))[0], atol=1e-4)


def test_same_photo_matches(running: TestClient) -> None:
    result = verify(running, photo("astronaut"), photo("astronaut"))
    assert result["verified"]
    assert result["distance"] == pytest.approx(0, abs=1e-5)
    assert result["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)
    assert result["threshold"] == pytest.approx(0.0001)
    assert result["operating_point"] == {"fmr": 0.001, "calibration": "nobody", "extrapolated": False, "prior": 0.5}
    assert result["unmatched_faces"] == []
    extrapolated = verify(running, photo("astronaut"), photo("astronaut"), fmr=1e-6)
    assert extrapolated["operating_point"]["extrapolated"]
    assert 1 - extrapolated["threshold"] == pytest.approx(MATCHING.threshold(1e-6).similarity)


def test_the_most_prominent_source_face_is_compared_with_each_target_face(running: TestClient) -> None:
    admiral = expected_embeddings(running, grace_hopper())[0]
    targets = expected_embeddings(running, side_by_side())
    result = verify(running, grace_hopper(), side_by_side(), fmr=0.1)
    distances = sorted(1 - float(admiral @ target) for target in targets)
    compared = result["face_matches"] + result["unmatched_faces"]
    assert [face["distance"] for face in compared] == pytest.approx(distances, abs=1e-4)
    assert result["distance"] == compared[0]["distance"]
    assert result["threshold"] == pytest.approx(0.8)
    assert [face["verified"] for face in compared] == [distance <= 0.8 for distance in distances]
    assert result["source_face"]["box"][0] < compared[0]["face"]["box"][0]
    for face in compared:
        assert face["probability"] == pytest.approx(1 / (1 + np.exp(6 - 8 * (1 - face["distance"]))), abs=1e-6)


def test_verify_embeddings_agrees_with_verify(running: TestClient) -> None:
    images = [grace_hopper(), photo("astronaut")]
    files = [("file", (f"{i}.png", encode(image))) for i, image in enumerate(images)]
    admiral, astronaut = (item["embedding"] for item in running.post("/embed", files=files).json()["data"])
    body = {"source": admiral, "targets": [astronaut, [2 * x for x in admiral]]}
    result = running.post("/verify/embeddings", params={"fmr": 0.01}, json=body).json()
    expected = verify(running, *images, fmr=0.01)
    assert [item["index"] for item in result["data"]] == [0, 1]
    for name in ("verified", "probability", "distance"):
        assert result["data"][0][name] == pytest.approx(expected[name], abs=1e-5)
    assert result["data"][1]["distance"] == pytest.approx(0, abs=1e-6)
    assert result["operating_point"] == expected["operating_point"]


JSON = {"content-type": "application/json"}
ASTRONAUT, COFFEE = encode(photo("astronaut").resize((256, 256))), encode(photo("coffee"))
B64 = base64.b64encode(ASTRONAUT).decode()
URL = "https://example.org/a.jpg"
SAME = pair(ASTRONAUT, ASTRONAUT)
TWO_SOURCES = [("source", ("a.png", ASTRONAUT)), ("source", ("b.png", ASTRONAUT))]


@pytest.mark.parametrize(
    ("request_body", "status", "kind", "detail"),
    [
        ({"files": pair(COFFEE, ASTRONAUT)}, 422, "no-face", "source: no face"),
        ({"files": pair(ASTRONAUT, COFFEE)}, 422, "no-face", "target: no face"),
        ({"files": pair(ASTRONAUT, b"hello")}, 415, "unsupported-image", "target: "),
        ({"files": pair(b"", ASTRONAUT)}, 415, "unsupported-image", "source: "),
        ({"files": pair(ASTRONAUT[:9000], ASTRONAUT)}, 400, "damaged-image", "source: "),
        ({"files": {"source": ("a.png", ASTRONAUT)}}, 400, "malformed-request", "one part named"),
        ({"files": SAME | {"file": ("a.png", ASTRONAUT)}}, 400, "malformed-request", "unexpected part"),
        ({"files": TWO_SOURCES}, 400, "malformed-request", "one part named"),
        ({"content": ASTRONAUT, "headers": {"content-type": "image/png"}}, 415, "unsupported-media-type", "multipart"),
        ({"content": b"", "headers": JSON}, 400, "malformed-request", "the body must be"),
        ({"content": b"\xff\xfe{", "headers": JSON}, 400, "malformed-request", "the body must be"),
        ({"json": {"source": B64}}, 400, "malformed-request", "the body must be"),
        ({"json": {"source": B64, "target": B64, "x": 1}}, 400, "malformed-request", "body must be"),
        ({"json": {"source": B64, "target": [B64]}}, 400, "malformed-request", "body must be"),
        ({"json": {"source": B64, "target": URL}}, 400, "malformed-request", "never fetched"),
        ({"files": SAME, "params": {"fmr": "nan"}}, 422, "invalid-parameters", ""),
        ({"files": SAME, "params": {"fmr": "0.5"}}, 422, "unprocessable", "at most"),
        ({"files": SAME, "params": {"model": "x"}}, 422, "unknown-model", "mobilefacenet-trip"),
        ({"files": SAME, "params": {"model": "lenet5-mnist"}}, 422, "unknown-model", ""),
        ({"files": SAME, "params": {"model": "uncalibrated"}}, 422, "unprocessable", "not calibrated"),
        ({"files": SAME, "params": {"frm": "0.1"}}, 422, "invalid-parameters", ""),
    ],
)
def test_invalid_pairs(running: TestClient, request_body: dict[str, Any], status: int, kind: str, detail: str) -> None:
    response = running.post("/verify", **request_body)
    body = response.json()
    assert (response.status_code, body["type"]) == (status, f"urn:vestibule:problem:{kind}")
    assert detail in body.get("detail", "")


@pytest.mark.parametrize("size", [1e308, 1e-308])
def test_embeddings_are_normalised(running: TestClient, size: float) -> None:
    response = running.post("/verify/embeddings", json={"source": [size] * 32, "targets": [[1.0] * 32]})
    assert response.status_code == 200
    assert response.json()["data"][0]["distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/verify/embeddings", {"source": [1.0] * 31, "targets": [[1.0] * 32]}, 422),
        ("/verify/embeddings", {"source": [1.0] * 32, "targets": [[1.0] * 32, [1.0] * 33]}, 422),
        ("/verify/embeddings", {"source": [0.0] * 32, "targets": [[1.0] * 32]}, 422),
        ("/verify/embeddings", {"source": [float("nan")] * 32, "targets": [[1.0] * 32]}, 422),
        ("/v1/embeddings", {"input": B64, "dimensions": 32}, 200),
        ("/v1/embeddings", {"input": B64, "dimensions": 64}, 422),
        ("/v1/embeddings", {"input": B64, "model": "lenet5-mnist"}, 200),
        ("/v1/embeddings", {"input": B64, "model": "centerface"}, 422),
        ("/v1/embeddings", {"input": B64, "encoding_format": "hex"}, 400),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/embeddings", {"input": [B64] * 65}, 413),
        ("/embed", {"input": base64.b64encode(COFFEE).decode()}, 422),  # no face
    ],
)
def test_embeddings_are_checked(running: TestClient, path: str, body: dict[str, Any], status: int) -> None:
    response = running.post(path, content=json.dumps(body), headers=JSON)
    assert response.status_code == status, response.text
