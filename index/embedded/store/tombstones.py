"""File of all erasures beside the ledger, so that a ledger that is restored from a backup repeats them.

An append-only text file that contains the ledger's `removals` up to its last line. The first line holds format, version
and gallery id; each other line the number, collection, subject and face of a removal (0 for a whole subject or
collection). Each line ends in the CRC-32 of the text before it. It contains no names and no vectors.

A removal is appended after it is durable in the ledger and before it is acknowledged. So the file contains every
acknowledged erasure and no other data; erasures that a crash prevented from being appended are appended when the
gallery is opened.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import apsw

from index.embedded.store import collection_records, erasure_records
from index.embedded.store.atomic_files import begin_file
from index.embedded.store.changes import P, T, committing
from index.errors import CorruptError, TooNewError
from index.folders import sync, write_atomically

MAGIC, VERSION = "vestibule-tombstones", 1
# The most lines that are written and synced together. A crash can damage only these, and all fit into the tail.
BATCH_LINES = 500
_MAX_LINE_BYTES = 4 * 20 + 9
_TAIL_BYTES = (BATCH_LINES + 2) * _MAX_LINE_BYTES


class Tombstones:
    """The file in `path`, to which several processes may append."""

    def __init__(self, path: Path):
        self.path = path

    def append_new(self, db: apsw.Connection) -> None:
        """Append, durably, the ledger's removals that follow the last line.

        Raises:
            CorruptError: the file is damaged, belongs to another gallery, or has removals that the ledger lacks.
            TooNewError: a later version of this program wrote it.
        """
        with self._open(collection_records.gallery_id(db)) as file:
            end, last = _tail(self.path, file)
            if last > erasure_records.last_removal(db):
                raise CorruptError(
                    f"the ledger is older than the erasures in {self.path}; put a backup back by `restore`"
                )
            file.truncate(end)  # incomplete lines of a crash, which are written again now
            # Sync also without new lines: the process that wrote the last one may have crashed.
            for lines in [*_batches(db, last)] or [b""]:
                file.write(lines)
                sync(file)

    def rewrite(self, db: apsw.Connection) -> None:
        """Replace the file by one with all removals of the ledger."""
        write_atomically(self.path, chain([_header(collection_records.gallery_id(db))], _batches(db, 0)))

    def read(self) -> tuple[str, Iterator[erasure_records.Removal]] | None:
        """Return the gallery's id and an iterator over all removals in order; None if there is no file.

        Incomplete lines at the end are left out: those erasures were not acknowledged.

        Raises:
            CorruptError: another line is damaged; also raised by the iterator. TooNewError.
        """
        try:
            with self.path.open("rb") as file:
                header = file.readline()
        except FileNotFoundError:
            return None
        return _gallery_id(self.path, header), self._removals()

    def _removals(self) -> Iterator[erasure_records.Removal]:
        last, damaged = 0, 0
        with self.path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                removal = _parsed(line)
                if removal is None:
                    damaged = damaged or number
                elif damaged or removal.seq <= last:
                    raise CorruptError(f"{self.path}: line {damaged or number} is damaged")
                else:
                    last = removal.seq
                    yield removal

    @contextmanager
    def _open(self, gallery_id: str) -> Iterator[BinaryIO]:
        """Open the file under an exclusive lock; create it and its first line if they are missing."""
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            header = file.readline()
            if not header.endswith(b"\n"):  # a new file, or a crash interrupted the first line
                header = _header(gallery_id)
                begin_file(self.path, file, header)
            if _gallery_id(self.path, header) != gallery_id:
                raise CorruptError(f"{self.path} belongs to another gallery than the ledger beside it")
            yield file


class erasing(committing[P, T]):  # noqa: N801  a decorator
    """As `committing`, for a method that erases data: `self.tombstones` are written before its result is returned."""

    def _after(self, instance: Any) -> Any:
        return instance.tombstones.append_new


def _with_checksum(text: str) -> bytes:
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _words(line: bytes) -> list[str] | None:
    """Return the words of a line, or None if it is incomplete or damaged."""
    text = line[:-10].decode(errors="replace")
    return text.split(" ") if _with_checksum(text) == line else None


def _header(gallery_id: str) -> bytes:
    return _with_checksum(f"{MAGIC} {VERSION} {gallery_id}")


def _line(removal: erasure_records.Removal) -> bytes:
    return _with_checksum(f"{removal.seq} {removal.collection_id} {removal.subject_id} {removal.face_id}")


def _parsed(line: bytes) -> erasure_records.Removal | None:
    words = _words(line)
    return erasure_records.Removal(*map(int, words)) if words is not None else None


def _gallery_id(path: Path, header: bytes) -> str:
    words = _words(header)
    if words is None or words[0] != MAGIC:
        raise CorruptError(f"the first line of {path} is damaged")
    if int(words[1]) > VERSION:
        raise TooNewError(f"{path} is of version {words[1]}; this program knows {VERSION}")
    return words[2]


def _tail(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Return the end of the last complete line, and its removal's number; 0 if there is only the first line."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    end, last = start + len(file.readline()), 0  # the file's first line, or a part of a line
    while (removal := _parsed(line := file.readline())) is not None:
        end, last = end + len(line), removal.seq
    if start and not last:
        raise CorruptError(f"the end of {path} is damaged")
    return end, last


def _batches(db: apsw.Connection, last: int) -> Iterator[bytes]:
    """Yield the lines of all removals after the removal `last`, `BATCH_LINES` at a time."""
    while removals := erasure_records.removals(db, last, limit=BATCH_LINES):
        yield b"".join(map(_line, removals))
        last = removals[-1].seq
