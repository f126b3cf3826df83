"""Segments: files are read back exactly, and every changed byte is detected."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from index.embedded.encryption import PLAINTEXT, AeadCipher, Cipher
from index.embedded.store.vector_records import FaceVectors
from index.embedded.vectors import segment as segments
from index.errors import CorruptError, TooNewError
from index.operator_key import OVERHEAD

GOLDEN = Path(__file__).parents[2] / "golden" / "segment-1.seg"
ENCRYPTED = GOLDEN.with_name("segment-1-sealed.seg")
AEAD = AeadCipher(bytes(range(32)))


def rows(count: int = 50, dimensions: int = 6) -> FaceVectors:
    random = np.random.default_rng(0)
    faces = np.cumsum(random.integers(1, 5, count))
    return FaceVectors(faces, random.integers(1, 9, count), random.normal(size=(count, dimensions)).astype(np.float32))


@pytest.mark.parametrize("cipher", [PLAINTEXT, AEAD], ids=["plain", "encrypted"])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_written_segments_are_read_back(tmp_path: Path, count: int, cipher: Cipher) -> None:
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


@pytest.mark.parametrize(("path", "cipher"), [(GOLDEN, PLAINTEXT), (ENCRYPTED, AEAD)], ids=["plain", "encrypted"])
def test_golden_files_of_version_1_are_read(path: Path, cipher: Cipher) -> None:
    segment = segments.Segment.open(path, cipher)
    segment.verify()
    expected = rows()
    assert np.array_equal(segment.faces, expected.faces)
    assert np.array_equal(segment.subjects, expected.subjects)
    assert np.array_equal(segment.vectors, expected.vectors)


def test_segments_are_written_as_version_1(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(), segments.Segment.open(GOLDEN).removals_through)
    assert (tmp_path / "a.seg").read_bytes() == GOLDEN.read_bytes()
    segments.write(tmp_path / "a.seg", rows(0), 7)
    fields = struct.unpack_from("<4sHHIIqqq", (tmp_path / "a.seg").read_bytes())
    assert fields == (b"VSEG", 1, 0, 6, 0, 0, 0, 7)  # without rows, the first and last ids are 0


def test_an_encrypted_segment_differs_in_its_vectors_only(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(), 7, AEAD)
    encrypted, (plain, ids) = (tmp_path / "a.seg").read_bytes(), (GOLDEN.read_bytes(), 128 + 16 * 50)
    assert struct.unpack_from("<4sHH", encrypted) == (b"VSEG", 1, 1)
    assert encrypted[128:ids] == plain[128:ids]
    assert len(encrypted) == len(plain) + OVERHEAD
    assert plain[ids : ids + 8] not in encrypted
    with pytest.raises(CorruptError, match=r"^a\.seg is encrypted and its collection is not, or"):
        segments.Segment.open(tmp_path / "a.seg")
    with pytest.raises(CorruptError, match="encrypted"):
        segments.Segment.open(GOLDEN, AEAD)


def test_each_checksum_covers_one_mebibyte(tmp_path: Path) -> None:
    segments.write(tmp_path / "a.seg", rows(20_000, 20), 0)
    content = (tmp_path / "a.seg").read_bytes()
    body = content[64 + 64 :]
    assert len(body) == 20_000 * (16 + 4 * 20)
    checksums = [zlib.crc32(body[: 2**20]), zlib.crc32(body[2**20 :])]
    assert content[64:128] == struct.pack("<2I56x", *checksums)


@pytest.mark.parametrize("cipher", [PLAINTEXT, AEAD], ids=["plain", "encrypted"])
def test_every_changed_byte_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cipher: Cipher) -> None:
    monkeypatch.setattr(segments, "CHUNK", 128)
    segments.write(tmp_path / "a.seg", rows(5, 3), 0, cipher)
    whole = (tmp_path / "a.seg").read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        (tmp_path / "a.seg").write_bytes(changed)
        with pytest.raises((CorruptError, TooNewError), match=r"^a\.seg "):
            segments.Segment.open(tmp_path / "a.seg", cipher).verify()


@pytest.mark.parametrize("place", [24, 128, 168])  # the first id in the header; a face's and a subject's id in the body
def test_plain_data_of_an_encrypted_segment_is_authenticated(tmp_path: Path, place: int) -> None:
    """Tampering is detected even if all checksums are recomputed."""
    path = tmp_path / "a.seg"
    segments.write(path, rows(5, 3), 0, AEAD)
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    struct.pack_into("<I", changed, 64, zlib.crc32(changed[128:]))
    struct.pack_into("<I", changed, 56, zlib.crc32(changed[64:128]))
    struct.pack_into("<I", changed, 60, zlib.crc32(changed[:60]))
    path.write_bytes(changed)
    segment = segments.Segment.open(path, AEAD)
    for read in (segment.verify, segment.load):
        with pytest.raises(CorruptError, match=r"^a\.seg: the encrypted content is damaged or misplaced$"):
            read()


def test_the_error_names_the_changed_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "CHUNK", 128)
    segments.write(tmp_path / "a.seg", rows(), 0)
    content = bytearray((tmp_path / "a.seg").read_bytes())
    content[384 - 50 * (16 + 4 * 6)] ^= 1  # the first byte of the fourth chunk
    (tmp_path / "a.seg").write_bytes(content)
    with pytest.raises(CorruptError, match=r"^a\.seg changed in the chunk at byte 384 of its body$"):
        segments.Segment.open(tmp_path / "a.seg").verify()


@pytest.mark.parametrize(("chunks", "table"), [(1, 64), (16, 64), (17, 128), (32, 128), (33, 192)])
def test_the_table_has_four_bytes_per_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int, table: int
) -> None:
    monkeypatch.setattr(segments, "CHUNK", 20)  # the bytes of a row of one dimension
    segments.write(tmp_path / "a.seg", rows(chunks, 1), 0).verify()
    assert (tmp_path / "a.seg").stat().st_size == 64 + table + 20 * chunks


@pytest.mark.parametrize("length", [None, 0, 10, 63, 64, 200, 10**6])
def test_a_file_that_is_missing_or_has_another_length_is_refused(tmp_path: Path, length: int | None) -> None:
    if length is not None:
        segments.write(tmp_path / "a.seg", rows(), 0)
        (tmp_path / "b.seg").write_bytes((tmp_path / "a.seg").read_bytes().ljust(length, b"\0")[:length])
    with pytest.raises(CorruptError, match=r"b\.seg"):
        segments.Segment.open(tmp_path / "b.seg")


def test_a_segment_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "VERSION", 2)
    segments.write(tmp_path / "a.seg", rows(), 0)
    monkeypatch.undo()
    with pytest.raises(TooNewError, match="version 2"):
        segments.Segment.open(tmp_path / "a.seg")
