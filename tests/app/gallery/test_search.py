"""Over HTTP: one subject verified, searches among some, what was said not to be somebody, and who has only so long."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.gallery.open_set import SPARE, Decision, Rule, decide_by_steps
from index.embedded.query.search import search as index_search
from index.types import Match
from tests.app.embedder import MATCHING
from tests.app.face_pictures import grace_hopper, side_by_side, small_faces
from tests.app.gallery.test_gallery import match
from tests.conftest import encode, photo

PNG = {"content-type": "image/png"}


@pytest.fixture
def gallery(running: TestClient) -> Iterator[TestClient]:
    """With two people in a collection `doors`."""
    assert running.put("/collections/doors", json={}).status_code == 201
    for subject, picture in (("eileen", photo("astronaut")), ("grace", grace_hopper())):
        assert post(running, f"/subjects/{subject}/faces", picture)["indexed"]
    yield running
    assert running.delete("/collections/doors").status_code == 200


def post(client: TestClient, path: str, picture: Image.Image, **query: object) -> dict[str, Any]:
    response = client.post(
        f"/collections/doors{path}",
        params=query,  # type: ignore[arg-type]
        content=encode(picture),
        headers=PNG,
    )
    assert response.status_code in {200, 201}, response.text
    return dict(response.json())


def search(client: TestClient, picture: Image.Image, **query: object) -> dict[str, Any]:
    params = {"collection": "doors", "fpir": 0.001, **query}
    response = client.post("/search", params=params, content=encode(picture), headers=PNG)  # type: ignore[arg-type]
    assert response.status_code == 200, response.text
    return dict(response.json())


def named(answer: dict[str, Any]) -> list[str]:
    ((face,),) = (item["faces"] for item in answer["data"])
    return [candidate["subject_id"] for candidate in face["candidates"]]


def has_state(client: TestClient, text: str) -> bool:
    """By a process of its own: whoever opens the ledger's file beside its connections takes their locks away."""
    found = subprocess.run(["grep", "-rqaF", text, str(client.app_state["state"])], check=False)
    assert found.returncode in {0, 1}
    return found.returncode == 0


def erased(client: TestClient, receipt: dict[str, Any]) -> bool:
    deadline = time.monotonic() + 60
    while client.get(f"/erasures/{receipt['id']}").json()["status"] != "erased":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


def test_a_subject_is_verified_by_its_picture_and_by_no_other(gallery: TestClient) -> None:
    right = post(gallery, "/subjects/eileen/verify", photo("astronaut"), fmr=0.01)
    assert (right["verified"], right["denied"]) == (True, False)
    assert right["distance"] == pytest.approx(0, abs=1e-5)
    assert 1 - right["threshold"] == pytest.approx(MATCHING.threshold(0.01).similarity)
    assert right["operating_point"]["fmr"] == 0.01
    (face,) = gallery.get("/collections/doors/subjects/eileen/faces").json()["data"]
    assert right["face_id"] == face["id"]
    files = {name: ("a.png", encode(p)) for name, p in (("source", photo("astronaut")), ("target", grace_hopper()))}
    pair = gallery.post("/verify", files=files).json()
    wrong = post(gallery, "/subjects/eileen/verify", grace_hopper(), fmr=0.001)
    assert not wrong["verified"]
    for figure in ("distance", "probability", "threshold"):
        assert wrong[figure] == pytest.approx(pair[figure], abs=1e-4)
    assert wrong["face"]["box"] == pair["face_matches" if pair["verified"] else "unmatched_faces"][0]["face"]["box"]


def test_the_most_prominent_face_is_verified_and_the_mean_counts_all(gallery: TestClient) -> None:
    crowd = side_by_side()
    meant = post(gallery, "/subjects/grace/verify", crowd)["face"]["box"]
    assert meant[0] > 512
    post(gallery, "/subjects/grace/faces", photo("astronaut"))
    best, mean, alone = (
        post(gallery, f"/subjects/{subject}/verify", grace_hopper(), fusion=fusion)["distance"]
        for subject, fusion in (("grace", "best"), ("grace", "mean"), ("eileen", "best"))
    )
    assert mean == pytest.approx((best + alone) / 2, abs=1e-5)


def test_who_has_several_faces_is_told_from_strangers_as_surely_as_who_has_one(gallery: TestClient) -> None:
    """The chance that a stranger is like one of two faces is as asked, not twice that."""
    post(gallery, "/subjects/grace/faces", photo("astronaut"))
    each = 1 - math.sqrt(1 - 0.01)
    by_best, by_mean = (
        1 - post(gallery, "/subjects/grace/verify", grace_hopper(), fmr=0.01, fusion=fusion)["threshold"]
        for fusion in ("best", "mean")
    )
    assert by_best == pytest.approx(MATCHING.threshold(each).similarity)
    assert by_mean == pytest.approx(MATCHING.threshold(0.01).similarity)
    gallery.put("/collections/doors/subjects/grace", json={"metadata": {"door": "north"}})
    of_all, of_grace, by_subjects = (
        search(gallery, grace_hopper(), fpir=0.03, **query)["operating_point"]["fmr"]
        for query in ({}, {"where": '{"door": "north"}'}, {"fusion": "mean"})
    )
    assert of_all == pytest.approx(1 - (1 - 0.03) ** (1 / 3))
    assert of_grace == by_subjects == pytest.approx(1 - math.sqrt(1 - 0.03))


def test_who_or_what_cannot_be_verified(gallery: TestClient) -> None:
    gallery.put("/collections/doors/subjects/faceless", json={})
    gallery.put("/collections/things", json={"embedder": "vgg-cifar10"})
    gallery.put("/collections/things/subjects/cup", json={})
    cases = (
        ("doors/subjects/nobody", photo("astronaut"), "", 404),
        ("doors/subjects/faceless", photo("astronaut"), "", 422),
        ("doors/subjects/eileen", photo("coffee"), "", 422),
        ("doors/subjects/eileen", photo("astronaut"), "?fmr=0.5", 422),
        ("things/subjects/cup", photo("coffee"), "", 422),
    )
    for path, picture, query, status in cases:
        answer = gallery.post(f"/collections/{path}/verify{query}", content=encode(picture), headers=PNG)
        assert answer.status_code == status, path
    two = [("file", ("a.png", encode(photo("astronaut"))))] * 2
    url = "/collections/doors/subjects/eileen/verify"
    assert gallery.post(url, files=two).status_code == 400
    assert gallery.post(url, json={"input": ["no base64!"]}).status_code == 400
    assert gallery.post(url, content=b"no picture", headers=PNG).status_code == 415
    gallery.delete("/collections/things")


def test_a_search_is_among_those_with_the_metadata_asked_for(gallery: TestClient) -> None:
    people = {"eileen": {"site": "north", "level": 1, "staff": True}, "grace": {"site": "south", "level": 2}}
    for subject, metadata in people.items():
        gallery.put(f"/collections/doors/subjects/{subject}", json={"metadata": metadata})

    def found(where: object, **query: object) -> list[str]:
        return named(search(gallery, photo("astronaut"), where=json.dumps(where), **query))

    assert found({"site": "north"}) == ["eileen"]
    assert found({"site": "south"}, limit=1) == ["grace"]  # though eileen is likest
    assert found({"level": {"in": [1, 2, 3]}}) == ["eileen", "grace"]
    assert found({"level": {"in": [1, 2]}, "site": "south"}) == ["grace"]
    assert found({"staff": True}) == ["eileen"]
    assert found({"staff": 1}) == found({"staff": "true"}) == found({"badge": 7}) == []
    two, one = search(gallery, photo("astronaut")), search(gallery, photo("astronaut"), where='{"site": "south"}')
    assert (two["collection"]["chosen"], one["collection"]["chosen"]) == (
        None,
        {"subjects": 1, "faces": 1},
    )
    assert two["operating_point"]["fmr"] == pytest.approx(0.0005, rel=1e-3)
    assert one["operating_point"]["fmr"] == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    "where",
    ["", "north", "[]", "{}", '{"a": null}', '{"a": [1]}', '{"a": {"in": []}}', '{"a": NaN}', '{"a": {"x": 1}}'],
)
def test_filters_that_mean_nothing(gallery: TestClient, where: str) -> None:
    response = gallery.post(
        "/search", params={"collection": "doors", "where": where}, content=encode(photo("coffee")), headers=PNG
    )
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:invalid-parameters")


def test_who_is_said_not_to_be_a_face_is_not_named_for_it(gallery: TestClient) -> None:
    assert named(search(gallery, photo("astronaut"))) == ["eileen", "grace"]
    made = post(gallery, "/subjects/eileen/feedback", photo("astronaut"))
    again = search(gallery, photo("astronaut"), limit=1)
    assert named(again) == ["grace"]
    assert again["data"][0]["faces"][0]["status"] == "unknown"
    assert named(search(gallery, photo("astronaut"), where='{"x": 1}')) == []
    checked = post(gallery, "/subjects/eileen/verify", photo("astronaut"))
    assert (checked["verified"], checked["denied"]) == (False, True)
    assert named(search(gallery, grace_hopper()))[0] == "grace"
    url = "/collections/doors/subjects/eileen/feedback"
    assert gallery.get(url).json()["data"] == [made]
    assert gallery.get("/collections/doors/subjects/grace/feedback").json()["data"] == []
    receipt = gallery.delete(f"{url}/{made['id']}").json()
    assert (receipt["subjects"], receipt["faces"]) == (0, 1)
    assert erased(gallery, receipt)
    assert named(search(gallery, photo("astronaut"))) == ["eileen", "grace"]
    assert gallery.delete(f"{url}/{made['id']}").status_code == 404
    for method in ("GET", "POST"):
        path = "/collections/doors/subjects/nobody/feedback"
        assert gallery.request(method, path, content=encode(photo("astronaut")), headers=PNG).status_code == 404


def test_faces_and_feedback_of_a_subject_come_by_page(gallery: TestClient) -> None:
    for _ in range(2):
        post(gallery, "/subjects/eileen/faces", photo("astronaut"))
        post(gallery, "/subjects/eileen/feedback", grace_hopper())
    post(gallery, "/subjects/eileen/feedback", grace_hopper())
    for name in ("faces", "feedback"):
        url = f"/collections/doors/subjects/eileen/{name}"
        whole = gallery.get(url).json()
        assert (len(whole["data"]), whole["next"]) == (3, None)
        first = gallery.get(url, params={"limit": 2}).json()
        assert first["data"] == whole["data"][:2]
        last = gallery.get(url, params={"limit": 2, "after": first["next"]}).json()
        assert (last["data"], last["next"]) == (whole["data"][2:], None)
        for bad in ("x", "-1", "1-1", f"{10**25}"):
            assert gallery.get(url, params={"after": bad}).status_code == 422
        for bad_limit in (0, 10_001):
            assert gallery.get(url, params={"limit": bad_limit}).status_code == 422
    far = {"after": f"1.5-{'9' * 19}"}
    assert len(gallery.get("/collections/doors/subjects/eileen/feedback", params=far).json()["data"]) == 3


def test_whose_time_is_over_is_neither_found_nor_kept(gallery: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    then = datetime.now(UTC) + timedelta(hours=1)
    properties = {"name": "Ferdinandea Quartz", "metadata": {"pass": "Q-7781"}, "expires_at": then.isoformat()}
    answer = gallery.put("/collections/doors/subjects/eileen", json=properties).json()
    assert datetime.fromisoformat(answer["expires_at"]) == then
    assert named(search(gallery, photo("astronaut"))) == ["eileen", "grace"]
    assert has_state(gallery, "Quartz")
    monkeypatch.setattr(gallery.app.state.galleries._gallery, "clock", lambda: time.time() + 3600)  # type: ignore[attr-defined]
    assert named(search(gallery, photo("astronaut"))) == ["grace"]
    deadline = time.monotonic() + 60
    while gallery.get("/collections/doors/subjects/eileen").status_code != 404 or any(
        has_state(gallery, text) for text in ("Quartz", "Q-7781")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert gallery.get("/collections/doors").json()["subjects"] == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata": {"a": NaN}}',
        b'{"metadata": {"a": "\\ud800"}}',
        b'{"name": "\\ud800"}',
        b'{"expires_at": "0001-01-01T00:00:00+14:00"}',
        b'{"expires_at": "9999-12-31T23:59:59-12:00"}',
        json.dumps({"metadata": {"a": "x" * 20_000}}).encode(),
    ],
)
def test_properties_that_cannot_be_kept(gallery: TestClient, body: bytes) -> None:
    url = "/collections/doors/subjects/eileen"
    response = gallery.put(url, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (422, "urn:vestibule:problem:invalid-parameters")
    assert gallery.get(url).json()["metadata"] == {}


def best_sum(similarities: np.ndarray[Any, np.dtype[np.float64]], threshold: float) -> float:
    """The largest sum of margins over all ways to give each face at most one subject, by trying them all."""
    faces, subjects = similarities.shape
    ways = itertools.permutations([*range(subjects), *([None] * faces)], faces)
    gains = np.where(similarities >= threshold, similarities - threshold, -np.inf)
    return max(
        sum(float(gains[face, subject]) for face, subject in enumerate(way) if subject is not None) for way in ways
    )


def test_the_faces_of_a_picture_are_assigned_as_well_as_can_be() -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    assert rule.threshold is not None
    threshold = rule.threshold.similarity
    generator = np.random.default_rng(0)
    for _ in range(60):
        similarities = generator.uniform(-0.2, 1, size=(3, 3))
        faces = [sorted((match(s, v) for s, v in enumerate(row)), key=lambda m: -m.similarity) for row in similarities]
        decisions = rule.decide(faces, repeated=False)
        named = [decision.candidates[0] for decision in decisions if decision.matched]
        assert len({one.subject.id for one in named}) == len(named)
        assert sum(one.similarity - threshold for one in named) == pytest.approx(best_sum(similarities, threshold))
        for decision, row in zip(decisions, similarities, strict=True):
            own = {decision.candidates[0].subject.id} if decision.matched else set()
            others = {one.subject.id for one in named} - own
            assert {one.subject.id for one in decision.candidates} == set(range(3)) - others
            assert all(one.similarity == row[one.subject.id] for one in decision.candidates)


def test_a_second_likest_subject_is_taken_where_another_face_is_the_likest_of_all() -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    first, second = rule.decide([[match(1, 0.9), match(2, 0.85)], [match(1, 0.88)]], repeated=False)
    assert [m.subject.id for m in first.candidates] == [2]
    assert [m.subject.id for m in second.candidates] == [1]
    assert first.matched
    assert second.matched


def test_at_the_threshold_itself_is_a_match() -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    assert rule.threshold is not None
    (only,) = rule.decide([[match(1, rule.threshold.similarity)]], repeated=False)
    assert only.matched
    (nobody,) = rule.decide([[]], repeated=False)
    assert (nobody.matched, nobody.candidates) == (False, [])


def decided_by_steps(
    rule: Rule, faces: list[list[Match]], limit: int, *, repeated: bool
) -> tuple[list[tuple[bool, list[Match]]], int]:
    """The decisions with their first `limit` candidates, and how many matches were read for them."""
    count = 0

    async def read(places: Sequence[int], k: int) -> list[list[Match]]:
        nonlocal count
        answers = [faces[place][:k] for place in places]
        count += sum(map(len, answers))
        return answers

    async def decide(matches: list[list[Match]]) -> list[Decision]:
        return rule.decide(matches, repeated=repeated)

    decisions = asyncio.run(decide_by_steps(rule, len(faces), limit, read, decide, repeated=repeated))
    return [(decision.matched, decision.candidates[:limit]) for decision in decisions], count


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])  # next to none of the pairs are near enough, some, most
def test_matches_read_by_steps_give_the_same_decisions(scale: float, repeated: bool) -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    generator = np.random.default_rng(0)
    for limit, count, subjects in [(1, 40, 60), (2, 40, 30), (5, 60, 200), (1, 1, 5), (3, 25, 2)]:
        # Rounded, so that there are ties; a few near pairs in any case.
        table = (generator.normal(0, scale, size=(count, subjects)) + 0.1 * (scale < 1)).clip(-1, 1).round(2)
        table[range(count), generator.integers(subjects, size=count)] = 0.95
        faces = [
            sorted(itertools.starmap(match, enumerate(map(float, row))), key=lambda m: -m.similarity) for row in table
        ]
        full = rule.decide([found[: limit + count - 1] for found in faces], repeated=repeated)
        expected = [(decision.matched, decision.candidates[:limit]) for decision in full]
        assert decided_by_steps(rule, faces, limit, repeated=repeated)[0] == expected


def test_the_matches_read_grow_with_the_faces_and_not_with_their_square() -> None:
    rule = Rule.of(MATCHING, 0.1, 1)
    generator = np.random.default_rng(0)
    counts = []
    for count in (50, 200):
        faces = []
        for face in range(count):  # near to its own subject only; the others follow in any order
            others = generator.permutation(np.setdiff1d(np.arange(10 * count), face)).tolist()
            faces.append([match(face, 0.9), *(match(subject, 0.0) for subject in others)])
        decisions, read = decided_by_steps(rule, faces, 5, repeated=False)
        assert [candidates[0].subject.id for _, candidates in decisions] == list(range(count))
        counts.append(read)
    assert counts[1] < 5 * counts[0]


def test_a_search_reads_no_more_of_a_group_photo_than_its_answer_needs(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    search_index = index_search

    def recorded(gallery: Any, collection: str, queries: Any, k: int, **more: Any) -> Any:
        asked.append((len(queries), k))
        return search_index(gallery, collection, queries, k, **more)

    monkeypatch.setattr("app.gallery.search.search", recorded)
    picture, centres = small_faces()
    response = gallery.post("/search?collection=doors&limit=1", content=encode(picture), headers=PNG)
    faces = response.json()["data"][0]["faces"]
    assert len(faces) >= len(centres)
    assert asked == [(len(faces), 2 + SPARE)]


def test_a_search_reads_the_gallery_once_before_and_once_after_the_embedding(
    gallery: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    reads: list[Callable[[], Any]] = []
    decide = Rule.decide
    recognition = gallery.app.state.galleries.recognition  # type: ignore[attr-defined]
    ask = recognition._ask

    def recorded(self: Rule, faces: Any, *, repeated: bool) -> Any:
        threads.append(threading.current_thread().name)
        return decide(self, faces, repeated=repeated)

    async def counted(question: Callable[[], Any]) -> Any:
        reads.append(question)
        return await ask(question)

    monkeypatch.setattr(Rule, "decide", recorded)
    monkeypatch.setattr(recognition, "_ask", counted)
    params = {"collection": "doors"}
    response = gallery.post("/search", params=params, content=encode(side_by_side()), headers=PNG)
    assert len(response.json()["data"][0]["faces"]) == 2
    assert [name.startswith("decode") for name in threads] == [True]
    assert len(reads) == 3  # the third puts the search into the audit log
