"""Merges, moved faces, crops and searches by vector over HTTP."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index.types import NewFace
from tests.app.gallery.helpers import candidate_ids, enrol, fingerprint, gallery_of, post_image, search, subjects
from tests.conftest import photo

DOORS = "/collections/doors"


@pytest.fixture
def gallery(gallery: TestClient) -> TestClient:
    """With a face each of `eileen`, `grace`, and `twin`, whose face is that of `eileen`; all in other directions."""
    vectors = np.eye(3, gallery.get(DOORS).json()["dimensions"], dtype=np.float32)[[0, 1, 0]]
    crop = io.BytesIO()
    Image.new("RGB", (112, 112)).save(crop, "WEBP")
    people = zip(("eileen", "grace", "twin"), vectors, strict=True)
    faces = [NewFace(subject, vector, crop=crop.getvalue()) for subject, vector in people]
    gallery_of(gallery).enrol("doors", faces, fingerprint(gallery))
    return gallery


def search_for(client: TestClient, number: int) -> list[str]:
    """Search for the face of `eileen` (0) or `grace` (1), and return the candidates."""
    embedding = np.eye(3, client.get(DOORS).json()["dimensions"])[number].tolist()
    (item,) = post(client, "/search/embeddings", {"embeddings": [embedding]}, collection="doors")["data"]
    return [candidate["subject_id"] for candidate in item["faces"][0]["candidates"]]


def post(client: TestClient, url: str, body: Any = None, **params: Any) -> dict[str, Any]:
    response = client.post(url, json=body, params=params)
    assert response.status_code == 200, response.text
    return dict(response.json())


def face_id(client: TestClient, subject: str) -> str:
    (face,) = client.get(f"{DOORS}/subjects/{subject}/faces").json()["data"]
    return str(face["id"])


def test_merge_and_undo(gallery: TestClient) -> None:
    gallery.put(f"{DOORS}/subjects/eileen", json={"name": "Eileen"})
    merge = post(gallery, f"{DOORS}/subjects/eileen/merge", {"from": ["twin"]})
    assert (merge["subject"], merge["absorbed"], merge["faces"], merge["undone_at"]) == ("eileen", ["twin"], 1, None)
    assert subjects(gallery) == {"eileen": 2, "grace": 1}
    assert search_for(gallery, 0) == ["eileen", "grace"]
    assert gallery.get(f"{DOORS}/merges").json() == {"data": [merge], "next": None}
    assert gallery.get(f"{DOORS}/merges", params={"limit": 1}).json()["next"] is not None
    assert post(gallery, f"{DOORS}/subjects/eileen/merge", {"from": ["twin"]}) == merge
    assert gallery.delete(f"{DOORS}/subjects/twin").json()["type"] == "urn:vestibule:problem:conflict"
    undone = post(gallery, f"{DOORS}/merges/{merge['id']}/undo")
    assert undone["undone_at"] is not None
    assert post(gallery, f"{DOORS}/merges/{merge['id']}/undo") == undone
    assert subjects(gallery) == {"eileen": 1, "grace": 1, "twin": 1}
    assert gallery.get(f"{DOORS}/merges").json()["data"] == []


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("subjects/eileen/merge", {"from": ["nobody"]}, 404),
        ("subjects/nobody/merge", {"from": ["eileen"]}, 404),
        ("subjects/eileen/merge", {"from": ["eileen"]}, 422),
        ("subjects/eileen/merge", {"from": []}, 422),
        ("subjects/eileen/merge", {"from": ["a/b"]}, 422),
        ("subjects/eileen/merge", {}, 422),
        ("merges/0123/undo", None, 404),
        ("faces/move", {"faces": ["0123"], "to": "eileen"}, 404),
        ("faces/move", {"faces": [], "to": "eileen"}, 422),
        ("faces/move", {"faces": ["0123"], "to": ""}, 422),
    ],
)
def test_invalid_changes_are_refused(gallery: TestClient, url: str, body: Any, status: int) -> None:
    response = gallery.post(f"{DOORS}/{url}", json=body)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert subjects(gallery) == {"eileen": 1, "grace": 1, "twin": 1}


def test_move_faces(gallery: TestClient) -> None:
    rejected = np.eye(1, gallery.get(DOORS).json()["dimensions"], dtype=np.float32)
    gallery.app.state.gallery._feedback.add("doors", "grace", rejected)  # type: ignore[attr-defined]
    face = face_id(gallery, "twin")
    moved = post(gallery, f"{DOORS}/faces/move", {"faces": [face], "to": "new"})
    assert (moved["subject"]["id"], moved["subject"]["faces"], moved["faces"]) == ("new", 1, [face])
    assert moved["withdrawn"] is None
    assert post(gallery, f"{DOORS}/faces/move", {"faces": [face], "to": "new"})["faces"] == []
    moved = post(gallery, f"{DOORS}/faces/move", {"faces": [face], "to": "grace"})
    assert gallery.get(f"/erasures/{moved['withdrawn']}").json()["faces"] == 1
    assert subjects(gallery) == {"eileen": 1, "grace": 2, "new": 0, "twin": 0}


def test_crop_of_an_enrolled_face(gallery: TestClient) -> None:
    response = gallery.get(f"{DOORS}/faces/{face_id(gallery, 'grace')}/crop")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert response.headers["cache-control"] == "no-store"
    with Image.open(io.BytesIO(response.content)) as image:
        assert (image.format, image.size) == ("WEBP", (112, 112))
    assert gallery.get(f"{DOORS}/faces/0123/crop").status_code == 404


def test_face_without_a_crop(gallery: TestClient) -> None:
    vector = np.ones(gallery.get(DOORS).json()["dimensions"], np.float32)
    (face,) = gallery_of(gallery).enrol("doors", [NewFace("grace", vector)], fingerprint(gallery))
    assert gallery.get(f"{DOORS}/faces/{face.token}/crop").status_code == 404


def test_embeddings_find_what_their_image_finds(gallery: TestClient) -> None:
    enrol(gallery, "ada", photo("astronaut"))
    embedding = post_image(gallery, "/embed", photo("astronaut"))["data"][0]["embedding"]
    params = {"collection": "doors", "fpir": 0.001, "fingerprint": fingerprint(gallery)}
    found = post(gallery, "/search/embeddings", {"embeddings": [embedding, embedding]}, **params)
    by_image = search(gallery, photo("astronaut"))
    assert {**found, "data": None} == {**by_image, "data": None}
    (expected,) = by_image["data"][0]["faces"]
    assert candidate_ids(by_image)[0] == "ada"
    for index, item in enumerate(found["data"]):
        (face,) = item["faces"]
        assert (item["index"], face["face"], face["status"]) == (index, None, "match")
        for candidate, other in zip(face["candidates"], expected["candidates"], strict=True):
            assert candidate["distance"] == pytest.approx(other["distance"], abs=1e-4)


def test_search_by_enrolled_faces_leaves_out_their_subject(gallery: TestClient) -> None:
    own = [face_id(gallery, subject) for subject in ("eileen", "twin", "grace")]
    params = {"collection": "doors", "fpir": 0.001}
    found = post(gallery, "/search/embeddings", {"faces": own}, **params, limit=2)
    candidates = [[other["subject_id"] for other in item["faces"][0]["candidates"]] for item in found["data"]]
    assert candidates[:2] == [["twin", "grace"], ["eileen", "grace"]]
    assert set(candidates[2]) == {"eileen", "twin"}
    assert [item["faces"][0]["status"] for item in found["data"]] == ["match", "match", "unknown"]
    (item,) = post(gallery, "/search/embeddings", {"faces": own[2:]}, **params, limit=1)["data"]
    assert len(item["faces"][0]["candidates"]) == 1


@pytest.mark.parametrize(
    ("body", "params", "status"),
    [
        ({}, {}, 422),
        ({"embeddings": [[1.0]], "faces": ["0123"]}, {}, 422),
        ({"embeddings": [[1.0]]}, {}, 422),
        ({"embeddings": [[0.0] * 4]}, {}, 422),
        ({"embeddings": [[1.0]]}, {"fingerprint": "other:1"}, 409),
        ({"faces": ["0123"]}, {}, 404),
        ({"faces": ["0123"]}, {"collection": "nowhere"}, 404),
    ],
)
def test_invalid_searches_are_refused(
    gallery: TestClient, body: dict[str, Any], params: dict[str, str], status: int
) -> None:
    response = gallery.post("/search/embeddings", json=body, params={"collection": "doors", **params})
    assert response.status_code == status


def test_likely_duplicates(gallery: TestClient) -> None:
    faces = {subject: face_id(gallery, subject) for subject in ("eileen", "twin")}
    gallery.put(f"{DOORS}/subjects/eileen", json={"name": "Eileen"})
    gallery.put(f"{DOORS}/subjects/empty", json={})
    found = gallery.get(f"{DOORS}/duplicates", params={"fmr": 0.001}).json()
    (pair,) = found["data"]
    assert (pair["subjects"], pair["names"]) == (["eileen", "twin"], ["Eileen", None])
    assert pair["faces"] == [faces["eileen"], faces["twin"]]
    assert pair["distance"] == pytest.approx(0, abs=1e-5)
    assert (found["next"], found["operating_point"]["fmr"]) == (None, 0.001)
    pages, after = [], ""
    while after is not None:
        page = gallery.get(f"{DOORS}/duplicates", params={"fmr": 0.001, "limit": 1, "after": after}).json()
        pages += page["data"]
        after = page["next"]
    assert pages == [pair]
    gallery.app.state.gallery._feedback.add(
        "doors", "twin", np.eye(1, gallery.get(DOORS).json()["dimensions"], dtype=np.float32)
    )
    assert gallery.get(f"{DOORS}/duplicates", params={"fmr": 0.001}).json()["data"] == []
    assert gallery.get(f"{DOORS}/duplicates", params={"fmr": 0.99}).status_code == 422
    assert gallery.get("/collections/nowhere/duplicates").status_code == 404


def test_collection_without_faces_has_no_duplicates(running: TestClient) -> None:
    running.put("/collections/vacant", json={})
    running.put("/collections/vacant/subjects/eileen", json={})
    assert running.get("/collections/vacant/duplicates", params={"fmr": 0.001}).json()["data"] == []
    running.delete("/collections/vacant")


def test_clusters_of_embeddings(gallery: TestClient) -> None:
    directions = np.eye(3, gallery.get(DOORS).json()["dimensions"])
    body = {"embeddings": directions[[0, 1, 1, 2, 1]].tolist()}
    found = post(gallery, "/cluster/embeddings", body, prior=0.5)
    assert (found["clusters"], found["single"]) == ([[1, 2, 4]], [0, 3])
    assert post(gallery, "/cluster/embeddings", body)["single"] == [0, 1, 2, 3, 4]  # unlikely by this calibration
    assert found["model"] == gallery.get(DOORS).json()["embedder"]
    packed = {"embeddings": base64.b64encode(np.asarray(body["embeddings"], "<f4").tobytes()).decode()}
    assert post(gallery, "/cluster/embeddings", packed, prior=0.5) == found
    many = {"embeddings": base64.b64encode(np.ones((5001, directions.shape[1]), "<f4").tobytes()).decode()}
    for invalid, status in (
        ({"embeddings": [[1.0]]}, 422),
        ({"embeddings": "AAAAAA=="}, 422),
        (many, 422),
        ({"embeddings": "AAA="}, 400),
        ({"embeddings": []}, 400),
        ({}, 400),
    ):
        assert gallery.post("/cluster/embeddings", json=invalid).status_code == status
    assert gallery.post("/cluster/embeddings", json=body, params={"prior": 1}).status_code == 422
    assert gallery.post("/cluster/embeddings", content=b"x").status_code == 415
