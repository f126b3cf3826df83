"""A segment: vectors that do not change any more, in a file that is mapped into memory and never written again.

    header, 64 bytes    "VSEG", version, flags, dimensions, rows, first and last face id, removals taken into account,
                        CRC-32 of the checksums' table, CRC-32 of the header before it; little-endian
    table               a CRC-32 for each `CHUNK` bytes of the body, padded to 64 bytes
    body                face ids int64 [rows], subject ids int64 [rows], vectors float32 [rows, dimensions]

`flags` is 0; it is there for encryption. The ledger can make every segment anew, so a file in doubt is thrown away.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.errors import CorruptError, TooNewError
from index.files import write_atomically
from index.records import Floats, Ints, Rows

MAGIC, VERSION = b"VSEG", 1
_HEADER = struct.Struct("<4sHHIIqqq16xII")
CHUNK = 2**20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Segment:
    """One mapped file; the arrays are views of it."""

    path: Path
    faces: Ints
    subjects: Ints
    vectors: Floats
    removals_through: int
    _body: memoryview
    _checksums: memoryview

    @classmethod
    def open(cls, path: Path) -> Segment:
        """Map the file. Header and size are checked, the body by `verify`.

        Raises:
            CorruptError: missing, cut short, or with another header than was written. TooNewError.
        """
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise CorruptError(f"{path.name}: {error}") from error
        if len(mapped) < _HEADER.size:
            raise CorruptError(f"{path.name} is cut short")
        magic, version, _, dimensions, rows, _, _, removals, table_crc, header_crc = _HEADER.unpack_from(mapped)
        if magic != MAGIC or zlib.crc32(mapped[: _HEADER.size - 4]) != header_crc:
            raise CorruptError(f"{path.name} has no segment's header")
        if version > VERSION:
            raise TooNewError(f"{path.name} is of version {version}; this program knows {VERSION}")
        size = rows * (16 + 4 * dimensions)
        start = _HEADER.size + _table_size(size)
        table = mapped[_HEADER.size : start]
        if len(mapped) != start + size or zlib.crc32(table) != table_crc:
            raise CorruptError(f"{path.name} is cut short, or its checksums changed")
        body = mapped[start:]
        return cls(
            path,
            np.frombuffer(body, "<i8", rows),
            np.frombuffer(body, "<i8", rows, 8 * rows),
            np.frombuffer(body, "<f4", rows * dimensions, 16 * rows).reshape(rows, dimensions),
            removals,
            body,
            table,
        )

    def verify(self) -> None:
        """Read all of it.

        Raises:
            CorruptError: some byte is not what was written.
        """
        for number, chunk in enumerate(_chunks(self._body)):
            if struct.unpack_from("<I", self._checksums, 4 * number)[0] != zlib.crc32(chunk):
                raise CorruptError(f"{self.path.name} changed at byte {number * CHUNK} of its body or after")


def write(path: Path, rows: Rows, removals_through: int) -> Segment:
    """Write the rows durably, and map them."""
    body = b"".join(
        (
            rows.faces.astype("<i8").tobytes(),
            rows.subjects.astype("<i8").tobytes(),
            rows.vectors.astype("<f4").tobytes(),
        )
    )
    checksums = b"".join(struct.pack("<I", zlib.crc32(chunk)) for chunk in _chunks(memoryview(body)))
    table = checksums.ljust(_table_size(len(body)), b"\0")
    count, dimensions = rows.vectors.shape
    first, last = (int(rows.faces[0]), int(rows.faces[-1])) if count else (0, 0)
    header = _HEADER.pack(MAGIC, VERSION, 0, dimensions, count, first, last, removals_through, zlib.crc32(table), 0)[
        :-4
    ]
    write_atomically(path, [header + struct.pack("<I", zlib.crc32(header)), table, body])
    return Segment.open(path)


def _chunks(body: memoryview) -> Iterator[memoryview]:
    return (body[start : start + CHUNK] for start in range(0, len(body), CHUNK))


def _table_size(body: int) -> int:
    return -(-4 * -(-body // CHUNK) // _ALIGNMENT) * _ALIGNMENT
