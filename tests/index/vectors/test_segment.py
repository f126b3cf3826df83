"""Segments: the same numbers again, and no byte of the file that could change unseen."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from index.embedded.encryption.aead import OVERHEAD, PLAINTEXT, AeadCipher, Cipher
from index.embedded.store.atomic_files import write_atomically
from index.embedded.store.vector_records import FaceVectors
from index.embedded.vectors import segment as segments
from index.errors import CorruptError, TooNewError

GOLDEN = Path(__file__).parents[2] / "golden" / "segment-1.seg"
SEALED = GOLDEN.with_name("segment-1-sealed.seg")
AEAD = AeadCipher(bytes(range(32)))


def rows(count: int = 50, dimensions: int = 6) -> FaceVectors:
    random = np.random.default_rng(0)
    faces = np.cumsum(random.integers(1, 5, count))
    return FaceVectors(faces, random.integers(1, 9, count), random.normal(size=(count, dimensions)).astype(np.float32))


@pytest.mark.parametrize("cipher", [PLAINTEXT, AEAD], ids=["open", "sealed"])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_was_written_is_read(tmp_path: Path, count: int, cipher: Cipher) -> None:
    expected = rows(count)
    written = segments.write(tmp_path / "a.seg", expected, 7, cipher)
    read = segments.Segment.open(tmp_path / "a.seg", cipher)
    for segment in (written, read):
        segment.verify()
        assert np.array_equal(segment.faces, expected.faces)
        assert np.array_equal(segment.subjects, expected.subjects)
        assert np.array_equal(segment.vectors, expected.vectors)
        assert segment.removals_through == 7
    assert [path.name for path in tmp_path.iterdir()] == ["a.seg"]


@pytest.mark.parametrize(("path", "cipher"), [(GOLDEN, PLAINTEXT), (SEALED, AEAD)], ids=["open", "sealed"])
def test_the_golden_files_of_version_1_are_read(path: Path, cipher: Cipher) -> None:
    segment = segments.Segment.open(path, cipher)
    segment.verify()
    expected = rows()
    assert np.array_equal(segment.faces, expected.faces)
    assert np.array_equal(segment.subjects, expected.subjects)
    assert np.array_equal(segment.vectors, expected.vectors)


def test_what_is_written_is_version_1_byte_for_byte(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(), segments.Segment.open(GOLDEN).removals_through)
    assert (tmp_path / "a.seg").read_bytes() == GOLDEN.read_bytes()
    segments.write(tmp_path / "a.seg", rows(0), 7)
    fields = struct.unpack_from("<4sHHIIqqq", (tmp_path / "a.seg").read_bytes())
    assert fields == (b"VSEG", 1, 0, 6, 0, 0, 0, 7)  # of no rows: neither a first face nor a last


def test_a_sealed_one_is_the_same_but_for_its_vectors(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(), 7, AEAD)
    sealed, (whole, ids) = (tmp_path / "a.seg").read_bytes(), (GOLDEN.read_bytes(), 128 + 16 * 50)
    assert struct.unpack_from("<4sHH", sealed) == (b"VSEG", 1, 1)
    assert sealed[128:ids] == whole[128:ids]
    assert len(sealed) == len(whole) + OVERHEAD
    assert whole[ids : ids + 8] not in sealed
    with pytest.raises(CorruptError, match=r"^a\.seg is sealed where its collection is not, or the other way round$"):
        segments.Segment.open(tmp_path / "a.seg")
    with pytest.raises(CorruptError, match="sealed"):
        segments.Segment.open(GOLDEN, AEAD)


def test_a_checksum_is_of_a_mebibyte_of_the_body(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(20_000, 20), 0)
    content = (tmp_path / "a.seg").read_bytes()
    body = content[64 + 64 :]
    assert len(body) == 20_000 * (16 + 4 * 20)
    checksums = [zlib.crc32(body[: 2**20]), zlib.crc32(body[2**20 :])]
    assert content[64:128] == struct.pack("<2I56x", *checksums)


@pytest.mark.parametrize("cipher", [PLAINTEXT, AEAD], ids=["open", "sealed"])
def test_every_changed_byte_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cipher: Cipher) -> None:
    monkeypatch.setattr(segments, "CHUNK", 128)
    segments.write(tmp_path / "a.seg", rows(5, 3), 0, cipher)
    whole = (tmp_path / "a.seg").read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        (tmp_path / "a.seg").write_bytes(changed)
        with pytest.raises((CorruptError, TooNewError), match=r"^a\.seg "):
            segments.Segment.open(tmp_path / "a.seg", cipher).verify()


@pytest.mark.parametrize("place", [24, 128, 168])  # of the header: the first id; of the body: a face's, a subject's
def test_what_is_not_sealed_cannot_be_changed_either(tmp_path: Path, place: int) -> None:
    """Not even with all checksums made anew."""
    path = tmp_path / "a.seg"
    segments.write(path, rows(5, 3), 0, AEAD)
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    struct.pack_into("<I", changed, 64, zlib.crc32(changed[128:]))
    struct.pack_into("<I", changed, 56, zlib.crc32(changed[64:128]))
    struct.pack_into("<I", changed, 60, zlib.crc32(changed[:60]))
    path.write_bytes(changed)
    segment = segments.Segment.open(path, AEAD)
    for read in (segment.verify, segment.unsealed):
        with pytest.raises(CorruptError, match=r"^a\.seg: the encrypted content is damaged or misplaced$"):
            read()


def test_where_it_changed_is_told_to_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "CHUNK", 128)
    segments.write(tmp_path / "a.seg", rows(), 0)
    content = bytearray((tmp_path / "a.seg").read_bytes())
    content[384 - 50 * (16 + 4 * 6)] ^= 1  # the first byte of the fourth chunk
    (tmp_path / "a.seg").write_bytes(content)
    with pytest.raises(CorruptError, match=r"^a\.seg changed at byte 384 of its body or after$"):
        segments.Segment.open(tmp_path / "a.seg").verify()


@pytest.mark.parametrize(("chunks", "table"), [(1, 64), (16, 64), (17, 128), (32, 128), (33, 192)])
def test_the_table_has_4_bytes_for_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int, table: int
) -> None:
    monkeypatch.setattr(segments, "CHUNK", 20)  # the bytes of a row of one dimension
    segments.write(tmp_path / "a.seg", rows(chunks, 1), 0).verify()
    assert (tmp_path / "a.seg").stat().st_size == 64 + table + 20 * chunks


@pytest.mark.parametrize("length", [0, 10, 63, 64, 200])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    segments.write(tmp_path / "a.seg", rows(), 0)
    (tmp_path / "b.seg").write_bytes((tmp_path / "a.seg").read_bytes()[:length])
    with pytest.raises(CorruptError, match=r"b\.seg"):
        segments.Segment.open(tmp_path / "b.seg")


def test_a_missing_file_and_one_that_is_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"a\.seg"):
        segments.Segment.open(tmp_path / "a.seg")
    segments.write(tmp_path / "a.seg", rows(), 0)
    with (tmp_path / "a.seg").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CorruptError, match="cut short"):
        segments.Segment.open(tmp_path / "a.seg")


def test_a_later_versions_segment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "VERSION", 2)
    segments.write(tmp_path / "a.seg", rows(), 0)
    monkeypatch.undo()
    with pytest.raises(TooNewError, match="version 2"):
        segments.Segment.open(tmp_path / "a.seg")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def broken() -> object:
        yield b"new"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a", broken())  # type: ignore[arg-type]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
