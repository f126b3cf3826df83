"""POST /embed and /verify end to end, with a face embedder of random weights: what it says of a face means nothing, but
must be the same by every way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from app.main import create_app
from app.settings import PROJECT, Settings
from models import align, checkpoint
from models.detector import CenterFaceDetector
from tests.app.conftest import BASE_URL
from tests.app.embedder import MATCHING, PREPROCESS, random_embedder
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    weights = tmp_path_factory.mktemp("weights")
    random_embedder(weights)
    settings = Settings(weights=weights, default_classifier="lenet5-mnist", state=tmp_path_factory.mktemp("state"))
    with TestClient(create_app(settings), base_url=BASE_URL, raise_server_exceptions=False) as running:
        running.app_state["weights"] = weights
        yield running


def by_hand(client: TestClient, picture: Image.Image) -> list[npt.NDArray[np.float32]]:
    """The embeddings of a picture's faces, left to right, by the parts of `models` alone."""
    finder, finder_card = checkpoint.load(PROJECT / "weights" / "centerface")
    network, card = checkpoint.load(client.app_state["weights"] / "mobilefacenet-triplet")
    vectors = []
    found = CenterFaceDetector(finder.eval(), finder_card.preprocess)(picture)
    for face in sorted(found, key=lambda face: face.box):
        pixels = torch.from_numpy(align.align(picture, face.landmarks)).movedim(-1, 0).float()
        image = (pixels[None] - 127.5) / 127.5
        with torch.no_grad():
            both = network(image) + network(image.flip(3))
        vectors.append((both[0] / both[0].norm()).numpy())
    assert card.preprocess == PREPROCESS
    return vectors


def pair(source: Image.Image | bytes, target: Image.Image | bytes) -> dict[str, tuple[str, bytes]]:
    parts = {"source": source, "target": target}
    return {name: ("a.png", encode(p) if isinstance(p, Image.Image) else p) for name, p in parts.items()}


def verify(client: TestClient, source: Image.Image, target: Image.Image, **query: float) -> dict[str, Any]:
    response = client.post("/verify", params=query, files=pair(source, target))
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_an_embedding_is_that_of_the_most_prominent_face(faces: TestClient) -> None:
    astronaut, admiral = by_hand(faces, side_by_side())
    response = faces.post("/embed", content=encode(side_by_side()), headers={"content-type": "image/png"})
    body = response.json()
    assert (response.status_code, body["object"], body["model"]) == (200, "list", "mobilefacenet-triplet")
    (item,) = body["data"]
    assert np.allclose(item["embedding"], admiral, atol=1e-4)
    assert not np.allclose(item["embedding"], astronaut, atol=1e-2)
    assert item["face"]["box"][0] > 512
    assert {"receive", "decode", "detect", "embed", "queue"} <= {
        part.partition(";")[0] for part in response.headers["server-timing"].split(", ")
    }


def test_base64_holds_the_same_numbers(faces: TestClient) -> None:
    picture = base64.b64encode(encode(photo("astronaut"))).decode()
    plain = faces.post("/embed", json={"input": [picture, "no picture"]}).json()["data"]
    packed = faces.post(
        "/v1/embeddings", json={"input": picture, "model": "mobilefacenet-triplet", "encoding_format": "base64"}
    ).json()["data"]
    assert plain[1]["problem"]["status"] == 400
    values = np.frombuffer(base64.b64decode(packed[0]["embedding"]), "<f4")
    assert np.array_equal(values, np.asarray(plain[0]["embedding"], np.float32))
    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-6)


def test_an_aligned_face_is_taken_as_it_is(faces: TestClient) -> None:
    finder, card = checkpoint.load(PROJECT / "weights" / "centerface")
    (face,) = CenterFaceDetector(finder.eval(), card.preprocess)(photo("astronaut"))
    crop = Image.fromarray(align.align(photo("astronaut"), face.landmarks))
    response = faces.post(
        "/embed", params={"aligned": True}, content=encode(crop), headers={"content-type": "image/png"}
    )
    (item,) = response.json()["data"]
    assert item["face"] is None
    assert np.allclose(item["embedding"], by_hand(faces, photo("astronaut"))[0], atol=1e-4)


def test_one_picture_shows_the_person_it_shows(faces: TestClient) -> None:
    answer = verify(faces, photo("astronaut"), photo("astronaut"))
    assert answer["verified"]
    assert answer["distance"] == pytest.approx(0, abs=1e-5)
    assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)
    assert answer["threshold"] == pytest.approx(0.0001)
    assert answer["operating_point"] == {"fmr": 0.001, "calibration": "nobody", "extrapolated": False, "prior": 0.5}
    assert answer["unmatched_faces"] == []


def test_the_most_prominent_source_face_meets_every_target_face(faces: TestClient) -> None:
    admiral = by_hand(faces, grace_hopper())[0]
    others = by_hand(faces, side_by_side())
    answer = verify(faces, grace_hopper(), side_by_side(), fmr=0.1)
    distances = sorted(1 - float(admiral @ other) for other in others)
    compared = answer["face_matches"] + answer["unmatched_faces"]
    assert [face["distance"] for face in compared] == pytest.approx(distances, abs=1e-4)
    assert answer["distance"] == compared[0]["distance"]
    assert answer["threshold"] == pytest.approx(0.8)
    assert [face["verified"] for face in compared] == [distance <= 0.8 for distance in distances]
    assert answer["source_face"]["box"][0] < compared[0]["face"]["box"][0]
    for face in compared:
        assert face["probability"] == pytest.approx(1 / (1 + np.exp(6 - 8 * (1 - face["distance"]))), abs=1e-6)


def test_embeddings_are_compared_as_their_pictures_are(faces: TestClient) -> None:
    pictures = [grace_hopper(), photo("astronaut")]
    files = [("file", (f"{i}.png", encode(picture))) for i, picture in enumerate(pictures)]
    admiral, astronaut = (item["embedding"] for item in faces.post("/embed", files=files).json()["data"])
    body = {"source": admiral, "targets": [astronaut, [2 * x for x in admiral]]}
    answer = faces.post("/verify/embeddings", params={"fmr": 0.01}, json=body).json()
    whole = verify(faces, *pictures, fmr=0.01)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    for name in ("verified", "probability", "distance"):
        assert answer["data"][0][name] == pytest.approx(whole[name], abs=1e-5)
    assert answer["data"][1]["distance"] == pytest.approx(0, abs=1e-6)
    assert answer["operating_point"] == whole["operating_point"]


def test_beyond_what_was_counted_is_said_to_be(faces: TestClient) -> None:
    answer = verify(faces, photo("astronaut"), photo("astronaut"), fmr=1e-6)
    assert answer["operating_point"]["extrapolated"]
    assert 1 - answer["threshold"] == pytest.approx(MATCHING.threshold(1e-6).similarity)


JSON = {"content-type": "application/json"}
ASTRONAUT, COFFEE = encode(photo("astronaut").resize((256, 256))), encode(photo("coffee"))
B64 = base64.b64encode(ASTRONAUT).decode()
BAD_PAIRS: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    "no face in the source": ("", {"files": pair(COFFEE, ASTRONAUT)}, 422, "no-face", "source: no face"),
    "no face in the target": ("", {"files": pair(ASTRONAUT, COFFEE)}, 422, "no-face", "target: no face"),
    "text as target": ("", {"files": pair(ASTRONAUT, b"hello")}, 415, "unsupported-image", "target: "),
    "empty source": ("", {"files": pair(b"", ASTRONAUT)}, 415, "unsupported-image", "source: "),
    "cut source": ("", {"files": pair(ASTRONAUT[:9000], ASTRONAUT)}, 400, "damaged-image", "source: "),
    "no target": ("", {"files": {"source": ("a.png", ASTRONAUT)}}, 400, "malformed-request", "one part named"),
    "a third part": (
        "",
        {"files": pair(ASTRONAUT, ASTRONAUT) | {"file": ("a.png", ASTRONAUT)}},
        400,
        "malformed-request",
        "unexpected part",
    ),
    "two sources": (
        "",
        {"files": [("source", ("a.png", ASTRONAUT)), ("source", ("b.png", ASTRONAUT))]},
        400,
        "malformed-request",
        "one part named",
    ),
    "a raw picture": (
        "",
        {"content": ASTRONAUT, "headers": {"content-type": "image/png"}},
        415,
        "unsupported-media-type",
        "multipart",
    ),
    "an empty body": ("", {"content": b"", "headers": JSON}, 400, "malformed-request", "the body must be"),
    "JSON without target": ("", {"json": {"source": B64}}, 400, "malformed-request", "the body must be"),
    "JSON with more": ("", {"json": {"source": B64, "target": B64, "x": 1}}, 400, "malformed-request", "body must be"),
    "a list as target": ("", {"json": {"source": B64, "target": [B64]}}, 400, "malformed-request", "body must be"),
    "a URL as target": (
        "",
        {"json": {"source": B64, "target": "https://example.org/a.jpg"}},
        400,
        "malformed-request",
        "never fetched",
    ),
    "JSON of noise": ("", {"content": b"\xff\xfe{", "headers": JSON}, 400, "malformed-request", "the body must be"),
    "fmr of 0": ("?fmr=0", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "invalid-parameters", ""),
    "fmr of NaN": ("?fmr=nan", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "invalid-parameters", ""),
    "fmr above what was counted": ("?fmr=0.5", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "unprocessable", "at most"),
    "an unknown model": ("?model=x", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "unknown-model", "mobilefacenet-trip"),
    "a classifier": ("?model=lenet5-mnist", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "unknown-model", ""),
    "no calibration": (
        "?model=uncalibrated",
        {"files": pair(ASTRONAUT, ASTRONAUT)},
        422,
        "unprocessable",
        "not calibrated",
    ),
    "an unknown parameter": ("?frm=0.1", {"files": pair(ASTRONAUT, ASTRONAUT)}, 422, "invalid-parameters", ""),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_bad_pair_is_told_what_is_wrong(faces: TestClient, name: str) -> None:
    query, request, status, kind, detail = BAD_PAIRS[name]
    response = faces.post(f"/verify{query}", **request)
    body = response.json()
    assert (response.status_code, body["type"]) == (status, f"urn:vestibule:problem:{kind}")
    assert detail in body.get("detail", "")


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"source": [1.0] * 32, "targets": []}, "invalid-parameters"),
        ({"source": [1.0] * 31, "targets": [[1.0] * 32]}, "unprocessable"),
        ({"source": [1.0] * 32, "targets": [[1.0] * 32, [1.0] * 33]}, "unprocessable"),
        ({"source": [0.0] * 32, "targets": [[1.0] * 32]}, "unprocessable"),
        ({"source": ["x"] * 32, "targets": [[1.0] * 32]}, "invalid-parameters"),
        ({"source": [1.0] * 5000, "targets": [[1.0] * 32]}, "invalid-parameters"),
    ],
)
def test_what_is_no_embedding_is_refused(faces: TestClient, body: dict[str, Any], kind: str) -> None:
    response = faces.post("/verify/embeddings", json=body)
    assert (response.status_code, response.json()["type"]) == (422, f"urn:vestibule:problem:{kind}")


@pytest.mark.parametrize("size", [1e308, 1e-308])
def test_a_vectors_length_does_not_matter(faces: TestClient, size: float) -> None:
    response = faces.post("/verify/embeddings", json={"source": [size] * 32, "targets": [[1.0] * 32]})
    assert response.status_code == 200
    assert response.json()["data"][0]["distance"] == pytest.approx(0, abs=1e-6)


def test_not_a_number_is_refused(faces: TestClient) -> None:
    body = json.dumps({"source": [float("nan")] * 32, "targets": [[1.0] * 32]})
    assert faces.post("/verify/embeddings", content=body, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": B64, "dimensions": 32}, 200),
        ({"input": B64, "dimensions": 64}, 422),
        ({"input": B64, "model": "lenet5-mnist"}, 422),
        ({"input": B64, "encoding_format": "hex"}, 400),
        ({"input": []}, 400),
        ({"input": [B64] * 65}, 413),
    ],
)
def test_openais_form(faces: TestClient, body: dict[str, Any], status: int) -> None:
    assert faces.post("/v1/embeddings", json=body).status_code == status


def test_a_picture_without_a_face_has_no_embedding(faces: TestClient) -> None:
    response = faces.post("/embed", content=COFFEE, headers={"content-type": "image/png"})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:no-face")
