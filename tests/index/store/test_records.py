"""The ledger's statements one by one: what each finds and changes, and what it leaves alone; where limits lie."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    lease_records,
    subject_records,
    vector_records,
)
from index.embedded.store.erasure_records import Removal
from index.embedded.store.face_records import FaceRecord
from index.embedded.store.migrations import migrate
from index.embedded.store.vector_records import InvertedFileRecord, SegmentRecord
from index.errors import ConflictError, NotFoundError
from index.types import Collection, Face

NOW = 1000.0


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    made = apsw.Connection(":memory:")
    made.pragma("foreign_keys", True)
    made.pragma("reverse_unordered_selects", True)  # so that no order is there by chance
    migrate(made)
    yield made
    made.close()


def collection(db: apsw.Connection, name: str) -> int:
    return collection_records.insert(db, Collection(0, name, "embedder", "f1", 2, {"k": 1}, NOW)).id


def vector(number: float) -> bytes:
    """Of length 1; another direction for each number."""
    return np.array([np.cos(number), np.sin(number)], "<f4").tobytes()


def numbers(vectors: npt.NDArray[np.float32]) -> list[int]:
    """Whose vectors these are."""
    return [next(n for n in range(1, 20) if vector(n) == one.astype("<f4").tobytes()) for one in vectors]


def face(subject: str, number: int, **changed: Any) -> FaceRecord:
    made = FaceRecord(0, subject, None, '{"a":1}', None, f"t{number}", '{"b":2}', NOW + number, vector(number), None)
    return dataclasses.replace(made, **changed)


@pytest.fixture
def doors(db: apsw.Connection) -> int:
    """Faces 1, 3, 5, 7 of p0, p1, p0, p1; trains has 2, 4, 6, 8 of people with the same keys."""
    doors, trains = collection(db, "doors"), collection(db, "trains")
    for number in range(1, 9):
        of = doors if number % 2 else trains
        assert face_records.insert_record(db, of, face(f"p{(number - 1) // 2 % 2}", number))
    return doors


def selected(db: apsw.Connection, what: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = db.execute(f"SELECT {what}").fetchall()
    return found


# Collections and subjects.


def test_collections_and_subjects_are_listed_by_page(db: apsw.Connection, doors: int) -> None:
    assert [one.name for one in collection_records.page(db, "", 9)] == ["doors", "trains"]
    assert [one.name for one in collection_records.page(db, "", 1)] == ["doors"]
    assert collection_records.page(db, "doors", 9) == [Collection(2, "trains", "embedder", "f1", 2, {"k": 1}, NOW)]
    assert [one.key for one in subject_records.page(db, doors, "", 9)] == ["p0", "p1"]
    assert [one.key for one in subject_records.page(db, doors, "", 1)] == ["p0"]
    assert [one.key for one in subject_records.page(db, doors, "p0", 9)] == ["p1"]
    assert subject_records.by_id(db, [1, 99]).keys() == {1}
    assert collection_records.totals(db) == (2, 4, 8)
    assert re.fullmatch("[0-9a-f]{32}", collection_records.gallery_id(db))
    assert collection_records.counts(db, doors) == (2, 4)


def test_what_is_not_there_is_named(db: apsw.Connection, doors: int) -> None:
    with pytest.raises(NotFoundError, match=r"^there is no collection 'x'$"):
        collection_records.find(db, "x")
    with pytest.raises(NotFoundError, match=r"^there is no subject 'x'$"):
        subject_records.find(db, doors, "x")
    with pytest.raises(NotFoundError, match=r"^there is no such receipt$"):
        erasure_records.receipt(db, "x")
    with pytest.raises(NotFoundError, match=r"^there is no crop of that face$"):
        face_records.crop(db, doors, "t1")
    with pytest.raises(NotFoundError, match=r"^there is no such face$"):
        face_records.ids_of_tokens(db, doors, ["t1", "t2"])  # the second is in another collection
    with pytest.raises(ConflictError, match=r"^there is a collection 'doors' already$"):
        collection(db, "doors")


def test_a_subject_that_changes_is_the_same_subject(db: apsw.Connection, doors: int) -> None:
    before = subject_records.find(db, doors, "p0")
    after = subject_records.upsert(db, doors, "p0", name="n", metadata={"c": 3}, expires_at=NOW, now=NOW + 9)
    expected = dataclasses.replace(before, name="n", metadata={"c": 3}, expires_at=NOW)
    assert after == subject_records.find(db, doors, "p0") == expected
    assert subject_records.find(db, 2, "p0").name is None


def test_who_expires_does_so_at_that_very_time_and_the_first_first(db: apsw.Connection, doors: int) -> None:
    for key, at in (("p0", NOW + 2), ("p1", NOW + 1)):
        subject_records.upsert(db, doors, key, name=None, metadata={}, expires_at=at, now=NOW)
    assert subject_records.expired(db, NOW + 0.9, 9) == []
    p0, p1 = (subject_records.find(db, doors, key).id for key in ("p0", "p1"))
    assert subject_records.expired(db, NOW + 1, 9) == [(doors, p1)]
    assert subject_records.expired(db, NOW + 2, 9) == [(doors, p1), (doors, p0)]
    assert subject_records.expired(db, NOW + 2, 1) == [(doors, p1)]


def test_vectors_are_compared_with_those_of_their_pipeline_and_generation(db: apsw.Connection, doors: int) -> None:
    known = collection_records.find(db, "doors")
    for fingerprint in (None, "f1"):
        collection_records.check_fingerprint(known, fingerprint)
    with pytest.raises(ConflictError, match=r"^'doors' holds vectors of f1, not of f2$"):
        collection_records.check_fingerprint(known, "f2")
    collection_records.check_current(db, known)
    db.execute("UPDATE collections SET generation = 1 WHERE name = 'doors'")
    assert collection_records.find(db, "doors") == dataclasses.replace(known, generation=1)
    for changed in (known, dataclasses.replace(known, id=99)):
        with pytest.raises(ConflictError, match=r"^'doors' was dropped or re-embedded meanwhile$"):
            collection_records.check_current(db, changed)
    assert collection_records.exists(db, doors)
    assert not collection_records.exists(db, 99)


# Faces.


def test_faces_are_listed_in_their_order_between_two_ids(db: apsw.Connection, doors: int) -> None:
    ids = face_records.ids_through(db, doors, 5)
    assert ids.tolist() == [1, 3, 5]
    assert ids.dtype == np.int64
    assert face_records.last_id(db, doors) == 7
    assert face_records.last_id(db, 99) == 0
    found = vector_records.read(db, doors, 2, 1)
    assert (found.faces.tolist(), found.subjects.tolist()) == ([3, 5, 7], [3, 1, 3])
    assert found.faces.dtype == found.subjects.dtype == np.int64
    assert numbers(found.vectors) == [3, 5, 7]
    assert vector_records.read(db, doors, 2, 1, limit=2).faces.tolist() == [3, 5]
    assert vector_records.read(db, doors, 2, 1, through=5).faces.tolist() == [3, 5]
    assert vector_records.read(db, doors, 2, 7).vectors.shape == (0, 2)
    assert face_records.of_subject(db, 1) == [
        Face(number, f"t{number}", "p0", {"b": 2}, NOW + number) for number in (1, 5)
    ]
    assert face_records.ids_of_tokens(db, doors, ["t7", "t3", "t7"]) == [3, 7]
    vectors = vector_records.by_subject(db, [1, 99], 2)
    assert {key: numbers(value) for key, value in vectors.items()} == {1: [1, 5]}


def test_whole_faces_are_as_they_were_put_without_who_has_expired(db: apsw.Connection, doors: int) -> None:
    new = face("p9", 9, name="n", expires_at=NOW + 5, crop=b"picture")
    assert face_records.insert_record(db, doors, new)
    assert face_records.read_records(db, doors, 7, 9, 9, NOW) == [dataclasses.replace(new, id=9)]
    face_records.insert_record(db, 2, face("p9", 10, crop=b"another"))
    assert (face_records.crop(db, doors, "t9"), face_records.crop(db, 2, "t10")) == (b"picture", b"another")
    with pytest.raises(NotFoundError):
        face_records.crop(db, 2, "t9")
    for after, through, limit, now, expected in (
        (1, 9, 9, NOW + 4.9, [3, 5, 7, 9]),
        (1, 9, 9, NOW + 5, [3, 5, 7]),
        (0, 7, 9, NOW, [1, 3, 5, 7]),
        (0, 7, 2, NOW, [1, 3]),
    ):
        assert [one.id for one in face_records.read_records(db, doors, after, through, limit, now)] == expected
    assert not face_records.insert_record(db, doors, new)
    assert collection_records.counts(db, doors) == (3, 5)


def test_a_face_comes_to_its_subject_as_that_is(db: apsw.Connection, doors: int) -> None:
    before = subject_records.find(db, doors, "p0")
    assert face_records.insert_record(db, doors, face("p0", 9, name="other", metadata="{}", expires_at=NOW))
    assert subject_records.find(db, doors, "p0") == dataclasses.replace(before, faces=3)
    for of, changed in ((2, face("p0", 9)), (doors, face("p1", 9)), (doors, face("p0", 9, vector=vector(8)))):
        with pytest.raises(ConflictError, match=r"^face t9 is enrolled with another collection, subject or vector$"):
            face_records.insert_record(db, of, changed)


@pytest.mark.parametrize("count", [1, 256, 257, 600])
def test_owners_of_any_number_of_faces(db: apsw.Connection, count: int) -> None:
    doors = collection(db, "doors")
    for number in range(1, count + 1):
        face_records.insert_record(db, doors, face(f"p{number % 7}", number, name=f"n{number % 7}", expires_at=NOW + 9))
    assert len(vector_records.read(db, doors, 2, 0).faces) == count
    found = face_records.owners(db, range(1, count + 2))
    assert sorted(found) == list(range(1, count + 1))
    for number in (1, count):
        token, owner = found[number]
        expected = subject_records.find(db, doors, f"p{number % 7}").__dict__
        assert (token, owner.__dict__) == (f"t{number}", {name: expected[name] for name in owner.__dict__})
    assert face_records.owners(db, []) == {}


# What goes, and is noted.


def test_removed_faces_are_noted_and_others_stay(db: apsw.Connection, doors: int) -> None:
    made = erasure_records.remove_faces(db, doors, [3, 7], subjects=0, now=NOW + 1)
    assert erasure_records.receipt(db, made.token) == made
    assert (made.subjects, made.faces, made.requested_at, made.erased_at) == (0, 2, NOW + 1, None)
    assert re.fullmatch("[0-9a-f]{32}", made.token)
    assert face_records.ids_through(db, doors, 99).tolist() == [1, 5]
    assert erasure_records.removals(db, 0) == [Removal(1, doors, 0, 3), Removal(2, doors, 0, 7)]
    assert erasure_records.unfinished_receipts(db) == [(made.token, doors, 2)]
    assert collection_records.counts(db, doors) == (2, 2)


def test_a_removed_subject_is_noted_behind_its_faces(db: apsw.Connection, doors: int) -> None:
    made = erasure_records.remove_subjects(db, doors, [subject_records.find(db, doors, "p0").id], NOW)
    assert (made.subjects, made.faces) == (1, 2)
    assert erasure_records.removals(db, 0) == [
        Removal(1, doors, 0, 1),
        Removal(2, doors, 0, 5),
        Removal(3, doors, 1, 0),
    ]
    assert [one.key for one in subject_records.page(db, doors, "", 9)] == ["p1"]
    assert [one.key for one in subject_records.page(db, 2, "", 9)] == ["p0", "p1"]
    removed, through = erasure_records.removed_faces(db, doors, 0)
    assert (removed.tolist(), through) == ([1, 5], 2)  # faces alone
    removed, through = erasure_records.removed_faces(db, doors, 1)
    assert (removed.tolist(), through) == ([5], 2)
    removed, through = erasure_records.removed_faces(db, 2, 1)
    assert (removed.tolist(), through) == ([], 1)
    assert removed.dtype == np.int64


def test_a_removed_collection_is_one_removal(db: apsw.Connection, doors: int) -> None:
    erasure_records.remove_faces(db, doors, [1], subjects=0, now=NOW)
    erasure_records.remove_faces(db, 2, [2], subjects=0, now=NOW)
    made = erasure_records.remove_collection(db, collection_records.find(db, "doors"), NOW)
    assert erasure_records.receipt(db, made.token) == made
    assert (made.subjects, made.faces) == (2, 3)
    assert erasure_records.removals(db, 0) == [Removal(2, 2, 0, 2), Removal(3, doors, 0, 0)]
    assert [one.name for one in collection_records.page(db, "", 9)] == ["trains"]
    assert sorted(row[1:] for row in erasure_records.unfinished_receipts(db)) == [(1, 0), (1, 1), (2, 2)]


def test_removals_are_told_in_their_order_between_two_numbers(db: apsw.Connection, doors: int) -> None:
    assert erasure_records.last_removal(db) == 0
    erasure_records.remove_faces(db, doors, [7, 1, 5], subjects=0, now=NOW)
    assert [one.face_id for one in erasure_records.removals(db, 0)] == [7, 1, 5]
    assert [one.seq for one in erasure_records.removals(db, 1)] == [2, 3]
    assert [one.seq for one in erasure_records.removals(db, 0, through=2)] == [1, 2]
    assert [one.seq for one in erasure_records.removals(db, 0, limit=2)] == [1, 2]
    assert erasure_records.last_removal(db) == 3


@pytest.mark.parametrize(
    ("removal", "left"),
    [
        (Removal(9, 1, 1, 5), ([1, 2, 3, 4, 6, 7, 8], [1, 2, 3, 4], [1, 2])),
        (Removal(9, 1, 1, 0), ([2, 3, 4, 6, 7, 8], [2, 3, 4], [1, 2])),
        (Removal(9, 1, 0, 0), ([2, 4, 6, 8], [2, 4], [2])),
    ],
)
def test_what_was_erased_is_erased_again(
    db: apsw.Connection, doors: int, removal: Removal, left: tuple[list[int], list[int], list[int]]
) -> None:
    assert erasure_records.target_exists(db, removal)
    for _ in range(2):  # the second time there is nothing to be done
        erasure_records.replay(db, removal)
        assert not erasure_records.target_exists(db, removal)
        found = tuple([row[0] for row in selected(db, f"id FROM {name} ORDER BY id")] for name in ("faces", "subjects"))
        assert (*found, [one.id for one in collection_records.page(db, "", 9)]) == left
        assert erasure_records.removals(db, 0) == [removal]


def test_ids_of_a_new_ledger_go_on_behind_the_gap(db: apsw.Connection) -> None:
    erasure_records.skip_ids(db, lambda: 5)
    assert {seq for _, seq in selected(db, "name, seq FROM sqlite_sequence")} == {5}
    assert collection(db, "doors") == 6


def test_ids_go_on_behind_all_that_there_were(db: apsw.Connection, doors: int) -> None:
    given = dict(selected(db, "name, seq FROM sqlite_sequence"))
    assert sorted(given) == ["collections", "faces", "subjects"]
    gaps = {"collections": 10, "subjects": 20, "faces": 30, "removals": 40}
    erasure_records.skip_ids(db, partial(next, iter(gaps.values())))
    expected = [(name, given.get(name, 0) + gap) for name, gap in gaps.items()]
    assert sorted(selected(db, "name, seq FROM sqlite_sequence")) == sorted(expected)
    for removal in (Removal(100, 200, 300, 400), Removal(99, 199, 299, 399)):
        erasure_records.replay(db, removal)
    erasure_records.skip_ids(db, lambda: 1)
    third = collection(db, "third")
    face_records.insert_record(db, third, face("p", 9))
    assert (third, subject_records.find(db, third, "p").id, face_records.last_id(db, third)) == (202, 302, 402)
    erasure_records.remove_faces(db, third, [402], subjects=0, now=NOW)
    assert erasure_records.last_removal(db) == 102


# What is made of it: segments, inverted files, receipts, leases.


def test_segments_are_those_of_the_collection_in_the_order_of_ids(db: apsw.Connection, doors: int) -> None:
    late, early, other = (
        SegmentRecord("late", 5, 7, 3),
        SegmentRecord("early", 1, 3, 4),
        SegmentRecord("other", 2, 8, 0),
    )
    for of, one in ((doors, late), (doors, early), (2, other)):
        vector_records.put_segment(db, of, one)
    assert vector_records.segments(db, doors) == [early, late]
    vector_records.put_segment(db, doors, SegmentRecord("anew", 5, 7, 9), "late")
    assert vector_records.segments(db, doors) == [early, SegmentRecord("anew", 5, 7, 9)]
    vector_records.put_inverted_file(db, doors, InvertedFileRecord("ivf", 7, 2, 100))
    assert vector_records.files(db) == {"early", "anew", "other", "ivf"}
    vector_records.put_segment(db, doors, SegmentRecord("last", 9, 9, 1))
    vector_records.mark_clean(db, doors, ["early", "anew", "other", "ivf"], 6)
    expected = [
        SegmentRecord("early", 1, 3, 6),
        SegmentRecord("anew", 5, 7, 9),
        SegmentRecord("last", 9, 9, 1),
    ]  # the second not less
    assert vector_records.segments(db, doors) == expected
    assert vector_records.segments(db, 2) == [other]
    assert vector_records.inverted_file(db, doors) == InvertedFileRecord("ivf", 7, 6, 100)


def test_a_collection_has_one_inverted_file(db: apsw.Connection, doors: int) -> None:
    assert vector_records.inverted_file(db, doors) is None
    for of, one in (
        (doors, InvertedFileRecord("a", 7, 2, 100)),
        (2, InvertedFileRecord("b", 8, 2, 50)),
        (doors, InvertedFileRecord("c", 7, 3, 90)),
    ):
        vector_records.put_inverted_file(db, of, one)
    assert (vector_records.inverted_file(db, doors), vector_records.inverted_file(db, 2)) == (
        InvertedFileRecord("c", 7, 3, 90),
        InvertedFileRecord("b", 8, 2, 50),
    )
    vector_records.drop_inverted_file(db, doors)
    assert (vector_records.inverted_file(db, doors), vector_records.inverted_file(db, 2)) == (
        None,
        InvertedFileRecord("b", 8, 2, 50),
    )


def test_all_files_are_forgotten_and_who_works_on_them(db: apsw.Connection, doors: int) -> None:
    vector_records.put_segment(db, doors, SegmentRecord("a", 1, 3, 0))
    vector_records.put_inverted_file(db, doors, InvertedFileRecord("b", 3, 0, 100))
    assert lease_records.take(db, "work", "me", NOW, 10)
    vector_records.forget_files(db)
    assert vector_records.files(db) == set()
    assert not lease_records.is_held(db, "work", NOW, 10)


def test_receipts_are_done_one_by_one(db: apsw.Connection, doors: int) -> None:
    first, second = (erasure_records.remove_faces(db, doors, [number], subjects=0, now=NOW) for number in (1, 3))
    erasure_records.finish_receipts(db, [first.token], NOW + 1)
    assert erasure_records.receipt(db, first.token) == dataclasses.replace(first, erased_at=NOW + 1)
    assert erasure_records.unfinished_receipts(db) == [(second.token, doors, 2)]


def test_a_lease_is_held_by_one_until_it_ends(db: apsw.Connection) -> None:
    assert lease_records.take(db, "a", "me", NOW, 10)
    assert not lease_records.take(db, "a", "other", NOW + 9.9, 10)
    assert lease_records.take(db, "a", "me", NOW + 5, 10)  # kept
    assert not lease_records.take(db, "a", "other", NOW + 14.9, 10)
    assert lease_records.is_held(db, "a", NOW + 14.9, 10)
    assert not lease_records.is_held(db, "a", NOW + 15, 10)
    assert not lease_records.is_held(db, "b", NOW, 10)
    assert lease_records.take(db, "a", "other", NOW + 15, 10)
    assert not lease_records.take(db, "a", "me", NOW + 16, 10)


def test_who_lets_go_of_a_lease_keeps_others(db: apsw.Connection) -> None:
    for name, holder in (("a", "me"), ("b", "me"), ("c", "other")):
        assert lease_records.take(db, name, holder, NOW, 10)
    lease_records.release(db, "a", "me")
    lease_records.release(db, "c", "me")
    assert [name for name in "abc" if lease_records.is_held(db, name, NOW, 10)] == ["b", "c"]


def test_lease_taken_while_the_clock_was_ahead_has_lapsed(db: apsw.Connection) -> None:
    assert lease_records.take(db, "a", "other", NOW + 5 * 365 * 86_400, 10)
    assert not lease_records.is_held(db, "a", NOW, 10)
    assert lease_records.take(db, "a", "me", NOW, 10)
    assert not lease_records.take(db, "a", "other", NOW, 10)
    assert lease_records.is_held(db, "a", NOW, 10)


# What can be wrong.


def test_what_does_not_fit_is_counted(db: apsw.Connection, doors: int) -> None:
    def found() -> tuple[object, ...]:
        return (
            vector_records.count_missing(db, doors, 8),
            face_records.count_misplaced(db),
            collection_records.count_miscounted(db),
            collection_records.count_invalid_json(db),
        )

    assert face_records.insert_record(db, doors, face("p9", 9))
    assert found() == (0, 0, 0, {})
    db.execute("UPDATE vectors SET data = x'00' WHERE face_id IN (1, 2)")
    db.execute("DELETE FROM vectors WHERE face_id = 3")
    assert found() == (2, 0, 0, {})
    db.execute("UPDATE faces SET collection_id = 2 WHERE id = 5")
    assert found() == (2, 1, 2, {})
    db.execute("UPDATE collections SET subjects = 9, settings = '{' WHERE id = 2; UPDATE faces SET details = ''")
    assert found() == (2, 1, 2, {"collections": 1, "faces": 9})
    db.execute("UPDATE subjects SET metadata = 'x' WHERE id < 3")
    assert collection_records.count_invalid_json(db) == {"collections": 1, "subjects": 2, "faces": 9}
