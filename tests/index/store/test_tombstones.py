"""What was erased is written down beside the ledger: whole, once, by whoever comes first, whatever a crash left."""

from __future__ import annotations

import os
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, tombstones
from index.embedded.store.erasure_records import Removal
from index.embedded.store.migrations import STEPS, migrate
from index.embedded.store.tombstones import Tombstones
from index.embedded.tasks.compaction import Maintenance
from index.errors import CorruptError, GalleryError, TooNewError
from tests.index.people import enrol


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[EmbeddedGallery]:
    made = EmbeddedGallery(tmp_path)
    made.create("doors", "face-embedder", "f1", 4)
    yield made
    made.close()


def told(gallery: EmbeddedGallery) -> list[Removal]:
    read = gallery.tombstones.read()
    assert read is not None
    with gallery.ledger.snapshot() as db:
        assert read[0] == collection_records.gallery_id(db)
    return list(read[1])


def known(gallery: EmbeddedGallery) -> list[Removal]:
    return erasure_records.removals(gallery.ledger.reader(), 0)


def test_every_kind_of_erasure_is_written_down_before_it_is_acknowledged(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 10)
    gallery.remove_faces("doors", [faces[0].token, faces[5].token])
    assert [(r.collection_id, r.subject_id, r.face_id) for r in told(gallery)] == [(1, 0, 1), (1, 0, 6)]
    gallery.remove_subject("doors", faces[1].subject)
    assert [(r.collection_id, r.subject_id, r.face_id) for r in told(gallery)[2:]] == [(1, 0, 2), (1, 0, 7), (1, 2, 0)]
    gallery.clock = lambda: 0.0
    gallery.put_subject("doors", faces[2].subject, expires_at=1.0)
    gallery.clock = time.time
    maintenance = Maintenance(gallery)
    maintenance.run()
    assert [(r.collection_id, r.subject_id, r.face_id) for r in told(gallery)[5:]] == [(1, 0, 3), (1, 0, 8), (1, 3, 0)]
    gallery.drop("doors")
    assert [(r.collection_id, r.subject_id, r.face_id) for r in told(gallery)[8:]] == [(1, 0, 0)]
    numbers = [r.seq for r in told(gallery)]
    assert numbers == sorted(set(numbers))


def test_the_file_has_no_name_and_is_as_version_1_is(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 2)
    gallery.put_subject("doors", faces[0].subject, name="Zoë")
    gallery.remove_subject("doors", faces[0].subject)
    identity = collection_records.gallery_id(gallery.ledger.reader())
    lines = [f"vestibule-tombstones 1 {identity}", "1 1 0 1", "2 1 1 0"]
    expected = "".join(f"{line} {zlib.crc32(line.encode()):08x}\n" for line in lines)
    assert gallery.tombstones.path.read_text() == expected


def test_what_a_crash_kept_out_is_written_down_when_it_is_opened(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    enrol(gallery, "doors", 3)
    found = gallery.collection("doors")
    gallery.ledger.write(
        lambda db: erasure_records.remove_faces(db, found.id, [1], subjects=0, now=0.0)
    )  # and it died here
    assert told(gallery) == []
    again = EmbeddedGallery(tmp_path)
    assert told(again) == known(again) != []
    again.close()


def test_what_fails_to_be_written_down_is_not_acknowledged(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = enrol(gallery, "doors", 2)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            gallery.remove_faces("doors", [faces[0].token])
    gallery.remove_faces("doors", [faces[1].token])
    assert told(gallery) == known(gallery)
    assert len(told(gallery)) == 2


@pytest.mark.parametrize("left", [b"3", b"3 1 0 3 12345678", b"3 1 0 3 12345678\n", b"\0" * 300, b"\xff\n\n"])
def test_incomplete_lines_at_the_end_are_written_again(gallery: EmbeddedGallery, left: bytes) -> None:
    faces = enrol(gallery, "doors", 4)
    gallery.remove_faces("doors", [face.token for face in faces[:2]])
    with gallery.tombstones.path.open("ab") as file:
        file.write(left)
    assert [removal.face_id for removal in told(gallery)] == [1, 2]
    gallery.remove_faces("doors", [faces[2].token])
    assert [removal.face_id for removal in told(gallery)] == [1, 2, 3]
    assert len(gallery.tombstones.path.read_bytes().splitlines()) == 4


@pytest.mark.parametrize("length", [0, 1, 30])
def test_a_first_line_that_was_not_finished_is_written_again(gallery: EmbeddedGallery, length: int) -> None:
    faces = enrol(gallery, "doors", 2)
    gallery.remove_faces("doors", [faces[0].token])
    os.truncate(gallery.tombstones.path, length)
    gallery.write_tombstones()
    assert told(gallery) == known(gallery) != []


def test_every_changed_byte_is_noticed(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 3)
    gallery.remove_faces("doors", [face.token for face in faces])
    whole = gallery.tombstones.path.read_bytes()
    expected = told(gallery)
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        gallery.tombstones.path.write_bytes(changed)
        if place < last - 1:
            with pytest.raises((CorruptError, TooNewError)):
                told(gallery)
        else:  # the end is not told from one that was not finished; the ledger has it
            assert told(gallery) in (expected[:-1], expected[:-2])
            gallery.write_tombstones()
            assert gallery.tombstones.path.read_bytes() == whole


def test_lines_in_another_order_are_noticed(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 3)
    gallery.remove_faces("doors", [face.token for face in faces])
    lines = gallery.tombstones.path.read_bytes().splitlines(keepends=True)
    gallery.tombstones.path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(CorruptError, match="line 3"):
        told(gallery)


def test_a_long_file_is_gone_on_with_from_its_end(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "BATCH_LINES", 4)
    monkeypatch.setattr(tombstones, "_TAIL_BYTES", 6 * tombstones._MAX_LINE_BYTES)
    faces = enrol(gallery, "doors", 120)
    for start in range(0, 120, 10):
        gallery.remove_faces("doors", [face.token for face in faces[start : start + 10]])
    assert [removal.face_id for removal in told(gallery)] == list(range(1, 121))
    whole = gallery.tombstones.path.read_bytes()
    gallery.tombstones.path.write_bytes(whole[:-1000] + b"\n" * 1000)
    with pytest.raises(CorruptError, match="the end of"):
        gallery.write_tombstones()


def test_threads_that_erase_at_once_write_each_removal_once(gallery: EmbeddedGallery, tmp_path: Path) -> None:
    faces = enrol(gallery, "doors", 40)
    other = EmbeddedGallery(tmp_path)

    def erase(number: int) -> None:
        for face in faces[number::4]:
            (gallery, other)[number % 2].remove_faces("doors", [face.token])

    threads = [threading.Thread(target=erase, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert told(gallery) == known(gallery)
    assert sorted(removal.face_id for removal in told(gallery)) == list(range(1, 41))


def test_a_lost_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    EmbeddedGallery(tmp_path).close()
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(GalleryError, match="lost"):
        EmbeddedGallery(tmp_path)
    assert not (tmp_path / "ledger.db").exists()


def test_a_ledger_older_than_what_was_erased_is_refused(tmp_path: Path) -> None:
    gallery = EmbeddedGallery(tmp_path)
    gallery.create("doors", "e", "f1", 4)
    faces = enrol(gallery, "doors", 2)
    gallery.ledger.scrub()
    old = (tmp_path / "ledger.db").read_bytes()
    gallery.close()
    gallery = EmbeddedGallery(tmp_path)
    gallery.remove_faces("doors", [faces[0].token])
    gallery.close()
    (tmp_path / "ledger.db").write_bytes(old)
    with pytest.raises(CorruptError, match="older"):
        EmbeddedGallery(tmp_path)


def test_another_gallerys_ledger_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        EmbeddedGallery(tmp_path / name).close()
    (tmp_path / "a" / "ledger.db").replace(tmp_path / "b" / "ledger.db")
    with pytest.raises(CorruptError, match="another gallery"):
        EmbeddedGallery(tmp_path / "b")


def test_a_later_versions_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "VERSION", 2)
    EmbeddedGallery(tmp_path).close()
    monkeypatch.undo()
    with pytest.raises(TooNewError, match="version 2"):
        EmbeddedGallery(tmp_path)
    assert Tombstones(tmp_path / "none").read() is None


def test_a_ledger_of_version_1_keeps_what_it_has(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / "ledger.db"))
    migrate(connection, STEPS[:1])
    connection.execute("INSERT INTO removals (collection_id, face_id) VALUES (1, 7)")
    connection.close()
    gallery = EmbeddedGallery(tmp_path)
    assert told(gallery) == [Removal(1, 1, 0, 7)]
    assert len(collection_records.gallery_id(gallery.ledger.reader())) == 32
    gallery.close()
