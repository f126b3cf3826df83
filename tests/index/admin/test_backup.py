"""A backup is whole or refused, and what was erased after it stays erased."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import apsw
import pytest

from index.embedded.admin import backup
from index.embedded.admin.backup import Manifest, back_up, restore
from index.embedded.admin.verify import faults
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import erasure_records, face_records, folder_lock
from index.embedded.tasks.compaction import Limits, Maintenance
from index.errors import ConflictError, CorruptError, GalleryError, NotFoundError, TooNewError
from index.types import NewFace
from tests.index.people import enrol, folder_bytes, vectors

LIMITS = Limits(segment=8, exact_below=16, growth=2.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed gallery of 20 faces of five people, with segments and an inverted file, and a collection more."""
    gallery = EmbeddedGallery(tmp_path / "gallery")
    gallery.create("doors", "face-embedder", "f1", 4)
    gallery.create("trains", "face-embedder", "f1", 4)
    enrol(gallery, "doors", 20)
    enrol(gallery, "trains", 5, seed=1)
    gallery.put_subject("doors", "p4", name="Ferdinandea Isabella")
    maintenance = Maintenance(gallery, LIMITS)
    maintenance.run()
    maintenance.release()
    gallery.close()
    return tmp_path / "gallery"


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    gallery = EmbeddedGallery(folder)
    back_up(gallery, tmp_path / "backup")
    gallery.close()
    return tmp_path / "backup"


def tokens(folder: Path, collection: str = "doors") -> set[str]:
    gallery = EmbeddedGallery(folder)
    try:
        return {face.token for one in gallery.subjects(collection) for face in gallery.faces(collection, one.key)}
    finally:
        gallery.close()


def sound(folder: Path) -> None:
    """All is as written, now and after the cache was made anew."""
    gallery = EmbeddedGallery(folder)
    assert list(faults(gallery)) == []
    Maintenance(gallery, LIMITS).run()
    assert list(faults(gallery)) == []
    gallery.close()


def test_a_backup_is_the_ledger_and_a_manifest(folder: Path, tmp_path: Path) -> None:
    gallery = EmbeddedGallery(folder, clock=lambda: 5000.0)
    gallery.remove_faces("trains", [gallery.faces("trains", "p0")[0].token])
    made = back_up(gallery, tmp_path / "new" / "backup")
    gallery.close()
    assert sorted(path.name for path in (tmp_path / "new" / "backup").iterdir()) == ["ledger.db", "manifest.json"]
    expected = Manifest(1, made.gallery, 5000.0, 1, 2, 10, 24, made.sha256)
    assert made == expected
    assert json.loads((tmp_path / "new" / "backup" / "manifest.json").read_text())["faces"] == 24
    assert (tmp_path / "new" / "backup").stat().st_mode & 0o077 == 0


def test_what_was_lost_comes_back(folder: Path, saved: Path) -> None:
    before = tokens(folder)
    gallery = EmbeddedGallery(folder)
    enrol(gallery, "doors", 3, seed=7)
    gallery.close()
    done = restore(folder, saved)
    assert (done.erased_collections, done.erased_subjects, done.erased_faces, done.remembered) == (0, 0, 0, True)
    assert tokens(folder) == before
    sound(folder)


def test_who_was_erased_does_not_come_back(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    (face, *_) = gallery.faces("doors", "p0")
    gallery.remove_faces("doors", [face.token])
    gallery.remove_subject("doors", "p4")
    gallery.clock = lambda: 0.0
    gallery.put_subject("doors", "p3", expires_at=1.0)
    gallery.clock = time.time
    gallery.drop("trains")
    Maintenance(gallery, LIMITS).run()
    expected = {face.token for one in gallery.subjects("doors") for face in gallery.faces("doors", one.key)}
    gallery.close()
    done = restore(folder, saved)
    assert (done.erased_collections, done.erased_subjects, done.erased_faces) == (1, 2 + 5, 1 + 4 + 4 + 5)
    assert tokens(folder) == expected
    gallery = EmbeddedGallery(folder)
    assert [collection.name for collection in gallery.collections()] == ["doors"]
    for key in ("p3", "p4"):
        with pytest.raises(NotFoundError):
            gallery.subject("doors", key)
    erased = [vectors(20)[0], *vectors(20)[3::5], *vectors(20)[4::5], *vectors(5, seed=1)]
    found = gallery.search("doors", vectors(20)[:1], k=5)
    assert face.token not in {match.face for match in found[0]}
    gallery.close()
    content = folder_bytes(folder)
    assert b"Ferdinandea" not in content
    assert not [vector for vector in erased if vector.tobytes() in content]
    assert vectors(20)[1].tobytes() in content
    sound(folder)


@pytest.mark.parametrize("lost", ["deleted", "damaged", "damaged with its log"])
def test_nor_where_the_ledger_is_lost(folder: Path, saved: Path, lost: str) -> None:
    gallery = EmbeddedGallery(folder)
    gallery.remove_subject("doors", "p0")
    gallery.close()
    if lost == "deleted":
        (folder / "ledger.db").unlink()
    else:
        (folder / "ledger.db").write_bytes(b"nonsense" * 1000)
        if lost == "damaged with its log":
            (folder / "ledger.db-wal").write_bytes(b"nonsense" * 1000)
    assert restore(folder, saved).erased_faces == 4
    assert len(tokens(folder)) == 16
    sound(folder)


def test_an_erasure_that_was_durable_but_not_written_down_counts(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    gallery.ledger.write(lambda db: erasure_records.remove_faces(db, 1, [1], subjects=0, now=0.0))  # and it died here
    gallery.close()
    assert restore(folder, saved).erased_faces == 1


def test_who_has_expired_but_was_not_erased_yet_does_not_come_back(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder, clock=lambda: 0.0)
    gallery.put_subject("doors", "p0", expires_at=1000.0)
    gallery.put_subject("doors", "p1", expires_at=1001.0)
    gallery.close()
    done = restore(folder, saved, clock=lambda: 1000.0)
    assert (done.erased_subjects, done.erased_faces) == (1, 4)
    gallery = EmbeddedGallery(folder, clock=lambda: 1000.0)
    assert [one.key for one in gallery.subjects("doors")] == ["p1", "p2", "p3", "p4"]
    gallery.close()


def test_without_tombstones_it_says_that_it_knows_of_no_erasure(folder: Path, saved: Path, tmp_path: Path) -> None:
    done = restore(tmp_path / "elsewhere", saved)
    assert not done.remembered
    assert tokens(tmp_path / "elsewhere") == tokens(folder)
    sound(tmp_path / "elsewhere")


def test_new_faces_are_not_taken_for_those_erased_before(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    lost = enrol(gallery, "doors", 10, seed=2)
    gallery.remove_faces("doors", [face.token for face in lost])
    gallery.close()
    restore(folder, saved, gap=lambda: 1)
    gallery = EmbeddedGallery(folder)
    new = enrol(gallery, "doors", 10, seed=3)
    assert min(face.id for face in new) > max(face.id for face in lost)
    back_up(gallery, saved.with_name("second"))
    gallery.close()
    assert restore(folder, saved.with_name("second")).erased_faces == 0
    assert {face.token for face in new} <= tokens(folder)
    sound(folder)


def test_what_two_ledgers_of_one_gallery_erased_is_remembered(folder: Path, saved: Path) -> None:
    """Back to the first backup and on from there, then to a second one that was made before."""
    gallery = EmbeddedGallery(folder)
    gallery.remove_subject("doors", "p0")
    back_up(gallery, saved.with_name("second"))
    gallery.close()
    (folder / "tombstones").unlink()
    (folder / "ledger.db").unlink()
    assert not restore(folder, saved).remembered
    gallery = EmbeddedGallery(folder)
    gallery.remove_subject("doors", "p1")
    gallery.close()
    assert restore(folder, saved.with_name("second")).erased_faces == 4
    assert len(tokens(folder)) == 12
    assert restore(folder, saved).erased_faces == 8
    sound(folder)


@pytest.mark.parametrize("file", ["ledger.db", "manifest.json"])
def test_a_damaged_backup_is_refused(folder: Path, saved: Path, file: str) -> None:
    whole, before = (saved / file).read_bytes(), folder_bytes(folder)
    step = max(1, len(whole) // 60)
    for place in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        (saved / file).write_bytes(changed)
        with pytest.raises((CorruptError, TooNewError)):
            restore(folder, saved)
    (saved / file).write_bytes(whole[:-1])
    with pytest.raises(CorruptError):
        restore(folder, saved)
    (saved / file).unlink()
    with pytest.raises(CorruptError, match="missing"):
        restore(folder, saved)
    assert folder_bytes(folder) == before


def test_a_folder_that_is_no_backup_is_refused(folder: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="no backup"):
        restore(folder, tmp_path / "none")
    (saved / "manifest.json").write_text("[]")
    with pytest.raises(CorruptError, match="not what was written"):
        restore(folder, saved)
    (saved / "manifest.json").write_text('{"version": 2}')
    with pytest.raises(TooNewError, match="version 2"):
        restore(folder, saved)


def test_damaged_tombstones_leave_all_as_it_is(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    gallery.remove_subject("doors", "p0")
    gallery.close()
    content = (folder / "tombstones").read_bytes().replace(b"\n1 1", b"\n1 2")
    (folder / "tombstones").write_bytes(content)
    (folder / "ledger.db").unlink()
    before = folder_bytes(folder)
    with pytest.raises(CorruptError, match="line 2"):
        restore(folder, saved)
    assert folder_bytes(folder) == before


def test_a_gallery_in_use_is_refused(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    with pytest.raises(GalleryError, match="in use"):
        restore(folder, saved)
    gallery.close()
    with folder_lock.lock(folder, exclusive=True), pytest.raises(GalleryError, match="being restored"):
        EmbeddedGallery(folder)
    assert len(tokens(folder)) == 20


def test_another_gallery_is_refused_unless_it_is_empty(saved: Path, tmp_path: Path) -> None:
    gallery = EmbeddedGallery(tmp_path / "other")
    gallery.close()
    assert not restore(tmp_path / "other", saved).remembered
    gallery = EmbeddedGallery(tmp_path / "third")
    gallery.create("x", "e", "f", 2)
    gallery.close()
    with pytest.raises(ConflictError, match="another gallery"):
        restore(tmp_path / "third", saved)
    gallery = EmbeddedGallery(tmp_path / "third")
    gallery.drop("x")
    gallery.close()
    (tmp_path / "third" / "ledger.db").unlink()
    with pytest.raises(ConflictError, match="another gallery"):
        restore(tmp_path / "third", saved)


def test_a_restore_that_died_leaves_the_ledger_and_is_tidied_up(
    folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tokens(folder)
    with monkeypatch.context() as patched:
        patched.setattr(backup, "_swap", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            restore(folder, saved)
    assert not list(folder.glob("*restoring*"))
    for suffix in ("", "-wal"):
        (folder / f"ledger.db.restoring{suffix}").write_bytes(b"left by a kill")
    assert tokens(folder) == before
    assert not list(folder.glob("*restoring*"))
    restore(folder, saved)
    sound(folder)


def test_a_backup_replaces_nothing(folder: Path, saved: Path) -> None:
    gallery = EmbeddedGallery(folder)
    for there in (saved, folder):
        with pytest.raises(GalleryError, match="not empty"):
            back_up(gallery, there)
    gallery.close()
    assert len(tokens(folder)) == 20


def test_a_damaged_ledger_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    content = bytearray((folder / "ledger.db").read_bytes())
    connection = apsw.Connection(str(folder / "ledger.db"))
    root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'faces_by_subject'").get
    connection.close()
    content[root * 4096 - 1] ^= 0x01  # in the index: the last id of a row
    (folder / "ledger.db").write_bytes(content)
    gallery = EmbeddedGallery(folder)
    with pytest.raises(CorruptError, match="damaged"):
        back_up(gallery, tmp_path / "backup")
    gallery.close()
    assert list((tmp_path / "backup").iterdir()) == []


def test_a_backup_is_of_one_commit_while_others_write(folder: Path, tmp_path: Path) -> None:
    """Pairs of faces are enrolled in one transaction: no backup may have one without the other."""
    gallery, other = EmbeddedGallery(folder), EmbeddedGallery(folder)
    for number in range(5):
        made = [other.ledger.submit(partial(pair, number=n)) for n in range(number * 20, number * 20 + 20)]
        back_up(gallery, tmp_path / f"backup-{number}")
        for future in made:
            future.result()
    gallery.close()
    other.close()
    for number in range(5):
        restore(tmp_path / f"restored-{number}", tmp_path / f"backup-{number}")
        restored = EmbeddedGallery(tmp_path / f"restored-{number}")
        assert {one.faces for one in restored.subjects("doors", after="pair", limit=1000) if one.key > "pair"} <= {2}
        restored.close()


class Crowd:
    """Enrols and erases in two threads, and knows what was acknowledged of it."""

    def __init__(self, gallery: EmbeddedGallery, there: set[str]):
        self._gallery, self._stop = gallery, threading.Event()
        self.enrolled, self.erased = there, set[str]()
        self._threads = ThreadPoolExecutor(2)
        self._work = [self._threads.submit(self._enrol), self._threads.submit(self._erase)]

    def work_until(self, seen: Callable[[], object]) -> None:
        while not seen() and not any(one.done() for one in self._work):
            time.sleep(0.005)

    def end(self) -> None:
        self._stop.set()
        for one in self._work:
            one.result()
        self._threads.shutdown()

    def _enrol(self) -> None:
        for seed in itertools.takewhile(lambda _: not self._stop.wait(0.001), itertools.count(100)):
            self.enrolled.update(face.token for face in enrol(self._gallery, "doors", 3, seed))

    def _erase(self) -> None:
        while not self._stop.wait(0.001):
            token = next(iter(self.enrolled.copy() - self.erased))
            self._gallery.remove_faces("doors", [token])
            self.erased.add(token)


def test_a_backup_among_enrolments_and_erasures_keeps_its_word(folder: Path, tmp_path: Path) -> None:
    """What was acknowledged before it began is there, and what was erased is gone: before it, during it, or after."""
    gallery = EmbeddedGallery(folder)
    crowd = Crowd(gallery, tokens(folder))
    crowd.work_until(lambda: len(crowd.enrolled) > 30 and crowd.erased)
    before, gone = crowd.enrolled.copy(), crowd.erased.copy()
    back_up(gallery, tmp_path / "backup")
    crowd.work_until(lambda: before & (crowd.erased - gone))
    crowd.end()
    gallery.close()
    assert before - crowd.erased
    restore(tmp_path / "elsewhere", tmp_path / "backup")  # where nothing tells of what was erased later
    assert before - crowd.erased <= tokens(tmp_path / "elsewhere") <= crowd.enrolled - gone
    restore(folder, tmp_path / "backup")
    assert before - crowd.erased <= tokens(folder) <= crowd.enrolled - crowd.erased
    sound(folder)


def pair(db: apsw.Connection, number: int) -> None:
    faces = [NewFace(f"pair-{number}", vector) for vector in vectors(2, seed=number)]
    face_records.insert(db, 1, faces, 0.0)
