"""Enrolment with an Idempotency-Key, and answers while the storage is not available."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.errors import Overloaded
from app.gallery.embedding_pipeline import EmbeddedFace, EmbeddingPipeline, ImageEmbedder
from index.errors import UnavailableError
from tests.app.face_pictures import grace_hopper
from tests.app.gallery.helpers import PNG, gallery_of, subjects, wait_for_erasure
from tests.conftest import encode, photo

SUBJECT = "/collections/doors/subjects/eileen"
EILEEN, GRACE = encode(photo("astronaut")), encode(grace_hopper())
PROBLEM = "urn:vestibule:problem:"


def post(client: TestClient, image: bytes = EILEEN, key: str | bytes = "k", **params: Any) -> Any:
    headers: Any = {**PNG, "idempotency-key": key}
    return client.post(f"{SUBJECT}/faces", content=image, headers=headers, params=params)


def post_both(client: TestClient, key: str) -> dict[str, Any]:
    files = [("file", ("a.png", image)) for image in (EILEEN, GRACE)]
    response = client.post(f"{SUBJECT}/faces", files=files, headers={"idempotency-key": key})
    assert response.status_code == 200
    return dict(response.json())


def face_ids(response: dict[str, Any]) -> list[str]:
    return [face["face_id"] for face in response["indexed"]]


def test_a_repeated_request_returns_the_same_faces_and_enrols_nothing(gallery: TestClient) -> None:
    first = post(gallery)
    assert (first.status_code, len(face_ids(first.json()))) == (200, 1)
    for _ in range(2):
        again = post(gallery)
        assert (again.status_code, again.json()) == (200, first.json())
    assert subjects(gallery) == {"eileen": 1}
    others = [post(gallery, key="another"), post(gallery, key="~" * 128)]
    others.append(gallery.post(f"{SUBJECT}/faces", content=EILEEN, headers=PNG))
    assert len({*face_ids(first.json()), *(id for other in others for id in face_ids(other.json()))}) == 4
    assert subjects(gallery) == {"eileen": 4}
    other_subject = gallery.post(
        SUBJECT.replace("eileen", "e") + "/faces", content=GRACE, headers={**PNG, "idempotency-key": "k"}
    )
    assert other_subject.status_code == 200


def test_a_key_of_another_image_or_other_parameters_is_a_conflict(gallery: TestClient) -> None:
    assert post(gallery).status_code == 200
    for refused in (post(gallery, GRACE), post(gallery, max_faces=2)):
        assert (refused.status_code, refused.json()["type"]) == (409, f"{PROBLEM}conflict")
        assert refused.json()["detail"] == "the Idempotency-Key was used for another request"
    assert subjects(gallery) == {"eileen": 1}


def test_requests_at_the_same_time_enrol_once(gallery: TestClient) -> None:
    with ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda _: post(gallery).json(), range(4)))
    assert len({face for response in responses for face in face_ids(response)}) == 1
    assert subjects(gallery) == {"eileen": 1}


def test_each_image_is_enrolled_once(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request enrols one of two images, the second request the other one."""
    embed = ImageEmbedder.embed_image

    async def embed_only_eileen(self: ImageEmbedder, pipeline: EmbeddingPipeline, data: bytes) -> list[EmbeddedFace]:
        if data != EILEEN:
            raise Overloaded("the queue is full")
        return await embed(self, pipeline, data)

    with monkeypatch.context() as patched:
        patched.setattr(ImageEmbedder, "embed_image", embed_only_eileen)
        first = post_both(gallery, "k")
    assert ([face["index"] for face in first["indexed"]], len(first["failed"])) == ([0], 1)
    second = post_both(gallery, "k")
    assert ([face["index"] for face in second["indexed"]], second["failed"]) == ([0, 1], [])
    assert second["indexed"][0] == first["indexed"][0]
    assert post_both(gallery, "k") == second
    assert subjects(gallery) == {"eileen": 2}


def test_a_repeated_request_does_not_restore_an_erased_subject(gallery: TestClient) -> None:
    first = post(gallery)
    wait_for_erasure(gallery, gallery.delete(SUBJECT).json())
    assert post(gallery).json() == first.json()
    assert gallery.get(SUBJECT).status_code == 404


def test_a_new_collection_of_the_same_name_is_another_one(gallery: TestClient) -> None:
    first = post(gallery)
    assert gallery.delete("/collections/doors").status_code == 200
    assert gallery.put("/collections/doors", json={}).status_code == 201
    assert face_ids(post(gallery).json()) != face_ids(first.json())
    assert subjects(gallery) == {"eileen": 1}


@pytest.mark.parametrize("key", ["", "two words", "k" * 129, "k\u00e9y".encode(), b"tab\t"])
def test_an_invalid_key_is_a_422(gallery: TestClient, key: str | bytes) -> None:
    refused = post(gallery, key=key)
    assert (refused.status_code, refused.json()["type"]) == (422, f"{PROBLEM}invalid-parameters")
    (error,) = refused.json()["errors"]
    assert error["parameter"] == "idempotency-key"
    assert subjects(gallery) == {}


def test_the_key_is_documented(gallery: TestClient) -> None:
    operation = gallery.get("/openapi.json").json()["paths"]["/collections/{collection}/subjects/{subject}/faces"][
        "post"
    ]
    (header,) = [parameter for parameter in operation["parameters"] if parameter["in"] == "header"]
    assert (header["name"], header["required"]) == ("idempotency-key", False)
    assert "409" in operation["responses"]


def test_unavailable_storage_is_a_503(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UnavailableError("cannot connect to db1.internal")

    monkeypatch.setattr(type(gallery_of(gallery)), "subject", fail)
    response = gallery.get(SUBJECT)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["type"] == f"{PROBLEM}storage-unavailable"
    assert "db1" not in response.text
