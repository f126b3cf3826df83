"""Segments: immutable, memory-mapped files of vectors.

    header, 64 bytes    "VSEG", version, flags, dimensions, rows, first and last face id, last removal applied,
                        CRC-32 of the checksum table, CRC-32 of the header before it; little-endian
    table               a CRC-32 for each `CHUNK` bytes of the body, padded to 64 bytes
    body                face ids int64 [rows], subject ids int64 [rows], vectors float32 [rows, dimensions]

`flags` is 1 where the vectors are encrypted (index/embedded/encryption.py), with the file's name, header and ids
as associated data, and 0 otherwise. Encrypted vectors are decrypted into memory on first use. Every segment can be
rebuilt from the ledger, so a damaged file is discarded.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from index.embedded.encryption import PLAINTEXT, Cipher
from index.embedded.store.vector_records import FaceVectors
from index.errors import CorruptError, TooNewError
from index.folders import write_atomically
from index.types import Floats, Ints

MAGIC, VERSION, ENCRYPTED_FLAG = b"VSEG", 1, 1
_HEADER = struct.Struct("<4sHHIIqqq16xII")
CHUNK = 2**20
_ALIGNMENT = 64
_CHECKSUMS = 8  # the last bytes of the header


@dataclass(frozen=True)
class Segment:
    """A mapped segment file. `faces` and `subjects` are views of the file, [rows]."""

    path: Path
    faces: Ints
    subjects: Ints
    dimensions: int
    removals_through: int
    _cipher: Cipher
    _header: memoryview
    _body: memoryview
    _checksums: memoryview

    @classmethod
    def open(cls, path: Path, cipher: Cipher = PLAINTEXT) -> Segment:
        """Map the file, which was written with the collection's `cipher`, and check its header and size.

        Raises:
            CorruptError: the file is missing or truncated, or its header is damaged. TooNewError.
        """
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CorruptError(f"{path.name}: {error}") from error
        if len(mapped) < _HEADER.size:
            raise CorruptError(f"{path.name} is truncated")
        magic, version, flags, dimensions, rows, _, _, removals, table_crc, header_crc = _HEADER.unpack_from(mapped)
        if magic != MAGIC or zlib.crc32(mapped[: _HEADER.size - 4]) != header_crc:
            raise CorruptError(f"{path.name} has no valid segment header")
        if version > VERSION:
            raise TooNewError(f"{path.name} has version {version}; this program reads up to version {VERSION}")
        if flags != (ENCRYPTED_FLAG if cipher.encrypted else 0):
            raise CorruptError(f"{path.name} is encrypted and its collection is not, or the other way round")
        size = rows * 16 + cipher.encrypted_file_size(rows * 4 * dimensions)
        start = _HEADER.size + _table_size(size)
        table = mapped[_HEADER.size : start]
        if len(mapped) != start + size or zlib.crc32(table) != table_crc:
            raise CorruptError(f"{path.name} has the wrong size or a damaged checksum table")
        body = mapped[start:]
        return cls(
            path,
            np.frombuffer(body, "<i8", rows),
            np.frombuffer(body, "<i8", rows, 8 * rows),
            dimensions,
            removals,
            cipher,
            mapped[: _HEADER.size - _CHECKSUMS],
            body,
            table,
        )

    @cached_property
    def vectors(self) -> Floats:
        """The vectors, [rows, dimensions]: a view of the file, or decrypted in memory.

        Raises:
            CorruptError: the encrypted vectors were modified, or belong to another file.
        """
        ids = 16 * len(self.faces)
        associated = (self.path.name.encode(), self._header, self._body[:ids])
        data = self._cipher.decrypt_file(self._body[ids:], *associated)
        return np.frombuffer(data, "<f4").reshape(-1, self.dimensions)

    def verify(self) -> None:
        """Read the whole file and check it.

        Raises:
            CorruptError: a byte has changed.
        """
        for number, chunk in enumerate(_chunks(self._body)):
            if struct.unpack_from("<I", self._checksums, 4 * number)[0] != zlib.crc32(chunk):
                raise CorruptError(f"{self.path.name} changed in the chunk at byte {number * CHUNK} of its body")
        self.load()

    def load(self) -> Segment:
        """Decrypt the vectors into memory if they are encrypted, and return the segment.

        Raises:
            CorruptError: see `vectors`.
        """
        assert self.vectors is not None  # noqa: S101  evaluates the cached property
        return self


def write(path: Path, rows: FaceVectors, removals_through: int, cipher: Cipher = PLAINTEXT) -> Segment:
    """Write the rows to a file durably, and return the mapped segment."""
    count, dimensions = rows.vectors.shape
    first, last = (int(rows.faces[0]), int(rows.faces[-1])) if count else (0, 0)
    flags = ENCRYPTED_FLAG if cipher.encrypted else 0
    fields = _HEADER.pack(MAGIC, VERSION, flags, dimensions, count, first, last, removals_through, 0, 0)[:-_CHECKSUMS]
    ids = rows.faces.astype("<i8").tobytes() + rows.subjects.astype("<i8").tobytes()
    vectors = rows.vectors.astype("<f4").tobytes()
    body = b"".join((ids, *cipher.encrypt_file(vectors, path.name.encode(), fields, ids)))
    checksums = b"".join(struct.pack("<I", zlib.crc32(chunk)) for chunk in _chunks(memoryview(body)))
    table = checksums.ljust(_table_size(len(body)), b"\0")
    header = fields + struct.pack("<I", zlib.crc32(table))
    write_atomically(path, [header + struct.pack("<I", zlib.crc32(header)), table, body])
    return Segment.open(path, cipher)


def _chunks(body: memoryview) -> Iterator[memoryview]:
    return (body[start : start + CHUNK] for start in range(0, len(body), CHUNK))


def _table_size(body: int) -> int:
    return -(-4 * -(-body // CHUNK) // _ALIGNMENT) * _ALIGNMENT
