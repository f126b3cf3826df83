"""What was erased, kept beside the ledger, so that a ledger that comes back from a backup forgets it again.

A text file that only grows: the ledger's `removals`, as far as its last line. The first line names format, version and
gallery; each other one the removal's number, collection, subject and face (0: the whole subject or collection). Each
ends in the CRC-32 of what stands before it. No names, no vectors.

It is written after an erasure is durable in the ledger and before it is acknowledged. So all that was acknowledged is
in it, nothing is that was not erased, and what a crash keeps out of it is put in when the gallery is opened again.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import apsw

from index.embedded.store import collection_records, erasure_records
from index.embedded.store.atomic_files import sync_folder, write_atomically
from index.embedded.store.erasure_records import Removal
from index.errors import CorruptError, TooNewError

MAGIC, VERSION = "vestibule-tombstones", 1
# Lines that are written and synced at once. A crash can harm no others, and all of them fit into the tail.
AT_ONCE = 500
_LONGEST = 4 * 20 + 9
_TAIL = (AT_ONCE + 2) * _LONGEST


class Tombstones:
    """The file in `path`, which several processes may write to."""

    def __init__(self, path: Path):
        self.path = path

    def follow(self, db: apsw.Connection) -> None:
        """Write down, durably, what the ledger has erased since the last line.

        Raises:
            CorruptError: the file is damaged or of another gallery, or has what the ledger has not. TooNewError.
        """
        with self._open(collection_records.gallery_id(db)) as file:
            end, last = _tail(self.path, file)
            if last > erasure_records.last_removal(db):
                raise CorruptError(
                    f"the ledger is older than the erasures in {self.path}; put a backup back by `restore`"
                )
            file.truncate(end)  # what a crash left of lines, which come again now
            more = True
            while more:
                rows = erasure_records.removals(db, last, limit=AT_ONCE)
                file.write(b"".join(map(_line, rows)))
                file.flush()
                os.fsync(file.fileno())  # also of none: who wrote the last line may have died before it did this
                more = len(rows) == AT_ONCE
                last = rows[-1].seq if rows else last

    def rewrite(self, db: apsw.Connection) -> None:
        """Make the file anew from the ledger, which has all that is in it."""
        write_atomically(self.path, _whole(db))

    def read(self) -> tuple[str, Iterator[Removal]] | None:
        """The gallery's id, and all that was erased, in the order of numbers; None where there is no file.

        Incomplete lines at the end are left out: nobody was told that those are erased.

        Raises:
            CorruptError: something else is damaged, also while iterating. TooNewError.
        """
        try:
            with self.path.open("rb") as file:
                header = file.readline()
        except FileNotFoundError:
            return None
        return _gallery(self.path, header), self._removals()

    def _removals(self) -> Iterator[Removal]:
        last, broken = 0, 0
        with self.path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file, 2):
                removal = _parsed(line)
                if removal is None:
                    broken = broken or number
                elif broken or removal.seq <= last:
                    raise CorruptError(f"{self.path}: line {broken or number} is not what was written")
                else:
                    last = removal.seq
                    yield removal

    @contextmanager
    def _open(self, gallery: str) -> Iterator[BinaryIO]:
        """The file, with its first line, for one at a time."""
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            header = file.readline()
            if not header.endswith(b"\n"):  # new, or a crash came before the first line was whole
                file.truncate(0)
                header = _header(gallery)
                file.write(header)
                file.flush()
                os.fsync(file.fileno())
                sync_folder(self.path.parent)
            if _gallery(self.path, header) != gallery:
                raise CorruptError(f"{self.path} tells of another gallery than the ledger beside it")
            yield file


def _sealed(text: str) -> bytes:
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _unsealed(line: bytes) -> list[str] | None:
    """The words of a line, unless it is incomplete or changed."""
    text = line[:-10].decode(errors="replace")
    return text.split(" ") if _sealed(text) == line else None


def _header(gallery: str) -> bytes:
    return _sealed(f"{MAGIC} {VERSION} {gallery}")


def _line(removal: Removal) -> bytes:
    return _sealed(f"{removal.seq} {removal.collection_id} {removal.subject_id} {removal.face_id}")


def _parsed(line: bytes) -> Removal | None:
    words = _unsealed(line)
    return Removal(*map(int, words)) if words is not None else None


def _gallery(path: Path, header: bytes) -> str:
    words = _unsealed(header)
    if words is None or words[0] != MAGIC:
        raise CorruptError(f"{path} does not begin as it was written")
    if int(words[1]) > VERSION:
        raise TooNewError(f"{path} is of version {words[1]}; this program knows {VERSION}")
    return words[2]


def _tail(path: Path, file: BinaryIO) -> tuple[int, int]:
    """Where the last whole line ends, and its number; 0 where there is only the first."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _TAIL)
    file.seek(start)
    end, last = start + len(file.readline()), 0  # the first line of the file, or a piece of one
    while (removal := _parsed(line := file.readline())) is not None:
        end, last = end + len(line), removal.seq
    if start and not last:
        raise CorruptError(f"{path} does not end as it was written")
    return end, last


def _whole(db: apsw.Connection) -> Iterable[bytes]:
    yield _header(collection_records.gallery_id(db))
    last = 0
    while rows := erasure_records.removals(db, last, limit=AT_ONCE):
        yield b"".join(map(_line, rows))
        last = rows[-1].seq
