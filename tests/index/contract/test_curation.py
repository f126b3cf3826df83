"""Merges, undo and moves of every engine; searches, feedback, expiry, jobs and re-embedding after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from index.errors import ConflictError, InvalidError, NotFoundError
from index.protocol import FIRST
from index.types import Match, NewFace
from tests.index.contract.engines import Engine
from tests.index.people import Clock, vectors

FACES = vectors(24, seed=1)
DAY = 86_400.0


@pytest.fixture
def doors(engine: Engine) -> Engine:
    """The collection `doors`: the subjects p0 to p3 with three faces each, FACES[n], FACES[n + 4], FACES[n + 8]."""
    engine.gallery.create("doors", "face-embedder", "f1", 4)
    faces = [NewFace(f"p{n % 4}", FACES[n], {"n": n}, str(n).encode()) for n in range(12)]
    engine.gallery.enrol("doors", faces, "f1")
    return engine


def owners(engine: Engine) -> dict[str, set[int]]:
    """Return the numbers of the faces by subject."""
    gallery = engine.gallery
    return {
        subject.key: {face.details["n"] for face in gallery.faces("doors", subject.key)}
        for subject in gallery.subjects("doors")
    }


def tokens(engine: Engine, key: str) -> list[str]:
    return [face.token for face in engine.gallery.faces("doors", key)]


def best(engine: Engine, number: int) -> Match | None:
    """Return the best match of the face FACES[number]."""
    (matches,) = engine.searches.search("doors", FACES[number : number + 1], 4)
    assert len({match.subject.key for match in matches}) == len(matches)
    return matches[0] if matches else None


def found(engine: Engine, number: int) -> str | None:
    """Return the key of the subject that has the face FACES[number], if a search finds it."""
    match = best(engine, number)
    return match.subject.key if match and match.similarity > 0.9999 else None


BEFORE = {f"p{n}": {n, n + 4, n + 8} for n in range(4)}
MERGED = {"p0": {0, 4, 8, 1, 5, 9, 2, 6, 10}, "p3": {3, 7, 11}}


def test_merge_and_undo(doors: Engine, clock: Clock) -> None:
    gallery, curation = doors.gallery, doors.curation
    gallery.put_subject("doors", "p0", name="Ada", metadata={"site": "north"})
    gallery.put_subject("doors", "p1", name="Bob", metadata={"site": "south"})
    before = gallery.subjects("doors")
    searched = [found(doors, number) for number in range(12)]
    merge = curation.merge("doors", "p0", ["p1", "p2"], actor="k1")
    assert (merge.subject, merge.absorbed, merge.faces) == ("p0", ("p1", "p2"), 6)
    assert (merge.created_at, merge.undo_until, merge.undone_at) == (clock.now, clock.now + 7 * DAY, None)
    assert owners(doors) == MERGED
    assert gallery.usage("doors").subjects == 2
    assert gallery.usage("doors").faces == gallery.size("doors") == 12
    kept = gallery.subject("doors", "p0")
    assert (kept.name, kept.metadata, kept.faces) == ("Ada", {"site": "north"}, 9)
    assert [found(doors, number) for number in range(12)] == ["p0", "p0", "p0", "p3"] * 3
    for where, selected in (({"site": ["north"]}, (1, 9)), ({"site": ["south"]}, (0, 0))):
        assert doors.searches.scope("doors", where).selected == selected
    assert curation.merges("doors") == [merge]
    clock.now += 1
    assert curation.merge("doors", "p0", ["p2", "p1", "p2"], actor="k1") == merge
    undone = curation.undo_merge("doors", merge.token, actor="k2")
    assert (undone.absorbed, undone.undone_at) == (merge.absorbed, clock.now)
    assert curation.undo_merge("doors", merge.token) == undone
    assert curation.merges("doors") == []
    assert owners(doors) == BEFORE
    assert gallery.subjects("doors") == before
    assert [found(doors, number) for number in range(12)] == searched
    assert doors.searches.scope("doors", {"site": ["south"]}).selected == (1, 3)
    assert gallery.crop("doors", tokens(doors, "p1")[0]) == b"1"
    events = [entry.event for entry in doors.audit.read()[0]]
    merged, taken_back = [event for event in events if "merge" in event.action]
    ids = [subject.id for subject in before if subject.key != "p3"]
    assert (merged.action, merged.actor, merged.of) == ("merge_subjects", "k1", merge.token)
    assert (taken_back.action, taken_back.actor, taken_back.of) == ("undo_merge", "k2", merge.token)
    assert sorted(merged.subjects) == sorted(taken_back.subjects) == sorted(ids)
    assert len(merged.faces) == len(taken_back.faces) == 6


def test_merge_is_refused(doors: Engine, clock: Clock) -> None:
    curation = doors.curation
    doors.gallery.put_subject("doors", "p3", expires_at=clock.now + 1)
    clock.now += 1
    missing: list[Callable[[], object]] = [
        lambda: curation.merge("x", "p0", ["p1"]),
        lambda: curation.merge("doors", "nobody", ["p1"]),
        lambda: curation.merge("doors", "p0", ["p1", "nobody"]),
        lambda: curation.merge("doors", "p0", ["nobody"]),
        lambda: curation.merge("doors", "p3", ["p1"]),
        lambda: curation.merge("doors", "p0", ["p3"]),
        lambda: curation.undo_merge("doors", "0123"),
        lambda: curation.undo_merge("x", "0123"),
        lambda: curation.merges("x"),
        lambda: curation.move_faces("doors", [*tokens(doors, "p0"), "0123"], "p1"),
        lambda: curation.face("doors", "0123"),
        lambda: curation.subject_vectors("x", [1]),
    ]
    for call in missing:
        with pytest.raises(NotFoundError):
            call()
    invalid: list[Callable[[], object]] = [
        lambda: curation.merge("doors", "p0", []),
        lambda: curation.merge("doors", "p0", ["p0"]),
        lambda: curation.merge("doors", "p0", ["p1", "p0"]),
        lambda: curation.merge("doors", "p0", ["p1"], actor="Grace Hopper"),
        lambda: curation.move_faces("doors", [], "p0"),
        lambda: curation.move_faces("doors", tokens(doors, "p0"), "a/b"),
    ]
    for call in invalid:
        with pytest.raises(InvalidError):
            call()
    merge = curation.merge("doors", "p0", ["p1"])
    with pytest.raises(NotFoundError):
        curation.merge("doors", "p0", ["p2", "p1"])
    clock.now = merge.undo_until
    with pytest.raises(NotFoundError):
        curation.undo_merge("doors", merge.token)
    with pytest.raises(NotFoundError):
        curation.merge("doors", "p0", ["p1"])
    assert curation.merges("doors") == []
    assert owners(doors) == {"p0": BEFORE["p0"] | BEFORE["p1"], "p2": BEFORE["p2"]}


def test_merges_are_listed_by_page(doors: Engine) -> None:
    first = doors.curation.merge("doors", "p0", ["p1"])
    second = doors.curation.merge("doors", "p2", ["p3"])
    assert doors.curation.merges("doors", limit=1) == [first]
    assert doors.curation.merges("doors", first.id) == [second]
    third = doors.curation.merge("doors", "p0", ["p2"])
    assert doors.curation.merge("doors", "p0", ["p1"]) == first
    assert doors.curation.merges("doors") == [first, third]


def test_merges_are_undone_in_reverse_order(doors: Engine) -> None:
    first = doors.curation.merge("doors", "p1", ["p2"])
    second = doors.curation.merge("doors", "p0", ["p1"])
    assert (second.faces, owners(doors)) == (6, MERGED)
    with pytest.raises(ConflictError, match="first"):
        doors.curation.undo_merge("doors", first.token)
    assert doors.curation.merges("doors") == [second]
    doors.curation.undo_merge("doors", second.token)
    doors.curation.undo_merge("doors", first.token)
    assert owners(doors) == BEFORE


def test_faces_enrolled_or_moved_since_a_merge_stay(doors: Engine) -> None:
    merge = doors.curation.merge("doors", "p0", ["p1"])
    doors.gallery.enrol("doors", [NewFace("p0", FACES[12], {"n": 12})], "f1")
    of_p1 = [face.token for face in doors.gallery.faces("doors", "p0") if face.details["n"] in (1, 5)]
    assert doors.curation.move_faces("doors", of_p1, "p2").faces == tuple(of_p1)
    assert doors.curation.move_faces("doors", of_p1[:1], "p0").subject.faces == 6
    doors.gallery.remove_faces("doors", of_p1[1:])
    doors.curation.undo_merge("doors", merge.token)
    assert owners(doors) == {**BEFORE, "p0": {0, 4, 8, 12, 1}, "p1": {9}}


def test_subject_that_was_created_again_gets_its_faces_back(doors: Engine, clock: Clock) -> None:
    doors.gallery.put_subject("doors", "p1", name="Bob")
    merge = doors.curation.merge("doors", "p0", ["p1", "p2", "p3"])
    doors.gallery.enrol("doors", [NewFace("p1", FACES[12], {"n": 12})], "f1")
    doors.gallery.put_subject("doors", "p1", name="Robert")
    doors.gallery.put_subject("doors", "p2", name="Expired", expires_at=clock.now + 1)
    clock.now += 1
    undone = doors.curation.undo_merge("doors", merge.token)
    assert sorted(undone.absorbed) == ["p1", "p2", "p3"]
    assert owners(doors) == {**BEFORE, "p1": {1, 5, 9, 12}}
    assert [doors.gallery.subject("doors", key).name for key in ("p1", "p2")] == ["Robert", None]
    assert doors.gallery.usage("doors").subjects == 4


def test_merge_that_outlives_an_expiry_cannot_be_undone(doors: Engine, clock: Clock) -> None:
    doors.gallery.put_subject("doors", "p1", expires_at=clock.now + 5)
    doors.gallery.put_subject("doors", "p0", expires_at=clock.now + 20)
    merge = doors.curation.merge("doors", "p0", ["p1", "p2"], undo_s=10)
    assert merge.undo_until == clock.now + 5
    assert doors.gallery.subject("doors", "p0").expires_at == clock.now + 20
    later = doors.curation.merge("doors", "p0", ["p3"], undo_s=100)
    clock.now += 20
    with pytest.raises(NotFoundError):
        doors.curation.undo_merge("doors", later.token)
    assert doors.curation.merges("doors") == []


def test_erasing_the_kept_subject_erases_its_merges(doors: Engine) -> None:
    first = doors.curation.merge("doors", "p1", ["p2"])
    second = doors.curation.merge("doors", "p0", ["p1"])
    for key in ("p1", "p2"):
        with pytest.raises(ConflictError, match="merged into another"):
            doors.gallery.remove_subject("doors", key)
    receipt = doors.gallery.remove_subject("doors", "p0")
    assert (receipt.subjects, receipt.faces) == (1, 9)
    for merge in (first, second):
        with pytest.raises(NotFoundError):
            doors.curation.undo_merge("doors", merge.token)
    with pytest.raises(NotFoundError):
        doors.gallery.remove_subject("doors", "p1")
    assert owners(doors) == {"p3": BEFORE["p3"]}
    assert doors.gallery.usage("doors").subjects == 1
    third = doors.curation.merge("doors", "p3", [doors.gallery.put_subject("doors", "p0").key])
    doors.gallery.drop("doors")
    doors.gallery.create("doors", "face-embedder", "f1", 4)
    with pytest.raises(NotFoundError):
        doors.curation.undo_merge("doors", third.token)


def test_maintenance_forgets_merges_that_cannot_be_undone(doors: Engine, clock: Clock) -> None:
    doors.feedback.add("doors", "p1", FACES[0:1], [b"an enrolled face of p0"])
    first = doors.curation.merge("doors", "p1", ["p2"])
    undone = doors.curation.merge("doors", "p1", ["p3"], undo_s=20)
    doors.curation.undo_merge("doors", undone.token)
    second = doors.curation.merge("doors", "p0", ["p1"], undo_s=10)
    doors.maintain()
    assert doors.curation.merges("doors") == [second]
    clock.now += 10
    for _ in range(2):  # the end of a merge ends earlier merges into the absorbed subject
        doors.maintain()
    receipts = [doors.gallery.receipt(merge.token) for merge in (second, first)]
    assert [(receipt.subjects, receipt.faces) for receipt in receipts] == [(1, 1), (1, 0)]
    for key in ("p1", "p2"):
        with pytest.raises(NotFoundError):
            doors.gallery.remove_subject("doors", key)
    clock.now += 10
    doors.maintain()
    assert doors.gallery.receipt(undone.token).subjects == 0
    assert owners(doors) == MERGED
    assert found(doors, 0) == "p0"
    events = [entry.event for entry in doors.audit.read()[0]]
    forgotten = [event for event in events if event.action == "forget_merge"]
    assert {(event.actor, event.id, len(event.subjects)) for event in forgotten} == {
        ("retention", second.token, 1),
        ("retention", first.token, 1),
        ("retention", undone.token, 0),
    }
    assert doors.gallery.remove_subject("doors", "p0").faces == 9


def rejected(engine: Engine, key: str) -> set[str]:
    return {rejection.token for rejection in engine.feedback.of_subject("doors", key)}


def test_rejected_faces_follow_the_subject(doors: Engine) -> None:
    feedback = doors.feedback
    (stranger,) = feedback.add("doors", "p1", FACES[20:21], [b"stranger"])
    (of_p0,) = feedback.add("doors", "p1", FACES[0:1])  # an enrolled face of p0
    (of_p1,) = feedback.add("doors", "p0", FACES[5:6])  # an enrolled face of p1
    (own,) = feedback.add("doors", "p0", FACES[4:5])  # an enrolled face of p0 itself
    (other,) = feedback.add("doors", "p0", FACES[3:4])
    assert found(doors, 4) is None
    merge = doors.curation.merge("doors", "p0", ["p1"])
    assert rejected(doors, "p0") == {stranger.token, own.token, other.token}
    assert [found(doors, number) for number in (0, 5, 8, 4)] == ["p0", "p0", "p0", None]
    late = feedback.add("doors", "p0", FACES[21:22])[0]
    matches = doors.searches.search("doors", FACES[20:22], 4)
    assert all("p0" not in {match.subject.key for match in found} for found in matches)
    doors.curation.undo_merge("doors", merge.token)
    assert rejected(doors, "p1") == {stranger.token, of_p0.token}
    assert rejected(doors, "p0") == {of_p1.token, own.token, other.token, late.token}
    assert (found(doors, 0), found(doors, 5)) == ("p0", "p1")
    assert doors.feedback.remove("doors", "p1", stranger.token).faces == 1


def test_move_faces(doors: Engine, clock: Clock) -> None:
    curation, gallery = doors.curation, doors.gallery
    gallery.put_subject("doors", "p1", name="Bob")
    moving = [tokens(doors, "p0")[1], tokens(doors, "p2")[0]]
    clock.now += 1
    moved = curation.move_faces("doors", [*moving, tokens(doors, "p1")[0]], "p1", actor="k1")
    assert (moved.subject.key, moved.subject.name, moved.subject.faces) == ("p1", "Bob", 5)
    assert (sorted(moved.faces), moved.withdrawn) == (sorted(moving), None)
    assert owners(doors) == {**BEFORE, "p0": {0, 8}, "p1": {1, 5, 9, 4, 2}, "p2": {6, 10}}
    again = curation.move_faces("doors", moving, "p1", actor="k1")
    assert (again.subject, again.faces) == (moved.subject, ())
    assert [found(doors, number) for number in (0, 4, 2, 6)] == ["p0", "p1", "p1", "p2"]
    split = curation.move_faces("doors", moving, "new")
    assert (split.subject.key, split.subject.faces, split.subject.created_at) == ("new", 2, clock.now)
    assert gallery.usage("doors").subjects == 5
    for key in ("p0", "p2"):
        curation.move_faces("doors", tokens(doors, key), "new")
    assert gallery.subject("doors", "p0").faces == 0
    assert gallery.size("doors") == 12
    events = [entry.event for entry in doors.audit.read()[0]]
    first, *others = [event for event in events if event.action == "move_faces"]
    assert (first.actor, len(first.subjects), len(first.faces), len(others)) == ("k1", 3, 2, 3)


def test_moved_face_withdraws_its_rejection(doors: Engine) -> None:
    doors.feedback.add("doors", "p1", FACES[[0, 20]])
    moved = doors.curation.move_faces("doors", tokens(doors, "p0")[:1], "p1")
    assert moved.withdrawn is not None
    assert (moved.withdrawn.faces, doors.gallery.receipt(moved.withdrawn.token)) == (1, moved.withdrawn)
    assert len(rejected(doors, "p1")) == 1
    assert found(doors, 0) == "p1"


def test_faces_move_to_a_new_subject_in_place_of_an_expired_one(doors: Engine, clock: Clock) -> None:
    doors.gallery.put_subject("doors", "p1", name="Bob", expires_at=clock.now + 1)
    first, *others = tokens(doors, "p0")
    (of_p1, *_) = tokens(doors, "p1")
    clock.now += 1
    with pytest.raises(NotFoundError):
        doors.curation.move_faces("doors", [first, of_p1], "p2")
    with pytest.raises(NotFoundError):
        doors.curation.face("doors", of_p1)
    moved = doors.curation.move_faces("doors", others, "p1")
    assert (moved.subject.name, moved.subject.faces) == (None, 2)


def test_approximate_searches_follow_merges_and_moves(engine: Engine) -> None:
    faces = vectors(200, 8, seed=3)
    engine.gallery.create("doors", "face-embedder", "f1", 8)
    engine.gallery.enrol("doors", [NewFace(f"p{n % 50}", faces[n]) for n in range(120)], "f1")
    engine.index("doors")
    engine.gallery.enrol("doors", [NewFace(f"p{n % 50}", faces[n]) for n in range(120, 150)], "f1")

    def keys(queries: Sequence[int]) -> list[str]:
        found = engine.searches.search("doors", faces[list(queries)], 10)
        assert all(len({match.subject.id for match in matches}) == len(matches) == 10 for matches in found)
        return [matches[0].subject.key for matches in found]

    assert keys(range(150)) == [f"p{n % 50}" for n in range(150)]
    merge = engine.curation.merge("doors", "p0", [f"p{n}" for n in range(1, 20)])
    merged = ["p0"] * 20 + [f"p{n}" for n in range(20, 50)]
    assert keys(range(150)) == merged * 3
    engine.index("doors")
    assert keys(range(150)) == merged * 3
    engine.curation.move_faces("doors", [engine.gallery.faces("doors", "p49")[0].token], "p48")
    assert keys([49, 99]) == ["p48", "p49"]
    engine.curation.undo_merge("doors", merge.token)
    assert keys(range(48)) == [f"p{n}" for n in range(48)]


def test_reembedding_goes_on(doors: Engine) -> None:
    new = vectors(12, 8, seed=9)
    doors.reembeddings.begin("doors", "better", "f2", 8)
    worker = doors.new_worker()
    (task,) = worker.waiting()
    assert worker.claim(task)
    first = worker.pending(task, FIRST, 6)
    assert worker.stage(task, {item.id: new[int(item.crop)] for item in first})
    merge = doors.curation.merge("doors", "p0", ["p1", "p2"])
    doors.curation.move_faces("doors", tokens(doors, "p3")[:1], "p0")
    rest = worker.pending(task, FIRST, 100)
    assert len(rest) == 6
    assert worker.stage(task, {item.id: new[int(item.crop)] for item in rest})
    assert worker.switch(task) == 0
    found = doors.searches.search("doors", new, 1)
    expected = ["p0", "p0", "p0", "p0", "p0", "p0", "p0", "p3", "p0", "p0", "p0", "p3"]
    assert [matches[0].subject.key for matches in found] == expected
    doors.curation.undo_merge("doors", merge.token)
    found = doors.searches.search("doors", new, 1)
    assert [matches[0].subject.key for matches in found[4:]] == ["p0", "p1", "p2", "p3"] * 2


def test_enrolled_vectors_are_read(doors: Engine, clock: Clock) -> None:
    curation = doors.curation
    (token, *_) = tokens(doors, "p2")
    face = curation.face("doors", token)
    assert (face.subject.key, face.faces) == ("p2", (token,))
    np.testing.assert_allclose(face.vectors, FACES[2:3], atol=1e-6)
    doors.gallery.put_subject("doors", "empty")
    doors.gallery.put_subject("doors", "p1", expires_at=clock.now + 1)
    ids = [subject.id for subject in doors.gallery.subjects("doors")]
    clock.now += 1
    rows = curation.subject_vectors("doors", [*ids, 10**6], faces=2)
    assert {row.subject.key: len(row.vectors) for row in rows} == {"p0": 2, "p2": 2, "p3": 2, "empty": 0}
    assert [row.subject.id for row in rows] == sorted(row.subject.id for row in rows)
    by_key = {row.subject.key: row for row in rows}
    np.testing.assert_allclose(by_key["p3"].vectors, FACES[[3, 7]], atol=1e-6)
    assert by_key["p3"].faces == tuple(tokens(doors, "p3")[:2])
    assert by_key["empty"].vectors.shape == (0, 4)
    assert curation.subject_vectors("doors", []) == []
