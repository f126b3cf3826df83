"""A backup is whole or refused, and what was erased after it stays erased."""

from __future__ import annotations

import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import apsw
import pytest

from index.embedded.admin import backup
from index.embedded.admin.backup import BackupManifest, back_up, restore
from index.embedded.admin.verify import find_faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import erasure_records, face_records
from index.embedded.store.atomic_files import lock_folder
from index.embedded.tasks.maintenance import Maintenance
from index.errors import ConflictError, CorruptError, GalleryError, NotFoundError, TooNewError
from index.types import NewFace
from tests.index.people import LIMITS, enrol, folder_bytes, maintain, vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed gallery: 20 faces of five subjects with segments and an inverted file, and a second collection."""
    with closing(EmbeddedGallery(tmp_path / "gallery")) as gallery:
        gallery.create("doors", "face-embedder", "f1", 4)
        gallery.create("trains", "face-embedder", "f1", 4)
        enrol(gallery, "doors", 20)
        enrol(gallery, "trains", 5, seed=1)
        gallery.put_subject("doors", "p4", name="Ferdinandea Isabella")
        maintain(gallery)
    return tmp_path / "gallery"


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    with closing(EmbeddedGallery(folder)) as gallery:
        back_up(gallery, tmp_path / "backup")
    return tmp_path / "backup"


def tokens(folder: Path, collection: str = "doors") -> set[str]:
    with closing(EmbeddedGallery(folder)) as gallery:
        return {face.token for s in gallery.subjects(collection) for face in gallery.faces(collection, s.key)}


def assert_sound(folder: Path) -> None:
    """Check that the gallery has no faults, before and after all files are rebuilt."""
    with closing(EmbeddedGallery(folder)) as gallery:
        assert list(find_faults(gallery)) == []
        Maintenance(gallery, LIMITS).run()
        assert list(find_faults(gallery)) == []


def test_a_backup_is_the_ledger_and_a_manifest(folder: Path, tmp_path: Path) -> None:
    with closing(EmbeddedGallery(folder, clock=lambda: 5000.0)) as gallery:
        gallery.remove_faces("trains", [gallery.faces("trains", "p0")[0].token])
        manifest = back_up(gallery, tmp_path / "new" / "backup")
    assert sorted(path.name for path in (tmp_path / "new" / "backup").iterdir()) == ["ledger.db", "manifest.json"]
    assert manifest == BackupManifest(1, manifest.gallery, 5000.0, 1, 2, 10, 24, manifest.sha256)
    assert json.loads((tmp_path / "new" / "backup" / "manifest.json").read_text())["faces"] == 24
    assert (tmp_path / "new" / "backup").stat().st_mode & 0o077 == 0


def test_a_restore_brings_back_the_backup(folder: Path, saved: Path) -> None:
    before = tokens(folder)
    with closing(EmbeddedGallery(folder)) as gallery:
        enrol(gallery, "doors", 3, seed=7)
    done = restore(folder, saved)
    assert (done.erased_collections, done.erased_subjects, done.erased_faces, done.remembered) == (0, 0, 0, True)
    assert tokens(folder) == before
    assert_sound(folder)


def test_a_restore_repeats_erasures(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        (face, *_) = gallery.faces("doors", "p0")
        gallery.remove_faces("doors", [face.token])
        gallery.remove_subject("doors", "p4")
        gallery.clock = lambda: 0.0
        gallery.put_subject("doors", "p3", expires_at=1.0)
        gallery.clock = time.time
        gallery.drop("trains")
        Maintenance(gallery, LIMITS).run()
        expected = {face.token for s in gallery.subjects("doors") for face in gallery.faces("doors", s.key)}
    done = restore(folder, saved)
    assert (done.erased_collections, done.erased_subjects, done.erased_faces) == (1, 2 + 5, 1 + 4 + 4 + 5)
    assert tokens(folder) == expected
    with closing(EmbeddedGallery(folder)) as gallery:
        assert [collection.name for collection in gallery.collections()] == ["doors"]
        for key in ("p3", "p4"):
            with pytest.raises(NotFoundError):
                gallery.subject("doors", key)
        erased = [vectors(20)[0], *vectors(20)[3::5], *vectors(20)[4::5], *vectors(5, seed=1)]
        (matches,) = gallery.nearest_subjects("doors", vectors(20)[:1], k=5)
        assert face.token not in {match.face for match in matches}
    content = folder_bytes(folder)
    assert b"Ferdinandea" not in content
    assert not [vector for vector in erased if vector.tobytes() in content]
    assert vectors(20)[1].tobytes() in content
    assert_sound(folder)


@pytest.mark.parametrize("lost", ["deleted", "damaged", "damaged with its log"])
def test_a_restore_repeats_erasures_of_a_lost_ledger(folder: Path, saved: Path, lost: str) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.remove_subject("doors", "p0")
    if lost == "deleted":
        (folder / "ledger.db").unlink()
    else:
        (folder / "ledger.db").write_bytes(b"nonsense" * 1000)
        if lost == "damaged with its log":
            (folder / "ledger.db-wal").write_bytes(b"nonsense" * 1000)
    assert restore(folder, saved).erased_faces == 4
    assert len(tokens(folder)) == 16
    assert_sound(folder)


def test_a_restore_repeats_erasures_without_a_tombstone(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.ledger.write(lambda db: erasure_records.remove_faces(db, 1, [1], subjects=0, now=0.0))  # then it dies
    assert restore(folder, saved).erased_faces == 1


def test_a_restore_erases_subjects_that_expired(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder, clock=lambda: 0.0)) as gallery:
        gallery.put_subject("doors", "p0", expires_at=1000.0)
        gallery.put_subject("doors", "p1", expires_at=1001.0)
    done = restore(folder, saved, clock=lambda: 1000.0)
    assert (done.erased_subjects, done.erased_faces) == (1, 4)
    with closing(EmbeddedGallery(folder, clock=lambda: 1000.0)) as gallery:
        assert [subject.key for subject in gallery.subjects("doors")] == ["p1", "p2", "p3", "p4"]


def test_a_restore_without_tombstones_reports_that(folder: Path, saved: Path, tmp_path: Path) -> None:
    done = restore(tmp_path / "elsewhere", saved)
    assert not done.remembered
    assert tokens(tmp_path / "elsewhere") == tokens(folder)
    assert_sound(tmp_path / "elsewhere")


def test_new_faces_get_no_id_of_an_erased_face(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        lost = enrol(gallery, "doors", 10, seed=2)
        gallery.remove_faces("doors", [face.token for face in lost])
    restore(folder, saved, gap=lambda: 1)
    with closing(EmbeddedGallery(folder)) as gallery:
        new = enrol(gallery, "doors", 10, seed=3)
        assert min(face.id for face in new) > max(face.id for face in lost)
        back_up(gallery, saved.with_name("second"))
    assert restore(folder, saved.with_name("second")).erased_faces == 0
    assert {face.token for face in new} <= tokens(folder)
    assert_sound(folder)


def test_tombstones_of_several_restores_are_kept(folder: Path, saved: Path) -> None:
    """Restore the first backup without tombstones, erase, then restore a second backup that is older than that."""
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.remove_subject("doors", "p0")
        back_up(gallery, saved.with_name("second"))
    (folder / "tombstones").unlink()
    (folder / "ledger.db").unlink()
    assert not restore(folder, saved).remembered
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.remove_subject("doors", "p1")
    assert restore(folder, saved.with_name("second")).erased_faces == 4
    assert len(tokens(folder)) == 12
    assert restore(folder, saved).erased_faces == 8
    assert_sound(folder)


@pytest.mark.parametrize("file", ["ledger.db", "manifest.json"])
def test_a_damaged_backup_is_refused(folder: Path, saved: Path, file: str) -> None:
    content, before = (saved / file).read_bytes(), folder_bytes(folder)
    for offset in range(0, len(content), max(1, len(content) // 60)):
        changed = content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :]
        (saved / file).write_bytes(changed)
        with pytest.raises((CorruptError, TooNewError)):
            restore(folder, saved)
    (saved / file).write_bytes(content[:-1])
    with pytest.raises(CorruptError):
        restore(folder, saved)
    (saved / file).unlink()
    with pytest.raises(CorruptError, match="missing"):
        restore(folder, saved)
    assert folder_bytes(folder) == before


def test_a_folder_that_is_no_backup_is_refused(folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="not a backup"):
        restore(folder, tmp_path / "none")
    (saved / "manifest.json").write_text("[]")
    with pytest.raises(CorruptError, match="is damaged"):
        restore(folder, saved)
    (saved / "manifest.json").write_text('{"version": 2}')
    with pytest.raises(TooNewError, match="version 2"):
        restore(folder, saved)


def test_damaged_tombstones_prevent_a_restore(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        gallery.remove_subject("doors", "p0")
    content = (folder / "tombstones").read_bytes().replace(b"\n1 1", b"\n1 2")
    (folder / "tombstones").write_bytes(content)
    (folder / "ledger.db").unlink()
    before = folder_bytes(folder)
    with pytest.raises(CorruptError, match="line 2"):
        restore(folder, saved)
    assert folder_bytes(folder) == before


def test_a_gallery_in_use_is_not_restored(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)), pytest.raises(GalleryError, match="in use"):
        restore(folder, saved)
    with lock_folder(folder, exclusive=True), pytest.raises(GalleryError, match="being restored"):
        EmbeddedGallery(folder)
    assert len(tokens(folder)) == 20


def test_another_gallery_is_not_replaced_unless_it_is_empty(saved: Path, tmp_path: Path) -> None:
    EmbeddedGallery(tmp_path / "other").close()
    assert not restore(tmp_path / "other", saved).remembered
    with closing(EmbeddedGallery(tmp_path / "third")) as gallery:
        gallery.create("x", "e", "f", 2)
    with pytest.raises(ConflictError, match="another gallery"):
        restore(tmp_path / "third", saved)
    with closing(EmbeddedGallery(tmp_path / "third")) as gallery:
        gallery.drop("x")
    (tmp_path / "third" / "ledger.db").unlink()
    with pytest.raises(ConflictError, match="another gallery"):
        restore(tmp_path / "third", saved)


def test_an_interrupted_restore_keeps_the_ledger_and_is_cleaned_up(
    folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokens(folder)
    with monkeypatch.context() as patched:
        patched.setattr(backup, "_replace_ledger", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            restore(folder, saved)
    assert not list(folder.glob("*restoring*"))
    for suffix in ("", "-wal"):
        (folder / f"ledger.db.restoring{suffix}").write_bytes(b"left by a kill")
    assert tokens(folder) == before
    assert not list(folder.glob("*restoring*"))
    restore(folder, saved)
    assert_sound(folder)


def test_a_backup_needs_an_empty_folder(folder: Path, saved: Path) -> None:
    with closing(EmbeddedGallery(folder)) as gallery:
        for occupied in (saved, folder):
            with pytest.raises(GalleryError, match="not empty"):
                back_up(gallery, occupied)
    assert len(tokens(folder)) == 20


def test_a_damaged_ledger_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "ledger.db").read_bytes())
    with closing(apsw.Connection(str(folder / "ledger.db"))) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'faces_by_subject'").get
    content[root * 4096 - 1] ^= 0x01  # in the index: the last id of a row
    (folder / "ledger.db").write_bytes(content)
    with closing(EmbeddedGallery(folder)) as gallery, pytest.raises(CorruptError, match="damaged"):
        back_up(gallery, tmp_path / "backup")
    assert list((tmp_path / "backup").iterdir()) == []


def test_a_backup_during_writes_is_of_one_commit(folder: Path, tmp_path: Path) -> None:
    """No backup contains one face only of a pair that one transaction enrolled."""
    gallery, other = EmbeddedGallery(folder), EmbeddedGallery(folder)
    for number in range(5):
        futures = [other.ledger.submit(partial(pair, number=n)) for n in range(number * 20, number * 20 + 20)]
        back_up(gallery, tmp_path / f"backup-{number}")
        for future in futures:
            future.result()
    gallery.close()
    other.close()
    for number in range(5):
        restore(tmp_path / f"restored-{number}", tmp_path / f"backup-{number}")
        restored = EmbeddedGallery(tmp_path / f"restored-{number}")
        assert {s.faces for s in restored.subjects("doors", after="pair", limit=1000) if s.key > "pair"} <= {2}
        restored.close()


def pair(db: apsw.Connection, number: int) -> None:
    faces = [NewFace(f"pair-{number}", vector) for vector in vectors(2, seed=number)]
    face_records.insert(db, 1, faces, 0.0)
