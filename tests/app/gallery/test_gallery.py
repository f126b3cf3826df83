"""Collections, subjects, enrolment and erasure over HTTP."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from structlog.testing import capture_logs

from index.embedded.gallery import EmbeddedGallery
from index.operator_key import OperatorKey
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.app.gallery.helpers import (
    PNG,
    candidate_ids,
    enrol,
    faces_of,
    post_image,
    search,
    subjects,
    wait_for_erasure,
)
from tests.conftest import encode, photo

PROBLEM = "urn:vestibule:problem:"


def test_a_collection_is_created_once(running: TestClient) -> None:
    first = running.put("/collections/doors", json={})
    again = running.put("/collections/doors", json={"embedder": "mobilefacenet-triplet"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert (first.json()["embedder"], first.json()["dimensions"]) == ("mobilefacenet-triplet", 32)
    other = running.put("/collections/doors", json={"embedder": "vgg-cifar10"})
    assert (other.status_code, other.json()["type"]) == (409, f"{PROBLEM}conflict")
    assert [c["name"] for c in running.get("/collections").json()["data"]] == ["doors"]
    detail = running.get("/collections/doors").json()
    assert (detail["subjects"], detail["faces"], detail["exact"]) == (0, 0, True)
    assert running.delete("/collections/doors").status_code == 200
    created = running.put("/collections/vault", json={"encrypted": True})
    assert (created.status_code, created.json()["encrypted"]) == (201, True)
    assert running.put("/collections/vault", json={"encrypted": True}).status_code == 200
    assert running.put("/collections/vault", json={}).status_code == 409
    assert running.delete("/collections/vault").status_code == 200


def test_an_encrypted_collection_needs_its_operators_key(client: TestClient, running: TestClient) -> None:
    refused = client.put("/collections/keyless", json={"encrypted": True, "embedder": "resnet-cifar10"})
    assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}unprocessable")
    assert "VESTIBULE_ENCRYPTION_KEY" in refused.json()["detail"]
    assert client.get("/collections/keyless").status_code == 404
    key = OperatorKey(b"another key, which is not here..")
    with closing(EmbeddedGallery(running.app_state["state"] / "gallery", key=key)) as other:
        other.create("vault", "mobilefacenet-triplet", "f1", 32, encrypted=True, keep_crops=False)
    locked = running.get("/collections/vault/subjects/eileen")
    assert (locked.status_code, locked.json()["type"]) == (503, f"{PROBLEM}collection-locked")
    assert key.id in locked.json()["detail"]
    detail = running.get("/collections/vault").json()
    assert (detail["encrypted"], detail["faces"]) == (True, 0)
    assert running.delete("/collections/vault").status_code == 200


def test_the_request_log_contains_no_subject_ids(running: TestClient) -> None:
    with capture_logs() as logs:
        for path in ("/collections/doors/subjects/eileen", "/collections/doors/subjects/eileen/faces", "/subjects/"):
            running.get(path)
    assert [line["path"] for line in logs if line["event"] == "request"] == [
        "/collections/doors/subjects/{subject}",
        "/collections/doors/subjects/{subject}/faces",
        "/subjects/",
    ]


def test_faces_of_insufficient_quality_are_rejected(gallery: TestClient) -> None:
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    response = enrol(gallery, "shade", dark)
    assert response["indexed"] == []
    assert "LOW_BRIGHTNESS" in response["rejected"][0]["reasons"]
    assert gallery.get("/collections/doors/subjects/shade").status_code == 404
    assert len(enrol(gallery, "shade", dark, quality_gate=0)["indexed"]) == 1
    (face,) = faces_of(search(gallery, dark, quality_gate="true"))
    assert (face["status"], face["candidates"]) == ("rejected", [])
    refused = gallery.post("/collections/doors/subjects/cup/faces", content=encode(photo("coffee")), headers=PNG)
    assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}no-face")


def test_max_faces_limits_the_faces_of_an_image(gallery: TestClient) -> None:
    response = enrol(gallery, "crowd", side_by_side())
    assert [face["reasons"] for face in response["rejected"]] == [["EXCEEDS_MAX_FACES"]]
    assert response["indexed"][0]["face"]["box"][0] > 512  # the larger face is to the right
    response = enrol(gallery, "crowd", side_by_side(), max_faces=2)
    assert (len(response["indexed"]), response["rejected"]) == (2, [])


def test_each_image_of_a_list_has_its_own_result(gallery: TestClient) -> None:
    images = (encode(photo("astronaut")), b"not an image", encode(photo("coffee")), encode(grace_hopper()))
    files = [("file", ("a.png", image)) for image in images]
    response = gallery.post("/collections/doors/subjects/x/faces", files=files).json()
    assert [face["index"] for face in response["indexed"]] == [0, 3]
    assert [(item["index"], item["problem"]["status"]) for item in response["failed"]] == [(1, 415), (2, 422)]
    results = gallery.post("/search?collection=doors&fpir=0.001", files=files).json()["data"]
    assert [len(item["faces"]) if "faces" in item else item["problem"]["status"] for item in results] == [1, 415, 0, 1]


def test_erased_faces_are_not_found_and_receipts_say_when_they_are_gone(gallery: TestClient) -> None:
    enrol(gallery, "eileen")
    (face,) = enrol(gallery, "grace")["indexed"]
    receipts = [
        gallery.delete("/collections/doors/subjects/eileen").json(),
        gallery.delete(f"/collections/doors/faces/{face['face_id']}").json(),
    ]
    assert [(receipt["subjects"], receipt["faces"]) for receipt in receipts] == [(1, 1), (0, 1)]
    assert candidate_ids(search(gallery, photo("astronaut"))) == []
    for receipt in receipts:
        assert receipt["backups_until"] is None
        wait_for_erasure(gallery, receipt)
        erased = gallery.get(f"/erasures/{receipt['id']}").json()
        times = [datetime.fromisoformat(erased[name]) for name in ("requested_at", "erased_at", "backups_until")]
        assert times[0] <= times[1] == times[2] - timedelta(days=1.5)
    assert subjects(gallery) == {"grace": 0}


def test_lists_are_returned_in_pages(gallery: TestClient) -> None:
    url = "/collections/doors/subjects"
    for _ in range(3):
        enrol(gallery, "eileen")
        post_image(gallery, f"{url}/eileen/feedback", grace_hopper())
    for name in ("a", "b"):
        assert gallery.put(f"{url}/{name}", json={}).status_code == 200
    for path in (url, f"{url}/eileen/faces", f"{url}/eileen/feedback"):
        whole = gallery.get(path).json()
        assert (len(whole["data"]), whole["next"]) == (3, None)
        first = gallery.get(path, params={"limit": 2}).json()
        assert first["data"] == whole["data"][:2]
        last = gallery.get(path, params={"limit": 2, "after": first["next"]}).json()
        assert (last["data"], last["next"]) == (whole["data"][2:], None)
        for limit in (0, 10_001):
            assert gallery.get(path, params={"limit": limit}).status_code == 422
        for after in ("x", "-1", "1-1", f"{10**25}") if path != url else ():
            assert gallery.get(path, params={"after": after}).status_code == 422
    after = f"1.5-{'9' * 19}"  # the row id is beyond SQLite's integers
    assert len(gallery.get(f"{url}/eileen/feedback", params={"after": after}).json()["data"]) == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("get", "/collections/nothing", None, 404, "not-found"),
        ("delete", "/collections/nothing", None, 404, "not-found"),
        ("get", "/collections/doors/subjects/nobody", None, 404, "not-found"),
        ("delete", "/collections/doors/subjects/nobody", None, 404, "not-found"),
        ("delete", "/collections/doors/faces/0123", None, 404, "not-found"),
        ("get", "/erasures/0123", None, 404, "not-found"),
        ("put", "/collections/a%2Fb", {}, 404, "not-found"),
        ("put", "/collections/new", {"embedder": "nobody"}, 422, "unknown-model"),
        ("put", "/collections/new", {"embedder": "centerface"}, 422, "unknown-model"),
        ("put", "/collections/new", {"color": "red"}, 422, "invalid-parameters"),
        ("put", "/collections/doors/subjects/x", {"expires_at": "soon"}, 422, "invalid-parameters"),
        ("put", "/collections/doors/subjects/x", {"expires_at": "2030-01-01T00:00:00"}, 422, "invalid-parameters"),
        ("patch", "/collections/doors/subjects/x", None, 405, "method-not-allowed"),
    ],
)
def test_invalid_request_is_refused(
    gallery: TestClient, method: str, path: str, body: dict[str, Any] | None, status: int, kind: str
) -> None:
    response = gallery.request(method, path, json=body)
    assert (response.status_code, response.json()["type"]) == (status, f"{PROBLEM}{kind}")
    if status == 405:
        assert response.headers["allow"] == "DELETE, GET, HEAD, PUT"


def test_error_for_an_id_in_a_path_names_the_character(gallery: TestClient) -> None:
    response = gallery.put("/collections/doors/subjects/o%27neill", json={})
    detail = "expected 1 to 128 letters, digits, spaces and . _ @ : + -; got U+0027 (APOSTROPHE)"
    assert (response.status_code, response.json()["errors"]) == (422, [{"parameter": "subject", "detail": detail}])
