"""Verification finds every kind of damage, and no fault in an undamaged gallery."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from index.embedded.admin import verify
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import lease_records, vector_records
from index.embedded.store.vector_records import FaceVectors
from index.embedded.tasks.maintenance import Maintenance
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import Ivf
from tests.index.people import LIMITS, enrol, maintain, vectors


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    """Three segments, an inverted file, some faces in neither, and some faces erased since."""
    gallery = EmbeddedGallery(tmp_path)
    gallery.create("doors", "face-embedder", "f1", 4)
    gallery.create("empty", "face-embedder", "f1", 4)
    faces = enrol(gallery, "doors", 28)
    gallery.remove_faces("doors", [faces[1].token])
    maintain(gallery)
    gallery.remove_faces("doors", [faces[2].token, faces[27].token])
    yield gallery
    gallery.close()


def sql(statement: str, *values: object) -> Callable[[EmbeddedGallery], None]:
    """Change rows without checking foreign keys."""

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
    """Replace a segment by a valid one with other rows."""

    def write(gallery: EmbeddedGallery) -> None:
        with gallery.ledger.snapshot() as db:
            segment = vector_records.segments(db, 1)[0]
            rows = vector_records.read(
                db, gallery.collection("doors"), segment.first_face - 1, through=segment.last_face
            )
        segments.write(gallery.files / segment.file, change(rows), segment.removals_through)

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


def test_an_undamaged_gallery_has_no_faults(gallery: EmbeddedGallery) -> None:
    assert len(list(gallery.files.glob("*.seg"))) == 3
    assert len(list(gallery.files.glob("*.ivf"))) == 1
    assert list(find_faults(gallery)) == []
    gallery.drop("doors")  # its removals are in the tombstones only
    Maintenance(gallery, LIMITS).run()
    assert list(find_faults(gallery)) == []


DAMAGES: list[tuple[Callable[[EmbeddedGallery], None], list[str]]] = [
    (flip("*.seg", -1), ["doors: .*seg changed in the chunk at byte 0"]),
    (flip("*.seg", 20), ["doors: .*seg has no valid segment header"]),
    (flip("*.ivf", -1), ["doors: .*ivf is damaged"]),
    (delete("*.seg"), ["doors: .*seg: .*No such file"]),
    (delete("*.ivf"), ["doors: .*ivf: .*No such file"]),
    (orphan, ["1-0.seg is not referenced by the ledger"]),
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
        ["ledger: 1 faces are in another collection than their subject", "ledger: 2 collections have a wrong count"],
    ),
    (
        sql("UPDATE collections SET subjects = subjects - 1 WHERE id = 1"),
        ["ledger: 1 collections have a wrong count of subjects or faces"],
    ),
    (
        sql("INSERT INTO vectors VALUES (900, zeroblob(16))"),
        ["ledger: row 900 of vectors refers to a missing row of faces"],
    ),
    (sql("UPDATE subjects SET metadata = '{' WHERE id < 3"), ["ledger: 2 rows of subjects contain invalid JSON"]),
    (sql("UPDATE faces SET details = '{' WHERE id = 4"), ["ledger: 1 rows of faces contain invalid JSON"]),
    (
        sql("UPDATE collections SET settings = '{' WHERE id = 2"),
        ["ledger: 1 rows of collections contain invalid JSON"],
    ),
    (
        sql("DELETE FROM faces WHERE id = 5; DELETE FROM vectors WHERE face_id = 5"),
        [
            "doors: .*seg contains 1 faces that the ledger does not have, the first is 5",
            "doors: .*ivf contains 1 faces that the ledger does not have, the first is 5",
        ],
    ),
    (
        sql("UPDATE segments SET first_face = 2 WHERE first_face != 1 AND last_face < 20"),
        ["doors: .*seg and .*seg overlap", "doors: .*seg lacks"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces[1:], rows.subjects[1:], rows.vectors[1:])),
        ["doors: .*seg lacks 1 faces, the first is 1"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces[::-1], rows.subjects[::-1], rows.vectors[::-1])),
        ["doors: .*seg contains faces twice, or not in ascending order"],
    ),
    (
        other_segment(lambda rows: FaceVectors(rows.faces, rows.subjects, rows.vectors[:, :3])),
        ["doors: .*seg has vectors of 3 numbers"],
    ),
    (
        other_index,
        [
            "doors: .*ivf contains faces twice",
            "doors: .*ivf contains 2 faces that the ledger does not have, the first is 900",
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
        [],  # after the last tombstone, whose line is not written yet
    ),
    (lambda gallery: gallery.tombstones.path.unlink(), ["tombstones is missing"]),
    (
        tombstone_lines(lambda lines: [lines[0], lines[1], b"2" + lines[2][1:], lines[3]]),
        [],
    ),
    (tombstone_lines(lambda lines: [lines[0], lines[1], b"9" + lines[2][1:], lines[3]]), ["tombstones: line 3"]),
    (tombstone_lines(lambda lines: [lines[0], lines[1], lines[3]]), ["tombstones differs from the ledger's"]),
    (sql("DELETE FROM removals WHERE seq = 2"), [".*seg contains 1", ".*ivf contains 1", "tombstones differs"]),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_damage_is_found(
    gallery: EmbeddedGallery, damage: Callable[[EmbeddedGallery], None], expected: list[str]
) -> None:
    damage(gallery)
    faults = list(find_faults(gallery))
    assert len(faults) == len(expected), faults
    for fault, pattern in zip(faults, expected, strict=True):
        assert re.search(pattern, fault), (pattern, fault)


def test_restored_rows_of_erased_subjects_and_collections_are_found(gallery: EmbeddedGallery) -> None:
    gallery.remove_subject("doors", "p0")
    gallery.drop("empty")
    assert list(find_faults(gallery)) == []
    sql("INSERT INTO subjects VALUES (1, 1, 'p0', 'Zoë', '{}', 0, NULL, NULL)")(gallery)
    sql("INSERT INTO collections VALUES (2, 'empty', 'e', 'f', 4, '{}', 0, 0, 0, 0, 0, 0, 0)")(gallery)
    assert [fault[:26] for fault in find_faults(gallery)] == ["2 erasures were not made i"]


def test_rows_are_read_in_pages(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "ROWS_PER_READ", 2)
    monkeypatch.setattr(verify, "VECTORS_PER_CHECK", 10)
    gallery.remove_subject("doors", "p0")
    assert list(find_faults(gallery)) == []


def test_a_damaged_page_of_the_ledger_is_found(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    for name in ("faces_by_subject", "subjects"):
        assert gallery.ledger.scrub()
        root = gallery.ledger.reader().execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).get
        gallery.close()
        path = tmp_path / "ledger.db"
        content = bytearray(path.read_bytes())
        content[(root - 1) * 4096] ^= 0xFF  # the type of the page
        path.write_bytes(content)
        gallery = EmbeddedGallery(tmp_path)
        faults = list(find_faults(gallery))
        gallery.close()
        content[(root - 1) * 4096] ^= 0xFF
        path.write_bytes(content)
        gallery = EmbeddedGallery(tmp_path)
        assert faults
        assert faults[0].startswith("ledger: ")
    assert list(find_faults(gallery)) == []
    gallery.close()


def test_new_files_of_a_running_maintenance_are_no_faults(gallery: EmbeddedGallery) -> None:
    orphan(gallery)
    gallery.ledger.write(lambda db: lease_records.take(db, "maintenance", "x", gallery.clock(), 60.0))
    assert list(find_faults(gallery)) == []
    soon = time.time() + 30  # the clock of another machine may be ahead
    os.utime(gallery.files / "1-0.seg", (soon, soon))
    assert list(find_faults(gallery)) == []
    for modified_at in (1.0, time.time() + 3600):
        os.utime(gallery.files / "1-0.seg", (modified_at, modified_at))
        assert list(find_faults(gallery)) == ["1-0.seg is not referenced by the ledger"]


def test_files_that_are_replaced_meanwhile_are_no_faults(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify._vector_faults

    def check_and_rebuild(*arguments: object) -> Iterator[str]:
        yield from real(*arguments)  # type: ignore[arg-type]
        maintenance = Maintenance(gallery, LIMITS)
        maintenance.rebuild(gallery.collections())
        maintenance.release()

    monkeypatch.setattr(verify, "_vector_faults", check_and_rebuild)
    before = set(gallery.files.iterdir())
    assert list(find_faults(gallery)) == []
    assert not before & set(gallery.files.iterdir())
