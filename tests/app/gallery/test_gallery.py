"""The gallery over HTTP, with a face embedder of random weights: the same picture is found again, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from structlog.testing import capture_logs

from app.auth.keys import FOLDER, ApiKeys
from app.gallery.open_set import Rule
from index.embedded.audit.log import AuditLog
from index.embedded.encryption.aead import OperatorKey
from index.embedded.gallery import EmbeddedGallery
from index.types import Match, Subject
from tests.app.embedder import MATCHING
from tests.app.face_pictures import grace_hopper, side_by_side
from tests.conftest import encode, photo


@pytest.fixture
def gallery(running: TestClient) -> Iterator[TestClient]:
    """With an empty collection `doors`."""
    assert running.put("/collections/doors", json={"keep_crops": True}).status_code == 201
    yield running
    assert running.delete("/collections/doors").status_code == 200


def enrol(client: TestClient, subject: str, picture: Image.Image, **query: int) -> dict[str, Any]:
    response = client.post(
        f"/collections/doors/subjects/{subject}/faces",
        params=query,
        content=encode(picture),
        headers={"content-type": "image/png"},
    )
    assert response.status_code == 200, response.text
    return dict(response.json())


def search(client: TestClient, picture: Image.Image, **query: float | str) -> dict[str, Any]:
    response = client.post(
        "/search",
        params={"collection": "doors", "fpir": 0.001, **query},
        content=encode(picture),
        headers={"content-type": "image/png"},
    )
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_collection_is_made_once(gallery: TestClient) -> None:
    again = gallery.put("/collections/doors", json={"keep_crops": True})
    assert again.status_code == 200
    assert again.json()["embedder"] == "mobilefacenet-triplet"
    assert again.json()["dimensions"] == 32
    other = gallery.put("/collections/doors", json={"embedder": "vgg-cifar10"})
    assert (other.status_code, other.json()["type"]) == (409, "urn:vestibule:problem:conflict")
    assert [c["name"] for c in gallery.get("/collections").json()["data"]] == ["doors"]
    detail = gallery.get("/collections/doors").json()
    assert (detail["subjects"], detail["faces"], detail["exact"]) == (0, 0, True)


def test_an_encrypted_collection_is_like_any_other(running: TestClient) -> None:
    made = running.put("/collections/vault", json={"encrypted": True})
    assert (made.status_code, made.json()["encrypted"]) == (201, True)
    assert running.put("/collections/vault", json={"encrypted": True}).status_code == 200
    assert running.put("/collections/vault", json={}).status_code == 409
    for key, picture in (("eileen-of-the-vault", photo("astronaut")), ("grace-of-the-vault", grace_hopper())):
        sent = encode(picture), {"content-type": "image/png"}
        answer = running.post(f"/collections/vault/subjects/{key}/faces", content=sent[0], headers=sent[1])
        assert answer.status_code == 200, answer.text
        properties = {"name": f"The name of {key}", "metadata": {"site": key}}
        assert running.put(f"/collections/vault/subjects/{key}", json=properties).json()["metadata"] == {"site": key}
    found = search(running, photo("astronaut"), collection="vault", where='{"site": "eileen-of-the-vault"}')
    assert found["collection"]["chosen"] == {"subjects": 1, "faces": 1}
    (candidate,) = found["data"][0]["faces"][0]["candidates"]
    assert (candidate["subject_id"], candidate["name"]) == ("eileen-of-the-vault", "The name of eileen-of-the-vault")
    pages = [running.get("/collections/vault/subjects", params={"limit": 1}).json()]
    pages.append(running.get("/collections/vault/subjects", params={"after": pages[0]["next"]}).json())
    listed = [one["id"] for page in pages for one in page["data"]]
    assert sorted(listed) == ["eileen-of-the-vault", "grace-of-the-vault"]
    assert running.delete("/collections/vault").status_code == 200


def test_without_an_operators_key_none_can_be_made(client: TestClient) -> None:
    refused = client.put("/collections/keyless", json={"encrypted": True, "embedder": "resnet-cifar10"})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:vestibule:problem:unprocessable")
    assert "VESTIBULE_ENCRYPTION_KEY" in refused.json()["detail"]
    assert client.get("/collections/keyless").status_code == 404


def test_one_whose_key_is_not_here_is_locked_in_words(running: TestClient) -> None:
    key = OperatorKey(b"another key, which is not here..")
    with closing(EmbeddedGallery(running.app_state["state"] / "gallery", key=key)) as other:
        other.create("vault", "mobilefacenet-triplet", "f1", 32, encrypted=True, keep_crops=False)
    locked = running.get("/collections/vault/subjects/eileen")
    assert (locked.status_code, locked.json()["type"]) == (503, "urn:vestibule:problem:collection-locked")
    assert locked.json()["detail"].startswith(f"'vault' needs the operator's key {key.id}; the one that is given is ")
    detail = running.get("/collections/vault").json()
    assert (detail["encrypted"], detail["faces"]) == (True, 0)
    assert running.delete("/collections/vault").status_code == 200


def test_the_log_of_requests_names_no_subject(running: TestClient) -> None:
    with capture_logs() as logs:
        for path in ("/collections/doors/subjects/eileen", "/collections/doors/subjects/eileen/faces", "/subjects/"):
            running.get(path)
    assert [line["path"] for line in logs if line["event"] == "request"] == [
        "/collections/doors/subjects/{subject}",
        "/collections/doors/subjects/{subject}/faces",
        "/subjects/",
    ]


def test_who_was_enrolled_is_found(gallery: TestClient) -> None:
    (first,) = enrol(gallery, "eileen", photo("astronaut"))["indexed"]
    enrol(gallery, "grace", grace_hopper())
    gallery.put("/collections/doors/subjects/eileen", json={"name": "Eileen", "metadata": {"pass": 7}})
    answer = search(gallery, photo("astronaut"))
    assert answer["collection"] == {"name": "doors", "subjects": 2, "faces": 2, "exact": True, "chosen": None}
    ((face,),) = (item["faces"] for item in answer["data"])
    assert face["status"] == "match"
    best, other = face["candidates"]
    assert (best["subject_id"], best["name"], best["face_id"]) == ("eileen", "Eileen", first["face_id"])
    assert best["distance"] == pytest.approx(0, abs=1e-5)
    assert other["subject_id"] == "grace"
    assert answer["operating_point"]["fmr"] == pytest.approx(0.0005, rel=1e-3)
    assert 1 - answer["threshold"] == pytest.approx(MATCHING.threshold(answer["operating_point"]["fmr"]).similarity)
    subject = gallery.get("/collections/doors/subjects/eileen").json()
    assert (subject["name"], subject["metadata"], subject["faces"]) == ("Eileen", {"pass": 7}, 1)
    (enrolled,) = gallery.get("/collections/doors/subjects/eileen/faces").json()["data"]
    assert enrolled["id"] == first["face_id"]
    assert enrolled["details"]["confidence"] > 0.5


def test_two_faces_of_one_picture_are_two_people(gallery: TestClient) -> None:
    enrol(gallery, "grace", grace_hopper())
    picture = side_by_side()
    (item,) = search(gallery, picture, fpir=0.5)["data"]
    one = [face["candidates"][0]["subject_id"] for face in item["faces"] if face["status"] == "match"]
    assert len(one) <= 1
    both = search(gallery, picture, fpir=0.5, repeated=True)["data"][0]["faces"]
    assert [face["candidates"][0]["subject_id"] for face in both] == ["grace", "grace"]


def test_faces_that_have_something_against_them_are_not_enrolled(gallery: TestClient) -> None:
    dark = Image.eval(photo("astronaut").resize((128, 128)), lambda value: value // 6)
    answer = enrol(gallery, "shade", dark)
    assert answer["indexed"] == []
    assert "LOW_BRIGHTNESS" in answer["rejected"][0]["reasons"]
    assert gallery.get("/collections/doors/subjects/shade").status_code == 404
    assert len(enrol(gallery, "shade", dark, quality_gate=0)["indexed"]) == 1
    (item,) = search(gallery, dark, quality_gate="true")["data"]
    assert [(face["status"], face["candidates"]) for face in item["faces"]] == [("rejected", [])]


def test_a_picture_has_as_many_faces_as_the_caller_allows(gallery: TestClient) -> None:
    one = enrol(gallery, "crowd", side_by_side())
    assert [face["reasons"] for face in one["rejected"]] == [["EXCEEDS_MAX_FACES"]]
    assert one["indexed"][0]["face"]["box"][0] > 512  # the larger face is to the right
    both = enrol(gallery, "crowd", side_by_side(), max_faces=2)
    assert (len(both["indexed"]), both["rejected"]) == (2, [])


def test_of_several_pictures_each_answers_for_itself(gallery: TestClient) -> None:
    files = [("file", ("a.png", encode(p))) for p in (photo("astronaut"), photo("coffee"), grace_hopper())]
    files.insert(1, ("file", ("b.png", b"no picture")))
    answer = gallery.post("/collections/doors/subjects/x/faces", files=files).json()
    assert [face["index"] for face in answer["indexed"]] == [0, 3]
    assert [(one["index"], one["problem"]["status"]) for one in answer["failed"]] == [(1, 415), (2, 422)]
    found = gallery.post("/search?collection=doors&fpir=0.001", files=files).json()["data"]
    assert [len(item["faces"]) if "faces" in item else item["problem"]["status"] for item in found] == [1, 415, 0, 1]


def test_a_picture_without_a_face_is_not_enrolled(gallery: TestClient) -> None:
    response = gallery.post(
        "/collections/doors/subjects/cup/faces", content=encode(photo("coffee")), headers={"content-type": "image/png"}
    )
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:no-face")


def test_who_was_erased_is_gone(gallery: TestClient) -> None:
    enrol(gallery, "eileen", photo("astronaut"))
    (grace,) = enrol(gallery, "grace", grace_hopper())["indexed"]
    receipts = [
        gallery.delete("/collections/doors/subjects/eileen").json(),
        gallery.delete(f"/collections/doors/faces/{grace['face_id']}").json(),
    ]
    assert [(one["subjects"], one["faces"]) for one in receipts] == [(1, 1), (0, 1)]
    ((face,),) = (item["faces"] for item in search(gallery, photo("astronaut"))["data"])
    assert (face["status"], face["candidates"]) == ("unknown", [])
    deadline = time.monotonic() + 30
    for receipt in receipts:
        while gallery.get(f"/erasures/{receipt['id']}").json()["status"] != "erased":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    state: Path = gallery.app_state["state"]
    assert not any(
        b"eileen" in path.read_bytes() for path in state.rglob("*") if path.is_file() and "db" not in path.name
    )
    assert [s["id"] for s in gallery.get("/collections/doors/subjects").json()["data"]] == ["grace"]


def test_subjects_are_listed_by_page(gallery: TestClient) -> None:
    for name in ("b", "a", "c"):
        assert gallery.put(f"/collections/doors/subjects/{name}", json={}).status_code == 200
    first = gallery.get("/collections/doors/subjects", params={"limit": 2}).json()
    assert ([s["id"] for s in first["data"]], first["next"]) == (["a", "b"], "b")
    second = gallery.get("/collections/doors/subjects", params={"limit": 2, "after": first["next"]}).json()
    assert ([s["id"] for s in second["data"]], second["next"]) == (["c"], None)


def test_a_classifiers_features_find_like_pictures(running: TestClient) -> None:
    made = running.put("/collections/things", json={"embedder": "vgg-cifar10"})
    assert (made.status_code, made.json()["dimensions"]) == (201, 256)
    for name in ("coffee", "chelsea", "rocket"):
        response = running.post(
            f"/collections/things/subjects/{name}/faces",
            content=encode(photo(name)),
            headers={"content-type": "image/png"},
        )
        assert response.json()["indexed"][0]["face"] is None
    smaller = encode(photo("chelsea").resize((200, 133)))
    answer = running.post("/search?collection=things", content=smaller, headers={"content-type": "image/png"}).json()
    ((whole,),) = (item["faces"] for item in answer["data"])
    assert (whole["status"], whole["reasons"]) == ("unknown", ["NOT_CALIBRATED"])
    assert whole["candidates"][0]["subject_id"] == "chelsea"
    assert whole["candidates"][0]["probability"] is None
    assert (answer["threshold"], answer["operating_point"]) == (None, None)
    assert running.delete("/collections/things").json()["subjects"] == 3


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
        ("get", "/collections/doors/subjects?limit=0", None, 422, "invalid-parameters"),
    ],
)
def test_bad_requests(
    gallery: TestClient, method: str, path: str, body: dict[str, Any] | None, status: int, kind: str
) -> None:
    response = gallery.request(method, path, json=body)
    assert (response.status_code, response.json()["type"]) == (status, f"urn:vestibule:problem:{kind}")


def test_a_wrong_method_is_told_all_right_ones(running: TestClient) -> None:
    response = running.request("PATCH", "/collections/doors/subjects/x")
    assert (response.status_code, response.headers["allow"]) == (405, "DELETE, GET, HEAD, PUT")
    assert running.get("/classify").headers["allow"] == "POST"


@pytest.mark.parametrize("query", ["", "?collection=nothing", "?collection=doors&fpir=0", "?collection=doors&fpir=nan"])
def test_bad_searches(gallery: TestClient, query: str) -> None:
    response = gallery.post(f"/search{query}", content=encode(photo("coffee")), headers={"content-type": "image/png"})
    assert response.status_code in {404, 422}


def match(key: int, similarity: float) -> Match:
    return Match(Subject(key, str(key), None, {}, 0.0, None), similarity, "")


def test_the_threshold_follows_the_number_of_comparisons() -> None:
    few, many = (Rule.of(MATCHING, 0.01, comparisons) for comparisons in (1, 10))
    assert few.fmr == pytest.approx(0.01)
    assert many.fmr is not None
    assert 1 - (1 - many.fmr) ** 10 == pytest.approx(0.01)
    beyond = Rule.of(MATCHING, 0.01, 1000)
    assert beyond.beyond
    assert not beyond.decide([[match(1, 1.0)]], repeated=False)[0].matched
    assert Rule.of(MATCHING, 0.01, 1000, extrapolate=True).decide([[match(1, 1.0)]], repeated=False)[0].matched
    assert Rule.of(MATCHING, 0.9, 1).fmr == 0.1


def test_a_subject_is_the_face_likest_to_it() -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    first, second = rule.decide([[match(1, 0.8), match(2, 0.7)], [match(1, 0.9), match(2, 0.1)]], repeated=False)
    assert ([m.subject.id for m in first.candidates], first.matched) == ([2], True)
    assert ([m.subject.id for m in second.candidates], second.matched) == ([1, 2][:1], True)


def test_the_audit_log_says_by_which_key(gallery: TestClient) -> None:
    keys = ApiKeys(gallery.app_state["state"] / FOLDER)
    made, secret = keys.create("one", ["infer", "enrol"])
    gallery.headers["authorization"] = f"Bearer {secret}"
    log: AuditLog = gallery.app.state.galleries._gallery.audit  # type: ignore[attr-defined]
    known = len(log.read(limit=1000)[0])
    first, second = (enrol(gallery, "eileen", photo("astronaut"))["indexed"][0]["face_id"] for _ in range(2))
    search(gallery, photo("astronaut"))
    picture = {"content": encode(photo("astronaut")), "headers": {"content-type": "image/png"}}
    assert gallery.post("/collections/doors/subjects/eileen/verify", **picture).status_code == 200  # type: ignore[arg-type]
    assert first != second
    assert gallery.delete(f"/collections/doors/faces/{first}").status_code == 200
    assert gallery.delete("/collections/doors/subjects/eileen").status_code == 200
    done = [entry.event for entry in log.read(limit=1000)[0][known:]]
    assert sorted(act.action for act in done) == ["enrol", "enrol", "erase", "erase", "search", "search"]
    assert {act.actor for act in done} == {made.id}
    keys.close()
