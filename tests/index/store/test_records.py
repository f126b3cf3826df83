"""Statements of the ledger: each against its neighbours in the same and in another collection, and at its limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.admin.verify import find_faults
from index.embedded.encryption import PLAINTEXT
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    lease_records,
    subject_records,
    vector_records,
)
from index.embedded.store.erasure_records import Removal
from index.embedded.store.migrations import migrate
from index.embedded.store.vector_records import InvertedFileRecord, SegmentRecord
from index.errors import ConflictError, NotFoundError
from index.records import FaceRecord
from index.types import Collection, Face, NewFace
from index.validation import check_fingerprint
from tests.index.people import vectors

NOW = 1000.0
TRAINS = 2  # id of the second collection


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    connection.pragma("foreign_keys", True)
    connection.pragma("reverse_unordered_selects", True)  # so that no test passes by an accidental order
    migrate(connection)
    yield connection
    connection.close()


def insert_collection(db: apsw.Connection, name: str) -> int:
    return collection_records.insert(db, Collection(0, name, "embedder", "f1", 2, {"k": 1}, NOW)).id


def vector(number: int) -> bytes:
    """A unit vector with a direction of its own for each number."""
    return np.array([np.cos(number), np.sin(number)], "<f4").tobytes()


def numbers(vectors: npt.NDArray[np.float32]) -> list[int]:
    """The numbers of these vectors."""
    return [next(n for n in range(1, 20) if vector(n) == row.astype("<f4").tobytes()) for row in vectors]


def face(subject: str, number: int, **changed: Any) -> FaceRecord:
    record = FaceRecord(0, subject, None, '{"a":1}', None, f"t{number}", '{"b":2}', NOW + number, vector(number), None)
    return replace(record, **changed)


def insert_record(db: apsw.Connection, collection_id: int, record: FaceRecord) -> bool:
    """Return whether the face is new."""
    return bool(face_records.insert_records(db, collection_id, [record], create_subjects=True))


@pytest.fixture
def doors(db: apsw.Connection) -> int:
    """Faces 1, 3, 5, 7 of p0, p1, p0, p1; TRAINS has 2, 4, 6, 8 of subjects with the same keys."""
    doors, trains = insert_collection(db, "doors"), insert_collection(db, "trains")
    for number in range(1, 9):
        collection = doors if number % 2 else trains
        assert insert_record(db, collection, face(f"p{(number - 1) // 2 % 2}", number))
    return doors


def selected(db: apsw.Connection, query: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = db.execute(f"SELECT {query}").fetchall()
    return rows


def names(db: apsw.Connection, after: str = "", limit: int = 9) -> list[str]:
    return [collection.name for collection in collection_records.page(db, after, limit)]


def keys(db: apsw.Connection, collection: int, after: str = "", limit: int = 9) -> list[str]:
    return [subject.key for subject in subject_records.page(db, collection, after, limit)]


# Collections and subjects.


def test_collections_and_subjects_are_listed_by_page(db: apsw.Connection, doors: int) -> None:
    assert (names(db), names(db, limit=1)) == (["doors", "trains"], ["doors"])
    trains = Collection(TRAINS, "trains", "embedder", "f1", 2, {"k": 1}, NOW)
    assert collection_records.page(db, "doors", 9) == [trains]
    assert (keys(db, doors), keys(db, doors, limit=1), keys(db, doors, "p0")) == (["p0", "p1"], ["p0"], ["p1"])
    assert subject_records.by_id(db, PLAINTEXT, [1, 99]).keys() == {1}
    assert collection_records.totals(db) == (2, 4, 8)
    assert re.fullmatch("[0-9a-f]{32}", collection_records.gallery_id(db))
    assert collection_records.counts(db, doors) == (2, 4)


def test_errors_name_the_missing_object(db: apsw.Connection, doors: int) -> None:
    for message, use in (
        ("collection 'x'", lambda: collection_records.find(db, "x")),
        ("subject 'x'", lambda: subject_records.find(db, doors, "x")),
        ("such receipt", lambda: erasure_records.receipt(db, "x")),
        ("crop of that face", lambda: face_records.crop(db, doors, "t1")),
        ("such face", lambda: face_records.ids_of_tokens(db, doors, ["t1", "t2"])),  # t2 is in TRAINS
    ):
        with pytest.raises(NotFoundError, match=f"^there is no {message}$"):
            use()
    with pytest.raises(ConflictError, match=r"^there is a collection 'doors' already$"):
        insert_collection(db, "doors")


def test_upsert_keeps_the_subject_and_replaces_its_properties(db: apsw.Connection, doors: int) -> None:
    before = subject_records.find(db, doors, "p0")
    after = subject_records.upsert(db, doors, "p0", name="n", metadata={"c": 3}, expires_at=NOW, now=NOW + 9)
    expected = replace(before, name="n", metadata={"c": 3}, expires_at=NOW)
    assert after == subject_records.find(db, doors, "p0") == expected
    assert subject_records.find(db, TRAINS, "p0").name is None


def test_subjects_expire_at_their_time_and_are_listed_in_its_order(db: apsw.Connection, doors: int) -> None:
    for key, expires_at in (("p0", NOW + 2), ("p1", NOW + 1)):
        subject_records.upsert(db, doors, key, name=None, metadata={}, expires_at=expires_at, now=NOW)
    p0, p1 = (subject_records.find(db, doors, key).id for key in ("p0", "p1"))
    for now, limit, expected in ((0.9, 9, []), (1, 9, [p1]), (2, 9, [p1, p0]), (2, 1, [p1])):
        assert subject_records.expired(db, NOW + now, limit) == [(doors, subject) for subject in expected]
    assert subject_records.find(db, doors, "p1", NOW + 0.9).id == p1
    with pytest.raises(NotFoundError):
        subject_records.find(db, doors, "p1", NOW + 1)


def test_pipeline_and_generation_of_a_collection_are_checked(db: apsw.Connection, doors: int) -> None:
    collection = collection_records.find(db, "doors")
    for fingerprint in (None, "f1"):
        check_fingerprint(collection, fingerprint)
    with pytest.raises(ConflictError, match=r"^'doors' holds vectors of f1, not of f2$"):
        check_fingerprint(collection, "f2")
    collection_records.check_current(db, collection)
    db.execute("UPDATE collections SET generation = 1 WHERE name = 'doors'")
    assert collection_records.find(db, "doors") == replace(collection, generation=1)
    for outdated in (collection, replace(collection, id=99)):
        with pytest.raises(ConflictError, match=r"^'doors' was dropped or re-embedded meanwhile$"):
            collection_records.check_current(db, outdated)
    assert collection_records.exists(db, doors)
    assert not collection_records.exists(db, 99)


# Faces.


def test_faces_between_two_ids_are_sorted_by_id(db: apsw.Connection, doors: int) -> None:
    ids = face_records.ids_through(db, doors, 5)
    assert ids.dtype == np.int64
    assert ids.tolist() == [1, 3, 5]
    collection = collection_records.find(db, "doors")
    rows = vector_records.read(db, collection, 1)
    assert (rows.faces.tolist(), rows.subjects.tolist()) == ([3, 5, 7], [3, 1, 3])
    assert rows.faces.dtype == rows.subjects.dtype == np.int64
    assert numbers(rows.vectors) == [3, 5, 7]
    assert vector_records.read(db, collection, 1, limit=2).faces.tolist() == [3, 5]
    assert vector_records.read(db, collection, 1, through=5).faces.tolist() == [3, 5]
    assert vector_records.read(db, collection, 7).vectors.shape == (0, 2)
    expected = [Face(number, f"t{number}", "p0", {"b": 2}, NOW + number) for number in (1, 5)]
    assert face_records.of_subject(db, doors, subject_records.find(db, doors, "p0")) == expected
    assert face_records.ids_of_tokens(db, doors, ["t7", "t3", "t7"]) == [3, 7]
    assert (face_records.subjects_of(db, [7, 1, 3, 99]), face_records.subjects_of(db, [])) == ([1, 3], [])
    vectors, tokens = vector_records.of_subjects(db, collection, [3, 1, 99])
    assert (vectors.subjects.tolist(), numbers(vectors.vectors)) == ([1, 1, 3, 3], [1, 5, 3, 7])
    assert tokens == ["t1", "t5", "t3", "t7"]


def test_records_are_read_as_inserted_without_expired_subjects(db: apsw.Connection, doors: int) -> None:
    new = face("p9", 9, name="n", expires_at=NOW + 5, crop=b"image")
    assert insert_record(db, doors, new)
    assert face_records.read_records(db, doors, 7, 9, NOW) == [replace(new, id=9)]
    insert_record(db, TRAINS, face("p9", 10, crop=b"another"))
    assert (face_records.crop(db, doors, "t9"), face_records.crop(db, TRAINS, "t10")) == (b"image", b"another")
    with pytest.raises(NotFoundError):
        face_records.crop(db, TRAINS, "t9")
    for after, limit, now, expected in (
        (1, 9, NOW + 4.9, [3, 5, 7, 9]),
        (1, 9, NOW + 5, [3, 5, 7]),
        (0, 9, NOW, [1, 3, 5, 7, 9]),
        (0, 2, NOW, [1, 3]),
    ):
        records = face_records.read_records(db, doors, after, limit, now)
        assert [record.id for record in records] == expected
    assert not insert_record(db, doors, new)
    assert collection_records.counts(db, doors) == (3, 5)


def test_an_existing_subject_is_kept_when_a_record_is_inserted(db: apsw.Connection, doors: int) -> None:
    before = subject_records.find(db, doors, "p0")
    assert insert_record(db, doors, face("p0", 9, name="other", metadata="{}", expires_at=NOW))
    assert subject_records.find(db, doors, "p0") == replace(before, faces=3)
    changed = ((TRAINS, face("p0", 9)), (doors, face("p1", 9)), (doors, face("p0", 9, vector=vector(8))))
    for collection, record in changed:
        with pytest.raises(ConflictError, match=r"^face t9 is enrolled with another collection, subject or vector$"):
            insert_record(db, collection, record)


@pytest.mark.parametrize("count", [1, 256, 257, 600])
def test_owners_of_any_number_of_faces(db: apsw.Connection, count: int) -> None:
    doors = insert_collection(db, "doors")
    for number in range(1, count + 1):
        record = face(f"p{number % 7}", number, name=f"n{number % 7}", expires_at=NOW + 9)
        insert_record(db, doors, record)
    owners = face_records.owners(db, PLAINTEXT, range(1, count + 2))
    assert sorted(owners) == list(range(1, count + 1))
    for number in (1, count):
        token, owner = owners[number]
        expected = subject_records.find(db, doors, f"p{number % 7}").__dict__
        assert (token, owner.__dict__) == (f"t{number}", {name: expected[name] for name in owner.__dict__})
    assert face_records.owners(db, PLAINTEXT, []) == {}


def insert_one_by_one(db: apsw.Connection, collection_id: int, faces: Sequence[NewFace], now: float) -> list[Face]:
    return [enrolled for face in faces for enrolled in face_records.insert(db, collection_id, [face], now)]


def test_faces_inserted_at_once_equal_those_inserted_one_by_one(tmp_path: Path) -> None:
    with closing(EmbeddedGallery(tmp_path, clock=lambda: 5.0)) as gallery:
        faces = [
            NewFace(f"p{n % 3} é", vector, {"side": n} if n % 2 else {}, bytes([n]) if n % 4 == 0 else None)
            for n, vector in enumerate(vectors(10))
        ]
        records = {}
        for name, insert in (("one by one", insert_one_by_one), ("at once", face_records.insert)):
            collection_id = gallery.create(name, "face-embedder", "f1", 4).id
            gallery.put_subject(name, "p1 é", name="Ada", metadata={"floor": 1})
            enrolled = gallery.ledger.write(partial(insert, collection_id=collection_id, faces=faces[:6], now=5.0))
            gallery.remove_faces(name, [enrolled[-1].token])  # its id must not be reused
            enrolled += gallery.ledger.write(partial(insert, collection_id=collection_id, faces=faces[6:], now=6.0))
            assert gallery.ledger.write(partial(insert, collection_id=collection_id, faces=[], now=6.0)) == []
            first = enrolled[0].id
            assert [face.id for face in enrolled] == list(range(first, first + 10))
            assert len({face.token for face in enrolled}) == 10
            del enrolled[5]
            listed = [face for subject in gallery.subjects(name) for face in gallery.faces(name, subject.key)]
            assert listed == sorted(enrolled, key=lambda face: (face.subject, face.id))
            with gallery.ledger.snapshot() as db:
                read = face_records.read_records(db, collection_id, 0, -1, 0.0)
            records[name] = [replace(record, id=record.id - first, token="") for record in read]
        assert records["at once"] == records["one by one"]
        assert len(records["at once"]) == 9
        assert list(find_faults(gallery)) == []
        ((match,),) = gallery.nearest_subjects("at once", faces[7].vector[None], 1)
        assert match.similarity == pytest.approx(1)


# Erasures.


def test_removed_faces_leave_removals_and_a_receipt(db: apsw.Connection, doors: int) -> None:
    receipt = erasure_records.remove_faces(db, doors, [3, 7], subjects=0, now=NOW + 1)
    assert erasure_records.receipt(db, receipt.token) == receipt
    assert (receipt.subjects, receipt.faces, receipt.requested_at, receipt.erased_at) == (0, 2, NOW + 1, None)
    assert re.fullmatch("[0-9a-f]{32}", receipt.token)
    assert face_records.ids_through(db, doors, 99).tolist() == [1, 5]
    assert erasure_records.removals(db, 0) == [Removal(1, doors, 0, 3), Removal(2, doors, 0, 7)]
    assert collection_records.counts(db, doors) == (2, 2)
    second = erasure_records.remove_faces(db, doors, [1], subjects=0, now=NOW)
    assert set(erasure_records.unfinished_receipts(db)) == {(receipt.token, doors, 2), (second.token, doors, 3)}
    erasure_records.finish_receipts(db, [receipt.token], NOW + 2)
    assert erasure_records.receipt(db, receipt.token) == replace(receipt, erased_at=NOW + 2)
    assert erasure_records.unfinished_receipts(db) == [(second.token, doors, 3)]


def test_a_subjects_removal_follows_those_of_its_faces(db: apsw.Connection, doors: int) -> None:
    receipt, erased = erasure_records.remove_subjects(db, doors, [subject_records.find(db, doors, "p0").id], NOW)
    assert (receipt.subjects, receipt.faces, erased) == (1, 2, [1, 5])
    expected = [Removal(1, doors, 0, 1), Removal(2, doors, 0, 5), Removal(3, doors, 1, 0)]
    assert erasure_records.removals(db, 0) == expected
    assert (keys(db, doors), keys(db, TRAINS)) == (["p1"], ["p0", "p1"])
    for collection, after, faces, last in ((doors, 0, [1, 5], 2), (doors, 1, [5], 2), (TRAINS, 1, [], 1)):
        removed, through = erasure_records.removed_faces(db, collection, after)
        assert removed.dtype == np.int64
        assert (removed.tolist(), through) == (faces, last)


def test_a_dropped_collection_is_one_removal(db: apsw.Connection, doors: int) -> None:
    erasure_records.remove_faces(db, doors, [1], subjects=0, now=NOW)
    erasure_records.remove_faces(db, TRAINS, [2], subjects=0, now=NOW)
    receipt = erasure_records.remove_collection(db, collection_records.find(db, "doors"), NOW)
    assert erasure_records.receipt(db, receipt.token) == receipt
    assert (receipt.subjects, receipt.faces) == (2, 3)
    assert erasure_records.removals(db, 0) == [Removal(2, TRAINS, 0, 2), Removal(3, doors, 0, 0)]
    assert names(db) == ["trains"]
    assert sorted(row[1:] for row in erasure_records.unfinished_receipts(db)) == [(1, 0), (1, 1), (2, 2)]


def test_removals_between_two_numbers_are_sorted_by_number(db: apsw.Connection, doors: int) -> None:
    assert erasure_records.last_removal(db) == 0
    erasure_records.remove_faces(db, doors, [7, 1, 5], subjects=0, now=NOW)
    assert [removal.face_id for removal in erasure_records.removals(db, 0)] == [7, 1, 5]
    for after, limits, expected in ((1, {}, [2, 3]), (0, {"through": 2}, [1, 2]), (0, {"limit": 2}, [1, 2])):
        assert [removal.seq for removal in erasure_records.removals(db, after, **limits)] == expected
    assert erasure_records.last_removal(db) == 3


@pytest.mark.parametrize(
    ("removal", "left"),
    [
        (Removal(9, 1, 1, 5), ([1, 2, 3, 4, 6, 7, 8], [1, 2, 3, 4], [1, 2])),
        (Removal(9, 1, 1, 0), ([2, 3, 4, 6, 7, 8], [2, 3, 4], [1, 2])),
        (Removal(9, 1, 0, 0), ([2, 4, 6, 8], [2, 4], [2])),
    ],
)
@pytest.mark.usefixtures("doors")
def test_a_removal_is_repeated(db: apsw.Connection, removal: Removal, left: tuple[list[int], ...]) -> None:
    assert erasure_records.target_exists(db, removal)
    for _ in range(2):  # the second time there is nothing to delete
        erasure_records.replay(db, removal)
        assert not erasure_records.target_exists(db, removal)
        tables = ("faces", "subjects", "collections")
        assert tuple([row[0] for row in selected(db, f"id FROM {table} ORDER BY id")] for table in tables) == left
        assert erasure_records.removals(db, 0) == [removal]


def test_ids_continue_after_all_earlier_ones(db: apsw.Connection, request: pytest.FixtureRequest) -> None:
    erasure_records.skip_ids(db, lambda: 5)  # of an empty ledger
    assert {seq for _, seq in selected(db, "name, seq FROM sqlite_sequence")} == {5}
    request.getfixturevalue("doors")
    before = dict(selected(db, "name, seq FROM sqlite_sequence"))
    gaps = {"collections": 10, "subjects": 20, "faces": 30, "removals": 40, "sightings": 50, "alerts": 60}
    erasure_records.skip_ids(db, partial(next, iter(gaps.values())))
    expected = [(name, before.get(name, 0) + gap) for name, gap in gaps.items()]
    assert sorted(selected(db, "name, seq FROM sqlite_sequence")) == sorted(expected)
    for removal in (Removal(100, 200, 300, 400), Removal(99, 199, 299, 399)):
        erasure_records.replay(db, removal)
    erasure_records.skip_ids(db, lambda: 1)
    third = insert_collection(db, "third")
    insert_record(db, third, face("p", 9))
    assert (third, subject_records.find(db, third, "p").id, face_records.ids_through(db, third, 999).tolist()) == (
        202,
        302,
        [402],
    )
    erasure_records.remove_faces(db, third, [402], subjects=0, now=NOW)
    assert erasure_records.last_removal(db) == 102


# Segments, inverted files and leases.


def test_segments_of_a_collection_are_sorted_by_their_faces(db: apsw.Connection, doors: int) -> None:
    late, early, other = (
        SegmentRecord("late", 5, 7, 3),
        SegmentRecord("early", 1, 3, 4),
        SegmentRecord("other", 2, 8, 0),
    )
    for collection, segment in ((doors, late), (doors, early), (TRAINS, other)):
        vector_records.put_segment(db, collection, segment)
    assert vector_records.segments(db, doors) == [early, late]
    new = SegmentRecord("new", 5, 7, 9)
    vector_records.put_segment(db, doors, new, "late")
    assert vector_records.segments(db, doors) == [early, new]
    vector_records.put_inverted_file(db, doors, InvertedFileRecord("ivf", 7, 2, 100))
    assert vector_records.files(db) == {"early", "new", "other", "ivf"}
    last = SegmentRecord("last", 9, 9, 1)
    vector_records.put_segment(db, doors, last)
    vector_records.mark_clean(db, doors, ["early", "new", "other", "ivf"], 6)
    assert vector_records.segments(db, doors) == [replace(early, removals_through=6), new, last]  # new: not decreased
    assert vector_records.segments(db, TRAINS) == [other]
    index = InvertedFileRecord("ivf", 7, 6, 100)
    assert vector_records.inverted_file(db, doors) == index
    assert vector_records.file_records(db, doors) == [*vector_records.segments(db, doors), index]
    assert vector_records.file_records(db, TRAINS) == [other]


def test_vectors_are_replaced_without_the_files_of_the_old_ones(db: apsw.Connection, doors: int) -> None:
    collection, trains = (collection_records.find(db, name) for name in ("doors", "trains"))
    for name, target in (("a", doors), ("b", TRAINS)):
        vector_records.put_segment(db, target, SegmentRecord(name, 1, 8, 0))
        vector_records.put_inverted_file(db, target, InvertedFileRecord(f"{name}.ivf", 8, 0, 100))
    new = np.frombuffer(vector(9), "<f4")
    assert vector_records.replace(db, collection, {3: 2 * new, 99: new}) == [3]
    assert numbers(vector_records.read(db, collection, 0).vectors) == [1, 9, 5, 7]
    assert vector_records.files(db) == {"b", "b.ivf"}
    current = [collection_records.find(db, name) for name in ("doors", "trains")]
    assert current == [replace(collection, generation=1), trains]


def test_a_collection_has_one_inverted_file(db: apsw.Connection, doors: int) -> None:
    def inverted_files() -> list[InvertedFileRecord | None]:
        return [vector_records.inverted_file(db, collection) for collection in (doors, TRAINS)]

    assert inverted_files() == [None, None]
    old, new, other = (InvertedFileRecord(name, 7, 2, 100) for name in ("old", "new", "other"))
    for collection, file in ((doors, old), (TRAINS, other), (doors, new)):
        vector_records.put_inverted_file(db, collection, file)
    assert inverted_files() == [new, other]
    vector_records.drop_inverted_file(db, doors)
    assert inverted_files() == [None, other]


def test_forget_files_deletes_rows_of_files_and_leases(db: apsw.Connection, doors: int) -> None:
    vector_records.put_segment(db, doors, SegmentRecord("a", 1, 3, 0))
    vector_records.put_inverted_file(db, doors, InvertedFileRecord("b", 3, 0, 100))
    assert lease_records.take(db, "work", "me", NOW, 10)
    vector_records.forget_files(db)
    assert vector_records.files(db) == set()
    assert not lease_records.is_held(db, "work", NOW, 10)


def test_a_lease_has_one_holder_until_it_expires(db: apsw.Connection) -> None:
    for holder, at, taken in (
        ("me", 0, True),
        ("other", 9.9, False),
        ("me", 5, True),  # renewed
        ("other", 14.9, False),
        ("other", 15, True),
        ("me", 16, False),
    ):
        assert lease_records.take(db, "a", holder, NOW + at, 10) is taken
    for name, at, held in (("a", 24.9, True), ("a", 25, False), ("b", 15, False)):
        assert lease_records.is_held(db, name, NOW + at, 10) is held


def test_only_the_holder_renews_a_lease(db: apsw.Connection) -> None:
    for name in ("a", "b"):
        assert lease_records.take(db, name, "me", NOW, 10)
    for name, holder, renewed in (("a", "me", True), ("a", "other", False), ("x", "me", False)):
        assert lease_records.renew(db, name, holder, NOW + 5, 10) is renewed
    for name, at, held in (("a", 14.9, True), ("a", 15, False), ("b", 10, False), ("x", 5, False)):
        assert lease_records.is_held(db, name, NOW + at, 10) is held


def test_only_the_holder_releases_a_lease(db: apsw.Connection) -> None:
    for name, holder in (("a", "me"), ("b", "me"), ("c", "other")):
        assert lease_records.take(db, name, holder, NOW, 10)
    lease_records.release(db, "a", "me")
    lease_records.release(db, "c", "me")
    assert [name for name in "abc" if lease_records.is_held(db, name, NOW, 10)] == ["b", "c"]
    assert selected(db, "name FROM leases ORDER BY name") == [("a",), ("b",), ("c",)]
    # A lease taken while the clock was ahead has expired.
    assert lease_records.take(db, "d", "other", NOW + 5 * 365 * 86_400, 10)
    assert not lease_records.is_held(db, "d", NOW, 10)
    for holder, taken in (("me", True), ("other", False)):
        assert lease_records.take(db, "d", holder, NOW, 10) is taken
    assert lease_records.is_held(db, "d", NOW, 10)


def test_faces_without_a_complete_vector_are_counted(db: apsw.Connection, doors: int) -> None:
    assert insert_record(db, doors, face("p9", 9))
    assert vector_records.count_missing(db, doors, 8) == 0
    db.execute("UPDATE vectors SET data = x'00' WHERE face_id IN (1, 2); DELETE FROM vectors WHERE face_id = 3")
    assert vector_records.count_missing(db, doors, 8) == 2
