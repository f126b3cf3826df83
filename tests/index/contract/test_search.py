"""Searches of every engine with metadata filters, feedback and expiry, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from index.errors import ConflictError, InvalidError, NotFoundError
from index.types import Floats, Fusion, Match, NewFace, Where
from tests.index.contract.engines import Engine
from tests.index.filtered import FACES, METADATA, PEOPLE, WHERES, expected, fill, matches_filter, near
from tests.index.people import Clock, vectors


@pytest.fixture
def doors(engine: Engine) -> Engine:
    fill(engine.gallery)
    return engine


@pytest.mark.parametrize("is_indexed", [False, True], ids=["exact", "indexed"])
def test_filtered_searches_agree_with_numpy(doors: Engine, is_indexed: bool) -> None:
    if is_indexed:
        doors.index("doors")
    gallery, searches = doors.gallery, doors.searches
    assert gallery.usage("doors").exact == (not is_indexed)
    tokens = {n: [face.token for face in gallery.faces("doors", f"p{n}")] for n in range(PEOPLE)}
    queries = vectors(6, seed=4)
    for where in WHERES:
        for fusion in ("best", "mean"):
            k = 30 if fusion == "mean" else 3  # an index may miss the highest mean, unless all subjects are wanted
            results = searches.search("doors", queries, k, fusion=fusion, where=where)
            for query, matches in zip(queries, results, strict=True):
                right = expected(query, where, fusion == "mean")[:k]
                assert [match.subject.key for match in matches] == [key for key, _ in right]
                assert [match.similarity for match in matches] == pytest.approx([value for _, value in right], abs=1e-5)
                for match in matches:
                    number = int(match.subject.key[1:])
                    assert tokens[number].index(match.face) == int((FACES[number::PEOPLE] @ query).argmax())
        selected = [n for n, metadata in enumerate(METADATA) if matches_filter(metadata, where)]
        scope = searches.scope("doors", where)
        assert (scope.collection, scope.usage) == (gallery.collection("doors"), gallery.usage("doors"))
        assert scope.selected == ((len(selected), 3 * len(selected)) if where else None)


@dataclass
class Person:
    """A subject of the random gallery, as numpy sees it."""

    key: str
    faces: Floats
    metadata: dict[str, Any]
    expires_at: float | None
    rejected: list[Floats] = field(default_factory=list)


def random_people(rng: np.random.Generator, clock: Clock) -> list[Person]:
    """Return people of whom some have many faces, some none, and some have expired when the clock moves on by 5."""
    people = []
    for n in range(40):
        count = int(rng.choice([0, 1, 2, 5, 25]))
        centre = vectors(1, 8, seed=int(rng.integers(10**9)))[0]
        noise = rng.normal(size=(count, 8)) * 0.3
        faces = np.asarray((centre + noise) / np.linalg.norm(centre + noise, axis=1, keepdims=True), np.float32)
        expires_at = clock.now + float(rng.choice([1, 9])) if rng.random() < 0.4 else None
        people.append(Person(f"p{n}", faces, {"site": int(rng.integers(3))}, expires_at))
    return people


def brute_force(
    people: list[Person], query: Floats, k: int, fusion: Fusion, site: int | None, now: float
) -> list[tuple[str, float]]:
    """Return key and similarity of the best `k` people."""
    results = []
    for person in people:
        is_live = person.expires_at is None or person.expires_at > now
        if not is_live or not len(person.faces) or site not in (None, person.metadata["site"]):
            continue
        similarities = person.faces.astype(np.float64) @ query
        value = float(similarities.max() if fusion == "best" else similarities.mean())
        if all(float(rejected.astype(np.float64) @ query) < value for rejected in person.rejected):
            results.append((person.key, value))
    return sorted(results, key=lambda result: -result[1])[:k]


@pytest.mark.parametrize("is_indexed", [False, True], ids=["exact", "indexed"])
@pytest.mark.parametrize("seed", range(3))
def test_random_searches_agree_with_numpy(engine: Engine, clock: Clock, seed: int, is_indexed: bool) -> None:
    rng = np.random.default_rng(seed)
    people = random_people(rng, clock)
    engine.gallery.create("doors", "face-embedder", "f1", 8)
    for person in people:
        engine.gallery.put_subject("doors", person.key, metadata=person.metadata, expires_at=person.expires_at)
        if len(person.faces):
            engine.gallery.enrol("doors", [NewFace(person.key, vector) for vector in person.faces], "f1")
    if is_indexed:
        engine.index("doors")
    queries = vectors(6, 8, seed=100 + seed)
    for query in queries:  # the most similar person, and then another one, is not the person in the image
        for _ in range(2):
            ((key, _),) = brute_force(people, query, 1, "best", None, clock.now)
            person = people[int(key[1:])]
            person.rejected.append(query)
            engine.feedback.add("doors", key, query[None])
    clock.now += 5
    everything = np.concatenate([queries, vectors(6, 8, seed=200 + seed)])
    for k, fusion, site in ((1, "best", None), (7, "best", None), (3, "best", 1), (40, "mean", None), (40, "mean", 2)):
        where: Where | None = None if site is None else {"site": [site]}
        results = engine.searches.search("doors", everything, k, fusion=fusion, where=where)  # type: ignore[arg-type]
        for query, matches in zip(everything, results, strict=True):
            right = brute_force(people, query, k, fusion, site, clock.now)  # type: ignore[arg-type]
            assert [match.subject.key for match in matches] == [key for key, _ in right], (k, fusion, site)
            assert [match.similarity for match in matches] == pytest.approx([value for _, value in right], abs=1e-5)


def test_equally_similar_subjects_are_sorted_by_id(engine: Engine) -> None:
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    keys = [f"p{n}" for n in np.random.default_rng(3).permutation(30)]
    for key in keys:
        engine.gallery.enrol("doors", [NewFace(key, FACES[0]), NewFace(key, FACES[1])], "f1")
    for fusion in ("best", "mean"):
        for k in (1, 4, 30):
            (matches,) = engine.searches.search("doors", FACES[:1], k, fusion=fusion)
            assert [match.subject.key for match in matches] == keys[:k]


def test_filters_use_the_current_metadata(doors: Engine, clock: Clock) -> None:
    gallery = doors.gallery

    def selected() -> list[str]:
        (matches,) = doors.searches.search("doors", FACES[:1], 50, where={"badge": ["x"]})
        return sorted(match.subject.key for match in matches)

    assert selected() == []
    for key in ("p1", "p2", "new"):
        gallery.put_subject("doors", key, metadata={"badge": "x"})
    assert selected() == ["p1", "p2"]  # a subject without a face is not found
    gallery.put_subject("doors", "p1", metadata={"badge": "y"})
    assert selected() == ["p2"]
    gallery.put_subject("doors", "p2", metadata={"badge": "x"}, expires_at=clock.now + 1)
    gallery.put_subject("doors", "p3", metadata={"badge": "x"}, expires_at=clock.now + 9)
    clock.now += 1
    assert selected() == ["p3"]
    gallery.remove_subject("doors", "p3")
    assert selected() == []


@pytest.mark.parametrize("where", [None, {"staff": [True, False]}])
@pytest.mark.parametrize("is_indexed", [False, True], ids=["exact", "indexed"])
def test_a_rejected_face_no_longer_matches_the_subject(doors: Engine, where: Where | None, is_indexed: bool) -> None:
    if is_indexed:
        doors.index("doors")
    own = FACES[5]
    stranger = near(own, 0.97)
    searches, feedback = doors.searches, doors.feedback

    def names(query: Floats) -> list[str]:
        (matches,) = searches.search("doors", query[None], 3, where=where)
        return [match.subject.key for match in matches]

    nearest = [key for key, _ in expected(stranger, {})[:5]]
    assert names(stranger) == nearest[:3]
    assert nearest[0] == "p5"
    rejections = feedback.add("doors", "p5", np.stack([stranger, near(own, 0.9, 1)]))
    assert {rejection.token for rejection in feedback.of_subject("doors", "p5")} == {r.token for r in rejections}
    assert names(stranger) == nearest[1:4]
    assert names(near(stranger, 0.995, 2))[0] != "p5"  # another image of the stranger
    assert names(own)[0] == "p5"
    assert names(near(own, 0.995, 3))[0] == "p5"  # another image of the subject
    match, rejected = searches.compare("doors", "p5", stranger)
    assert match is not None
    assert match.similarity == pytest.approx(0.97, abs=1e-3)
    assert rejected
    assert searches.compare("doors", "p5", own)[1] is False
    feedback.add("doors", nearest[1], stranger[None])
    assert names(stranger) == nearest[2:5]
    feedback.remove("doors", "p5", rejections[0].token)
    assert names(stranger)[0] == "p5"
    assert [rejection.token for rejection in feedback.of_subject("doors", "p5")] == [rejections[1].token]


def test_all_subjects_can_be_rejected(doors: Engine) -> None:
    for n in range(PEOPLE):
        doors.feedback.add("doors", f"p{n}", FACES[:1])
    assert doors.searches.search("doors", FACES[:1], 3) == [[]]
    assert len(doors.searches.search("doors", -FACES[:1], 3)[0]) == 3


def test_one_subject_is_compared_by_best_and_mean(doors: Engine, clock: Clock) -> None:
    query = vectors(1, seed=5)[0]
    similarities = FACES[3::PEOPLE].astype(np.float64) @ query
    for fusion, value in (("best", similarities.max()), ("mean", similarities.mean())):
        match, rejected = doors.searches.compare("doors", "p3", 9 * query, fusion=fusion)  # type: ignore[arg-type]
        assert match is not None
        assert (match.subject, rejected) == (_plain(doors, "p3"), False)
        assert match.face == doors.gallery.faces("doors", "p3")[int(similarities.argmax())].token
        assert match.similarity == pytest.approx(value, abs=1e-5)
    doors.gallery.put_subject("doors", "faceless")
    assert doors.searches.compare("doors", "faceless", query) == (None, False)
    doors.gallery.put_subject("doors", "p3", expires_at=clock.now + 1)
    clock.now += 1
    with pytest.raises(NotFoundError):
        doors.searches.compare("doors", "p3", query)


def _plain(engine: Engine, key: str) -> object:
    (matches,) = engine.searches.search("doors", FACES[:1], PEOPLE)
    (subject,) = [match.subject for match in matches if match.subject.key == key]
    counted = engine.gallery.subject("doors", key)
    assert {**subject.__dict__, "faces": counted.faces} == counted.__dict__
    return subject


def test_invalid_searches_are_refused(doors: Engine) -> None:
    searches = doors.searches
    missing: list[Callable[[], object]] = [
        lambda: searches.search("x", FACES[:1]),
        lambda: searches.scope("x"),
        lambda: searches.compare("x", "p1", FACES[0]),
        lambda: searches.compare("doors", "nobody", FACES[0]),
    ]
    for call in missing:
        with pytest.raises(NotFoundError):
            call()
    for wrong in (0 * FACES[0], np.inf * FACES[0], FACES[0][:3]):
        with pytest.raises(InvalidError):
            searches.search("doors", wrong[None])
        with pytest.raises(InvalidError):
            searches.compare("doors", "p1", wrong)
    with pytest.raises(ConflictError, match="not of f2"):
        searches.search("doors", FACES[:1], fingerprint="f2")
    with pytest.raises(ConflictError, match="not of f2"):
        searches.compare("doors", "p1", FACES[0], fingerprint="f2")
    expected_match = searches.search("doors", FACES[:1])
    assert searches.search("doors", FACES[:1], fingerprint="f1") == expected_match
    assert isinstance(expected_match[0][0], Match)


def test_an_empty_collection_has_no_matches(engine: Engine) -> None:
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    assert engine.searches.search("doors", FACES[:2]) == [[], []]
    assert engine.searches.search("doors", FACES[:1], fusion="mean", where={"site": ["north"]}) == [[]]
    assert engine.searches.search("doors", FACES[:0]) == []
    assert engine.searches.scope("doors", {"site": ["north"]}).selected == (0, 0)
