"""The file of erasures: complete, each removal once, whoever writes it and whatever a crash left."""

from __future__ import annotations

import os
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, tombstones
from index.embedded.store.erasure_records import Removal
from index.embedded.store.tombstones import Tombstones
from index.embedded.tasks.maintenance import Maintenance
from index.errors import CorruptError, DiskFullError, GalleryError, TooNewError
from tests.index.people import enrol


def in_file(gallery: EmbeddedGallery) -> list[Removal]:
    content = gallery.tombstones.read()
    assert content is not None
    gallery_id, removals = content
    assert gallery_id == collection_records.gallery_id(gallery.ledger.reader())
    return list(removals)


def in_ledger(gallery: EmbeddedGallery) -> list[Removal]:
    return erasure_records.removals(gallery.ledger.reader(), 0)


def erased(gallery: EmbeddedGallery, count: int, of: int) -> bytes:
    """Enrol `of` faces, erase the first `count`, and return the file."""
    faces = enrol(gallery, "doors", of)
    gallery.remove_faces("doors", [face.token for face in faces[:count]])
    return gallery.tombstones.path.read_bytes()


def test_every_erasure_is_in_the_file_before_it_is_acknowledged(gallery: EmbeddedGallery) -> None:
    def new() -> list[tuple[int, int, int]]:
        removals = in_file(gallery)[len(before) :]
        before.extend(removals)
        return [(removal.collection_id, removal.subject_id, removal.face_id) for removal in removals]

    before: list[Removal] = []
    faces = enrol(gallery, "doors", 10)
    gallery.remove_faces("doors", [faces[0].token, faces[5].token])
    assert new() == [(1, 0, 1), (1, 0, 6)]
    gallery.remove_subject("doors", faces[1].subject)
    assert new() == [(1, 0, 2), (1, 0, 7), (1, 2, 0)]
    gallery.clock = lambda: 0.0
    gallery.put_subject("doors", faces[2].subject, expires_at=1.0)
    gallery.clock = time.time
    Maintenance(gallery).run()
    assert new() == [(1, 0, 3), (1, 0, 8), (1, 3, 0)]
    gallery.drop("doors")
    assert new() == [(1, 0, 0)]
    numbers = [removal.seq for removal in before]
    assert numbers == sorted(set(numbers))


def test_the_file_has_the_format_of_version_1_and_no_names(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 2)
    gallery.put_subject("doors", faces[0].subject, name="Zoë")
    gallery.remove_subject("doors", faces[0].subject)
    gallery_id = collection_records.gallery_id(gallery.ledger.reader())
    lines = [f"vestibule-tombstones 1 {gallery_id}", "1 1 0 1", "2 1 1 0"]
    expected = "".join(f"{line} {zlib.crc32(line.encode()):08x}\n" for line in lines)
    assert gallery.tombstones.path.read_text() == expected


def test_removals_that_a_crash_kept_out_are_appended_when_the_gallery_is_opened(gallery: EmbeddedGallery) -> None:
    enrol(gallery, "doors", 3)
    number = gallery.collection("doors").id
    gallery.ledger.write(lambda db: erasure_records.remove_faces(db, number, [1], subjects=0, now=0.0))
    assert in_file(gallery) == []
    with closing(EmbeddedGallery(gallery.files.parent)) as again:
        assert in_file(again) == in_ledger(again) != []


def test_an_erasure_that_cannot_be_appended_is_not_acknowledged(
    gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = enrol(gallery, "doors", 2)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="No space"):
            gallery.remove_faces("doors", [faces[0].token])
    gallery.remove_faces("doors", [faces[1].token])
    assert in_file(gallery) == in_ledger(gallery)
    assert len(in_file(gallery)) == 2


@pytest.mark.parametrize("rest", [b"3", b"3 1 0 3 12345678", b"3 1 0 3 12345678\n", b"\0" * 300, b"\xff\n\n"])
def test_incomplete_lines_at_the_end_are_replaced(gallery: EmbeddedGallery, rest: bytes) -> None:
    faces = enrol(gallery, "doors", 4)
    gallery.remove_faces("doors", [face.token for face in faces[:2]])
    with gallery.tombstones.path.open("ab") as file:
        file.write(rest)
    assert [removal.face_id for removal in in_file(gallery)] == [1, 2]
    gallery.remove_faces("doors", [faces[2].token])
    assert [removal.face_id for removal in in_file(gallery)] == [1, 2, 3]
    assert len(gallery.tombstones.path.read_bytes().splitlines()) == 4


@pytest.mark.parametrize("length", [0, 1, 30])
def test_an_incomplete_first_line_is_replaced(gallery: EmbeddedGallery, length: int) -> None:
    erased(gallery, 1, of=2)
    os.truncate(gallery.tombstones.path, length)
    gallery.tombstones.append_new(gallery.ledger.reader())
    assert in_file(gallery) == in_ledger(gallery) != []


def test_every_changed_byte_is_detected(gallery: EmbeddedGallery) -> None:
    content = erased(gallery, 3, of=3)
    expected = in_file(gallery)
    last_line = content.rstrip(b"\n").rfind(b"\n") + 1
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        gallery.tombstones.path.write_bytes(changed)
        if place < last_line - 1:
            with pytest.raises((CorruptError, TooNewError)):
                in_file(gallery)
        else:  # a damaged end looks like an incomplete one; the ledger has those removals
            assert in_file(gallery) in (expected[:-1], expected[:-2])
            gallery.tombstones.append_new(gallery.ledger.reader())
            assert gallery.tombstones.path.read_bytes() == content


def test_lines_in_another_order_are_detected(gallery: EmbeddedGallery) -> None:
    lines = erased(gallery, 3, of=3).splitlines(keepends=True)
    gallery.tombstones.path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(CorruptError, match="line 3"):
        in_file(gallery)


def test_a_long_file_is_continued_from_its_end(gallery: EmbeddedGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "BATCH_LINES", 4)
    monkeypatch.setattr(tombstones, "_TAIL_BYTES", 6 * tombstones._MAX_LINE_BYTES)
    faces = enrol(gallery, "doors", 120)
    for start in range(0, 120, 10):
        gallery.remove_faces("doors", [face.token for face in faces[start : start + 10]])
    assert [removal.face_id for removal in in_file(gallery)] == list(range(1, 121))
    content = gallery.tombstones.path.read_bytes()
    gallery.tombstones.path.write_bytes(content[:-1000] + b"\n" * 1000)
    with pytest.raises(CorruptError, match="the end of"):
        gallery.tombstones.append_new(gallery.ledger.reader())


def test_concurrent_erasures_append_each_removal_once(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 40)
    other = EmbeddedGallery(gallery.files.parent)

    def erase(number: int) -> None:
        for face in faces[number::4]:
            (gallery, other)[number % 2].remove_faces("doors", [face.token])

    threads = [threading.Thread(target=erase, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert in_file(gallery) == in_ledger(gallery)
    assert sorted(removal.face_id for removal in in_file(gallery)) == list(range(1, 41))


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    EmbeddedGallery(tmp_path).close()
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(GalleryError, match="lost"):
        EmbeddedGallery(tmp_path)
    assert not (tmp_path / "ledger.db").exists()


def test_a_ledger_older_than_the_file_is_refused(gallery: EmbeddedGallery) -> None:
    faces = enrol(gallery, "doors", 2)
    gallery.ledger.scrub()
    old = gallery.ledger.path.read_bytes()
    gallery.remove_faces("doors", [faces[0].token])
    gallery.close()
    gallery.ledger.path.write_bytes(old)
    with pytest.raises(CorruptError, match="older"):
        EmbeddedGallery(gallery.files.parent)


def test_the_ledger_of_another_gallery_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        EmbeddedGallery(tmp_path / name).close()
    (tmp_path / "a" / "ledger.db").replace(tmp_path / "b" / "ledger.db")
    with pytest.raises(CorruptError, match="another gallery"):
        EmbeddedGallery(tmp_path / "b")


def test_the_file_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "VERSION", 2)
    EmbeddedGallery(tmp_path).close()
    monkeypatch.undo()
    with pytest.raises(TooNewError, match="version 2"):
        EmbeddedGallery(tmp_path)
    assert Tombstones(tmp_path / "none").read() is None
