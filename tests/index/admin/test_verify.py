"""Every kind of damage is found, and nothing is found where there is none."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from index.embedded.admin import verify as integrity
from index.embedded.admin.verify import faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import lease_records, vector_records
from index.embedded.store.vector_records import FaceVectors
from index.embedded.tasks.compaction import Limits, Maintenance
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from tests.index.people import enrol, vectors

LIMITS = Limits(segment=8, exact_below=16, growth=4.0)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    """Three segments, an inverted file, some faces that are in neither, and some that were erased since."""
    made = EmbeddedGallery(tmp_path)
    made.create("doors", "face-embedder", "f1", 4)
    made.create("empty", "face-embedder", "f1", 4)
    faces = enrol(made, "doors", 28)
    made.remove_faces("doors", [faces[1].token])
    maintenance = Maintenance(made, LIMITS)
    maintenance.run()
    maintenance.release()
    made.remove_faces("doors", [faces[2].token, faces[27].token])
    yield made
    made.close()


def sql(statement: str, *values: object) -> Callable[[EmbeddedGallery], None]:
    """Tamper with rows, whatever the schema says."""

    def change(gallery: EmbeddedGallery) -> None:
        db = gallery.ledger._connect()
        db.pragma("foreign_keys", False)
        db.execute(statement, values)
        db.close()

    return change


def flip(pattern: str, place: int) -> Callable[[EmbeddedGallery], None]:
    def change(gallery: EmbeddedGallery) -> None:
        path = min(gallery.files.glob(pattern))
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return change


def delete(pattern: str) -> Callable[[EmbeddedGallery], None]:
    return lambda gallery: min(gallery.files.glob(pattern)).unlink()


def orphan(gallery: EmbeddedGallery) -> None:
    (gallery.files / "1-0.seg").write_bytes(b"left")


def other_segment(change: Callable[[FaceVectors], FaceVectors]) -> Callable[[EmbeddedGallery], None]:
    """A segment that is whole in itself, but not what the ledger says."""

    def write(gallery: EmbeddedGallery) -> None:
        with gallery.ledger.snapshot() as db:
            one = vector_records.segments(db, 1)[0]
            rows = vector_records.read(db, 1, 4, one.first_face - 1, through=one.last_face)
        segments.write(gallery.files / one.file, change(rows), one.removals_through)

    return write


def other_index(gallery: EmbeddedGallery) -> None:
    with gallery.ledger.snapshot() as db:
        indexed = vector_records.inverted_file(db, 1)
    assert indexed is not None
    ivf = Ivf.read(gallery.files / indexed.file)
    ivf.remove(np.array([9]))
    ivf.add(np.array([4, 900, 901]), vectors(3))
    ivf.write(gallery.files / indexed.file)


def tombstone_lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[EmbeddedGallery], None]:
    def write(gallery: EmbeddedGallery) -> None:
        path = gallery.tombstones.path
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return write


def test_where_nothing_is_wrong_nothing_is_found(gallery: EmbeddedGallery) -> None:
    assert len(list(gallery.files.glob("*.seg"))) == 3
    assert len(list(gallery.files.glob("*.ivf"))) == 1
    assert list(faults(gallery)) == []


DAMAGES: list[tuple[Callable[[EmbeddedGallery], None], list[str]]] = [
    (flip("*.seg", -1), ["doors: .*seg changed at byte 0"]),
    (flip("*.seg", 20), ["doors: .*seg has no segment's header"]),
    (flip("*.ivf", -1), ["doors: .*ivf is not the index"]),
    (delete("*.seg"), ["doors: .*seg: .*No such file"]),
    (delete("*.ivf"), ["doors: .*ivf: .*No such file"]),
    (orphan, ["1-0.seg is named by nobody"]),
    (
        sql("UPDATE vectors SET data = ? WHERE face_id = 5", vectors(1, seed=99).tobytes()),
        ["doors: .*seg differs from the ledger in 1 faces, the first is 5"],
    ),
    (
        sql("UPDATE vectors SET data = zeroblob(16) WHERE face_id = 27"),
        ["doors: 1 faces have no vector of length 1, the first is 27"],
    ),
    (sql("UPDATE vectors SET data = zeroblob(12) WHERE face_id = 27"), ["doors: 1 faces have no vector of 4"]),
    (sql("DELETE FROM vectors WHERE face_id = 27"), ["doors: 1 faces have no vector of 4"]),
    (
        sql("UPDATE faces SET subject_id = 4 WHERE id = 5"),
        ["doors: .*seg differs from the ledger in 1 faces, the first is 5"],
    ),
    (
        sql("UPDATE faces SET collection_id = 2 WHERE id = 27"),
        ["ledger: 1 faces are in another collection than their subject", "ledger: 2 collections have another number"],
    ),
    (
        sql("UPDATE collections SET subjects = subjects - 1 WHERE id = 1"),
        ["ledger: 1 collections have another number of subjects or faces than they say"],
    ),
    (sql("INSERT INTO vectors VALUES (900, zeroblob(16))"), ["ledger: row 900 of vectors belongs to nothing in faces"]),
    (sql("UPDATE subjects SET metadata = '{' WHERE id < 3"), ["ledger: 2 rows of subjects have something else"]),
    (sql("UPDATE faces SET details = '{' WHERE id = 4"), ["ledger: 1 rows of faces have something else"]),
    (
        sql("UPDATE collections SET settings = '{' WHERE id = 2"),
        ["ledger: 1 rows of collections have something else"],
    ),
    (
        sql("DELETE FROM faces WHERE id = 5; DELETE FROM vectors WHERE face_id = 5"),
        [
            "doors: .*seg holds 1 faces that the ledger does not have, the first is 5",
            "doors: .*ivf holds 1 faces that the ledger does not have, the first is 5",
        ],
    ),
    (
        sql("UPDATE segments SET first_face = 2 WHERE first_face != 1 AND last_face < 20"),
        ["doors: .*seg and .*seg are about the same faces", "doors: .*seg lacks"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces[1:], rows.subjects[1:], rows.vectors[1:])),
        ["doors: .*seg lacks 1 faces, the first is 1"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces[::-1], rows.subjects[::-1], rows.vectors[::-1])),
        ["doors: .*seg holds faces twice, or not in the order"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces, rows.subjects, rows.vectors[:, :3])),
        ["doors: .*seg has vectors of 3 numbers"],
    ),
    (
        other_index,
        [
            "doors: .*ivf holds faces twice",
            "doors: .*ivf holds 2 faces that the ledger does not have, the first is 900",
            "doors: .*ivf lacks 1 faces, the first is 9",
        ],
    ),
    (
        sql(
            "INSERT INTO faces VALUES (2, 1, 2, 'a', '{}', 0, NULL);"
            "INSERT INTO vectors SELECT 2, data FROM vectors LIMIT 1;"
            "UPDATE collections SET faces = faces + 1 WHERE id = 1"
        ),
        ["doors: .*seg lacks 1", "doors: .*ivf lacks 1", "1 erasures were not made in the ledger, the first is 1"],
    ),
    (
        sql("INSERT INTO removals VALUES (9, 1, 3, 0); INSERT INTO removals VALUES (10, 2, 0, 0)"),
        [],  # younger than the last line: it is about to be written down
    ),
    (lambda gallery: gallery.tombstones.path.unlink(), ["tombstones is missing"]),
    (
        tombstone_lines(lambda lines: [lines[0], lines[1], b"2" + lines[2][1:], lines[3]]),
        [],
    ),
    (tombstone_lines(lambda lines: [lines[0], lines[1], b"9" + lines[2][1:], lines[3]]), ["tombstones: line 3"]),
    (tombstone_lines(lambda lines: [lines[0], lines[1], lines[3]]), ["tombstones differs from the ledger's"]),
    (sql("DELETE FROM removals WHERE seq = 2"), [".*seg holds 1", ".*ivf holds 1", "tombstones differs"]),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_every_kind_of_damage_is_found(
    gallery: EmbeddedGallery, damage: Callable[[EmbeddedGallery], None], expected: list[str]
) -> None:
    damage(gallery)
    found = list(faults(gallery))
    assert len(found) == len(expected), found
    for fault, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, fault), (pattern, fault)


def test_erased_subjects_and_collections_that_are_there_are_found(gallery: EmbeddedGallery) -> None:
    gallery.remove_subject("doors", "p0")
    gallery.drop("empty")
    assert list(faults(gallery)) == []
    sql("INSERT INTO subjects VALUES (1, 1, 'p0', 'Zoë', '{}', 0, NULL, NULL)")(gallery)
    sql("INSERT INTO collections VALUES (2, 'empty', 'e', 'f', 4, '{}', 0, 0, 0, 0, 0, 0, 0)")(gallery)
    assert [fault[:26] for fault in faults(gallery)] == ["2 erasures were not made i"]


def test_what_a_dropped_collection_had_removed_is_no_fault(gallery: EmbeddedGallery) -> None:
    gallery.drop("doors")
    Maintenance(gallery, LIMITS).run()
    assert list(faults(gallery)) == []


def test_many_erasures_are_compared_page_by_page(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrity, "ROWS_AT_ONCE", 2)
    monkeypatch.setattr(integrity, "AT_ONCE", 10)
    gallery.remove_subject("doors", "p0")
    assert list(faults(gallery)) == []


def test_a_damaged_page_of_the_ledger_is_found(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    for name, pattern in (("faces_by_subject", "ledger: "), ("subjects", "ledger: ")):
        assert gallery.ledger.scrub()
        root = gallery.ledger.reader().execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).get
        gallery.close()
        path = tmp_path / "ledger.db"
        content = bytearray(path.read_bytes())
        content[(root - 1) * 4096] ^= 0xFF  # the kind of the page
        path.write_bytes(content)
        gallery = EmbeddedGallery(tmp_path)
        found = list(faults(gallery))
        gallery.close()
        content[(root - 1) * 4096] ^= 0xFF
        path.write_bytes(content)
        gallery = EmbeddedGallery(tmp_path)
        assert found
        assert found[0].startswith(pattern)
    assert list(faults(gallery)) == []
    gallery.close()


def test_files_that_another_process_is_about_to_name_are_no_strangers(gallery: EmbeddedGallery) -> None:
    orphan(gallery)
    Maintenance(gallery, LIMITS)._gallery.ledger.write(
        lambda db: lease_records.take(db, "maintenance", "x", gallery.clock(), 60.0)
    )
    assert list(faults(gallery)) == []
    soon = time.time() + 30  # as another machine's clock may say
    os.utime(gallery.files / "1-0.seg", (soon, soon))
    assert list(faults(gallery)) == []
    for moment in (1.0, time.time() + 3600):
        os.utime(gallery.files / "1-0.seg", (moment, moment))
        assert list(faults(gallery)) == ["1-0.seg is named by nobody"]


def test_files_that_another_process_replaces_meanwhile_are_no_fault(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = integrity._vector_faults

    def and_then(*given: object) -> Iterator[str]:
        yield from real(*given)  # type: ignore[arg-type]
        maintenance = Maintenance(gallery, LIMITS)
        maintenance.rebuild(gallery.collections())
        maintenance.release()

    monkeypatch.setattr(integrity, "_vector_faults", and_then)
    before = set(gallery.files.iterdir())
    assert list(faults(gallery)) == []
    assert not before & set(gallery.files.iterdir())
