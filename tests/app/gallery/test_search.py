"""Searches, verification of one subject, and feedback over HTTP."""

from __future__ import annotations

import json
import math
import threading
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.gallery.access import GalleryAccess
from app.gallery.open_set import SPARE_MATCHES, DecisionRule
from index.embedded.query.search import Searches
from tests.app.embedder import MATCHING
from tests.app.face_pictures import grace_hopper, side_by_side, small_faces
from tests.app.gallery.helpers import PNG, candidate_ids, enrol, faces_of, post_image, search, wait_for_erasure
from tests.conftest import encode, photo

EILEEN, GRACE = "/collections/doors/subjects/eileen", "/collections/doors/subjects/grace"
INVALID = "urn:vestibule:problem:invalid-parameters"


@pytest.fixture
def gallery(gallery: TestClient) -> TestClient:
    """With two subjects in the collection `doors`."""
    for subject in ("eileen", "grace"):
        assert enrol(gallery, subject)["indexed"]
    return gallery


def test_an_enrolled_subject_is_the_first_candidate(gallery: TestClient) -> None:
    gallery.put(EILEEN, json={"name": "Eileen", "metadata": {"pass": 7}})
    response = search(gallery, photo("astronaut"))
    assert response["collection"] == {"name": "doors", "subjects": 2, "faces": 2, "exact": True, "chosen": None}
    (face,) = faces_of(response)
    best, other = face["candidates"]
    (enrolled,) = gallery.get(f"{EILEEN}/faces").json()["data"]
    assert (face["status"], best["subject_id"], best["name"]) == ("match", "eileen", "Eileen")
    assert best["face_id"] == enrolled["id"]
    assert best["distance"] == pytest.approx(0, abs=1e-5)
    assert enrolled["details"]["confidence"] > 0.5
    assert other["subject_id"] == "grace"
    assert response["operating_point"]["fmr"] == pytest.approx(0.0005, rel=1e-3)
    assert 1 - response["threshold"] == pytest.approx(MATCHING.threshold(response["operating_point"]["fmr"]).similarity)


def test_two_faces_of_an_image_match_two_subjects(gallery: TestClient) -> None:
    gallery.delete(EILEEN)
    faces = faces_of(search(gallery, side_by_side(), fpir=0.5))
    assert sum(face["status"] == "match" for face in faces) <= 1
    faces = faces_of(search(gallery, side_by_side(), fpir=0.5, repeated=True))
    assert [face["candidates"][0]["subject_id"] for face in faces] == ["grace", "grace"]


def test_search_uses_few_threads_and_reads_few_candidates(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read for the scope and one per image, which decides off the event loop, too."""
    reads: list[object] = []
    requests: list[tuple[int, int]] = []
    threads: list[str] = []
    read, decide = GalleryAccess._read, DecisionRule.decide

    async def recorded_read(self: GalleryAccess, function: Any) -> Any:
        reads.append(function)
        return await read(self, function)

    index_search = Searches.search

    def recorded_search(self: Searches, collection: str, queries: Any, k: int, **options: Any) -> Any:
        requests.append((len(queries), k))
        return index_search(self, collection, queries, k, **options)

    def recorded_decide(self: DecisionRule, faces: Any, *, repeated: bool) -> Any:
        threads.append(threading.current_thread().name)
        return decide(self, faces, repeated=repeated)

    monkeypatch.setattr(GalleryAccess, "_read", recorded_read)
    monkeypatch.setattr(Searches, "search", recorded_search)
    monkeypatch.setattr(DecisionRule, "decide", recorded_decide)
    image, centres = small_faces()
    faces = faces_of(search(gallery, image, limit=1))
    assert len(faces) >= len(centres)
    assert requests == [(len(faces), 2 + SPARE_MATCHES)]
    assert [name.startswith("store") for name in threads] == [True]
    assert len(reads) == 2


def test_search_is_limited_to_subjects_with_the_given_metadata(gallery: TestClient) -> None:
    gallery.put(EILEEN, json={"metadata": {"site": "north", "staff": True}})
    gallery.put(GRACE, json={"metadata": {"site": "south", "level": 2}})
    cases: list[tuple[object, list[str]]] = [
        ({"site": "south"}, ["grace"]),
        ({"level": {"in": [1, 2]}, "site": "south"}, ["grace"]),
        ({"staff": True}, ["eileen"]),
        ({"staff": 1}, []),
    ]
    for where, expected in cases:
        assert candidate_ids(search(gallery, photo("astronaut"), limit=1, where=json.dumps(where))) == expected
    whole, part = search(gallery, photo("astronaut")), search(gallery, photo("astronaut"), where='{"site": "south"}')
    assert (whole["collection"]["chosen"], part["collection"]["chosen"]) == (None, {"subjects": 1, "faces": 1})
    assert part["operating_point"]["fmr"] == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({}, 422),
        ({"collection": "nothing"}, 404),
        ({"collection": "doors", "fpir": "0"}, 422),
        ({"collection": "doors", "fpir": "nan"}, 422),
        *(
            ({"collection": "doors", "where": where}, 422)
            for where in ("", "north", "[]", "{}", '{"a": null}', '{"a": [1]}', '{"a": {"in": []}}', '{"a": NaN}')
        ),
    ],
)
def test_invalid_search_is_refused(gallery: TestClient, params: dict[str, str], status: int) -> None:
    response = gallery.post("/search", params=params, content=encode(photo("coffee")), headers=PNG)
    assert response.status_code == status
    assert (response.json()["type"] == INVALID) is (status == 422)


def test_classifier_features_find_similar_images(gallery: TestClient) -> None:
    created = gallery.put("/collections/things", json={"embedder": "vgg-cifar10"})
    assert (created.status_code, created.json()["dimensions"]) == (201, 256)
    for name in ("coffee", "chelsea", "rocket"):
        assert enrol(gallery, name, photo(name), "things")["indexed"][0]["face"] is None
    response = search(gallery, photo("chelsea").resize((200, 133)), collection="things")
    (whole,) = faces_of(response)
    assert (whole["status"], whole["reasons"]) == ("unknown", ["NOT_CALIBRATED"])
    assert (whole["candidates"][0]["subject_id"], whole["candidates"][0]["probability"]) == ("chelsea", None)
    assert (response["threshold"], response["operating_point"]) == (None, None)
    refused = gallery.post("/collections/things/subjects/coffee/verify", content=encode(photo("coffee")), headers=PNG)
    assert refused.status_code == 422
    assert gallery.delete("/collections/things").json()["subjects"] == 3


def test_a_subject_is_verified_by_its_own_image_only(gallery: TestClient) -> None:
    right = post_image(gallery, f"{EILEEN}/verify", photo("astronaut"), fmr=0.01)
    (face,) = gallery.get(f"{EILEEN}/faces").json()["data"]
    assert (right["verified"], right["denied"], right["face_id"]) == (True, False, face["id"])
    assert right["distance"] == pytest.approx(0, abs=1e-5)
    assert 1 - right["threshold"] == pytest.approx(MATCHING.threshold(0.01).similarity)
    assert right["operating_point"]["fmr"] == 0.01
    files = {name: ("a.png", encode(p)) for name, p in (("source", photo("astronaut")), ("target", grace_hopper()))}
    pair = gallery.post("/verify", files=files).json()
    wrong = post_image(gallery, f"{EILEEN}/verify", grace_hopper(), fmr=0.001)
    assert not wrong["verified"]
    for figure in ("distance", "probability", "threshold"):
        assert wrong[figure] == pytest.approx(pair[figure], abs=1e-4)


def test_verification_uses_the_most_prominent_face_and_fuses_a_subjects_faces(gallery: TestClient) -> None:
    assert post_image(gallery, f"{GRACE}/verify", side_by_side())["face"]["box"][0] > 512
    enrol(gallery, "grace", photo("astronaut"))
    best, mean, other = (
        post_image(gallery, f"{url}/verify", grace_hopper(), fmr=0.01, fusion=fusion)
        for url, fusion in ((GRACE, "best"), (GRACE, "mean"), (EILEEN, "best"))
    )
    assert mean["distance"] == pytest.approx((best["distance"] + other["distance"]) / 2, abs=1e-5)
    # A stranger may match one of two faces: the rate per comparison is smaller.
    assert 1 - best["threshold"] == pytest.approx(MATCHING.threshold(1 - math.sqrt(1 - 0.01)).similarity)
    assert 1 - mean["threshold"] == pytest.approx(MATCHING.threshold(0.01).similarity)
    gallery.put(GRACE, json={"metadata": {"door": "north"}})
    of_all, of_grace, by_subjects = (
        search(gallery, grace_hopper(), fpir=0.03, **params)["operating_point"]["fmr"]
        for params in ({}, {"where": '{"door": "north"}'}, {"fusion": "mean"})
    )
    assert of_all == pytest.approx(1 - (1 - 0.03) ** (1 / 3))
    assert of_grace == by_subjects == pytest.approx(1 - math.sqrt(1 - 0.03))


def test_impossible_verification_is_refused(gallery: TestClient) -> None:
    gallery.put("/collections/doors/subjects/faceless", json={})
    post = partial(gallery.post, headers=PNG)
    astronaut = encode(photo("astronaut"))
    for subject, image, query, status in (
        ("nobody", astronaut, "", 404),
        ("faceless", astronaut, "", 422),
        ("eileen", encode(photo("coffee")), "", 422),
        ("eileen", astronaut, "?fmr=0.5", 422),
        ("eileen", b"not an image", "", 415),
    ):
        response = post(f"/collections/doors/subjects/{subject}/verify{query}", content=image)
        assert response.status_code == status, subject
    assert gallery.post(f"{EILEEN}/verify", files=[("file", ("a.png", astronaut))] * 2).status_code == 400
    assert gallery.post(f"{EILEEN}/verify", json={"input": ["no base64!"]}).status_code == 400


def test_feedback_excludes_a_subject_until_it_is_erased(gallery: TestClient) -> None:
    assert candidate_ids(search(gallery, photo("astronaut"))) == ["eileen", "grace"]
    feedback = post_image(gallery, f"{EILEEN}/feedback", photo("astronaut"))
    response = search(gallery, photo("astronaut"), limit=1)
    assert (candidate_ids(response), faces_of(response)[0]["status"]) == (["grace"], "unknown")
    checked = post_image(gallery, f"{EILEEN}/verify", photo("astronaut"))
    assert (checked["verified"], checked["denied"]) == (False, True)
    assert gallery.get(f"{EILEEN}/feedback").json()["data"] == [feedback]
    assert gallery.get(f"{GRACE}/feedback").json()["data"] == []
    url = f"{EILEEN}/feedback/{feedback['id']}"
    receipt = gallery.delete(url).json()
    assert (receipt["subjects"], receipt["faces"]) == (0, 1)
    wait_for_erasure(gallery, receipt)
    assert candidate_ids(search(gallery, photo("astronaut"))) == ["eileen", "grace"]
    assert gallery.delete(url).status_code == 404
    for method in ("GET", "POST"):
        path = "/collections/doors/subjects/nobody/feedback"
        assert gallery.request(method, path, content=encode(photo("astronaut")), headers=PNG).status_code == 404
