"""The audit log: who enrolled, searched, erased, embedded anew, in lines that nobody can change without its being seen.
The service keeps another one of its keys and models, beside a ledger of their own.

A text file beside the ledger that only grows, not a table: a backup of the ledger that is put back leaves it as it is,
nothing in SQLite writes over it, and it can be followed and checked without this program. The first line names format,
version and gallery, each other one tells of an act (index/embedded/audit/entries.py).

An act is noted in the ledger by the transaction that does it (`note`), so that it is as durable as what was done, and
goes on from there into the file (`Audit.flush`, each round of maintenance) within seconds. Searches wait in memory for
that, so that none pays for an fsync: the last seconds' are lost with their process.

There are only ids in it that the ledger gave, the same as in the tombstones: they mean nothing outside of it, and
nothing at all once what they stand for is erased. Faces' tokens are not among them: a caller may have kept those next
to a name.

What can be seen: a line that was changed, removed, put elsewhere or put in; and an end that was cut off, as far as the
ledger knows of it (its `audit` says how far the file goes). Who can write to both file and ledger can make a new chain
that fits: that is seen only by a `Head` that was kept elsewhere. What was cut off together with a restore of an older
ledger, and what was not in the file yet, is not seen. A log that begins with a restore goes on from one elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import apsw

from index.embedded.audit.entries import HASH_LENGTH, Act, Entry, fault_of, from_note, genesis, line_of, noted, parsed
from index.embedded.store.atomic_files import sync_folder
from index.embedded.store.ledger import Ledger, Row
from index.errors import CorruptError, InvalidError, TooNewError

MAGIC, VERSION = "vestibule-audit", 1
# Acts that are written and synced at once, and searches that may wait for it.
AT_ONCE, MOST_WAITING = 1000, 10_000


@dataclass(frozen=True)
class Head:
    """How far the log goes: its last number and hash. To be kept where nobody can write who can write to the log."""

    sequence: int
    hash: str


@dataclass(frozen=True)
class Fault:
    """The first number at which the log is not what was written (0: its first line)."""

    sequence: int
    reason: str


@dataclass(frozen=True)
class _End(Head):
    """`start`: where the last line begins in the file; None where that is not known."""

    start: int | None


def note(db: apsw.Connection, act: Act) -> None:
    """Let the act be in the log if this transaction is."""
    db.execute("INSERT INTO acts (act) VALUES (?)", (noted(act),))


class Audit:
    """The log in `path`, to which several processes may write, beside the ledger of `owner`: a gallery's id, say."""

    def __init__(self, path: Path, ledger: Ledger, owner: str):
        self.path = path
        self._ledger = ledger
        self._waiting: list[Act] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._header = f"{MAGIC} {VERSION} {owner}\n".encode()

    def add(self, act: Act) -> None:
        """Note an act that changed nothing in the ledger; it is durable after the next flush."""
        with self._lock:
            self._waiting.append(act)
            full = len(self._waiting) >= MOST_WAITING
        if full:
            self.flush()

    def flush(self, *, recover: bool = False) -> None:
        """Write all that was noted and added, durably. `recover`: also look for what a crash left.

        Raises:
            OSError: it is written by the next flush. TooNewError.
        """
        with self._flushing:
            more = recover or self._take()
            while more:
                with self._open() as file:
                    more = self._append(file)

    def head(self) -> Head:
        """The end of the log, after a flush."""
        self.flush()
        end = self._end()
        return Head(end.sequence, end.hash)

    def read(self, cursor: int = 0, limit: int = 100) -> tuple[list[Entry], int]:
        """At most `limit` entries from `cursor` on (0: the first), and the cursor behind them.

        Raises:
            InvalidError: no entry begins there. CorruptError: a line cannot be read; see `verify`. TooNewError.
        """
        self.flush()
        entries: list[Entry] = []
        with self.path.open("rb") as file:
            header = file.readline()
            _check_version(self.path, header)
            start = cursor or len(header)
            file.seek(max(0, start - 1))
            if start < len(header) or file.read(1) != b"\n":
                raise InvalidError(f"no entry of the audit log begins at {cursor}")
            while len(entries) < limit and (line := file.readline()).endswith(b"\n"):
                if (entry := parsed(line)) is None:
                    raise CorruptError(f"{self.path}: the line at byte {start} is not what was written")
                entries.append(entry)
                start += len(line)
        return entries, start

    def verify(self, known: Iterable[Head] = ()) -> Fault | None:
        """The first fault, of the whole log and against heads that were kept; None where there is none.

        Raises:
            TooNewError.
        """
        self.flush(recover=True)
        with self._open() as file:
            size, end = os.fstat(file.fileno()).st_size, self._end()
        heads: dict[int, set[str]] = {}
        for head in (*known, end):
            heads.setdefault(head.sequence, set()).add(head.hash)
        with self.path.open("rb") as file:
            if file.readline() != self._header:
                return Fault(0, "the first line is not this gallery's")
            previous, expected = genesis(self._header), 1
            while file.tell() < size:
                line = file.readline()
                if reason := fault_of(line, previous, expected, heads):
                    return Fault(expected, reason)
                previous, expected = line[:HASH_LENGTH].decode(), expected + 1
        return Fault(expected, "the end was cut off") if max(heads) >= expected else None

    def adopt(self) -> None:
        """Take up what the log has beyond what the ledger knows of, since that comes from a backup.

        Where there is no log, because it is another place, one begins, with the restore as its first entry.
        """
        with self._open() as file:
            size = os.fstat(file.fileno()).st_size
            begins = _End(0, genesis(self._header), 0)
            end, written, behind = self._follow(file, begins if size == len(self._header) else self._end())
            # What a crash left behind the end is cut off. But here it may be what somebody changed: it must stay.
            start = end.start if behind == size else None
            ids = json.dumps(list(written))

            def write(db: apsw.Connection) -> None:
                _put_end(db, _End(end.sequence, end.hash, start))
                db.execute("DELETE FROM acts WHERE act ->> 'id' IN (SELECT value FROM json_each(?))", (ids,))

            self._ledger.write(write)

    def _take(self) -> bool:
        """Whether anything is to be written."""
        return bool(self._waiting) or self._ledger.reader().execute("SELECT 1 FROM acts").get is not None

    def _append(self, file: BinaryIO) -> bool:
        """Write some of what there is; whether there may be more."""
        with self._lock:
            added = self._waiting[:AT_ONCE]
        rows = _noted(self._ledger.reader())
        end, written, behind = self._follow(file, known := self._end())
        acts = [act for act in (*(from_note(text) for _, text in rows), *added) if act.id not in written]
        if end.start is not None:
            file.truncate(behind)  # what a crash left, which comes again now
        elif acts:  # what the ledger knows of is not in the file: that stays as it is, and the chain has a gap for good
            behind = _end_line(file)
        for act in sorted(acts, key=lambda act: act.at):
            line = line_of(end.sequence + 1, end.hash, act)
            end = _End(end.sequence + 1, line[:HASH_LENGTH].decode(), behind)
            behind += file.write(line)
        if rows or (end.start is not None and end != known):
            file.flush()
            os.fsync(file.fileno())
            self._ledger.write(lambda db: _put_end(db, end, rows[-1][0] if rows else 0))
        with self._lock:
            del self._waiting[: len(added)]
        return AT_ONCE in (len(rows), len(added))

    def _end(self) -> _End:
        """As far as the ledger knows."""
        row = self._ledger.reader().execute("SELECT sequence, hash, start FROM audit").fetchone()
        return _End(*row) if row else _End(0, genesis(self._header), 0)

    def _follow(self, file: BinaryIO, end: _End) -> tuple[_End, set[str], int]:
        """From the end that the ledger knows to the last line that goes on from it; ids on the way; where it ends.

        `start` is None where the file has not what the ledger knows.
        """
        written: set[str] = set()
        behind = file.seek(end.start or 0)
        line = file.readline()
        known = line[:HASH_LENGTH].decode(errors="replace") if end.sequence else genesis(line)
        if end.start is None or known != end.hash or not line.endswith(b"\n"):
            return _End(end.sequence, end.hash, None), written, behind
        behind += len(line)
        while fault_of(line := file.readline(), end.hash, end.sequence + 1, {}) is None:
            end = _End(end.sequence + 1, line[:HASH_LENGTH].decode(), behind)
            written.add(json.loads(line[HASH_LENGTH:])["id"])
            behind += len(line)
        return end, written, behind

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """The file, with a first line, for one at a time."""
        with open(self.path, "a+b", opener=partial(os.open, mode=0o600)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            header, more = file.readline(), file.read(1)
            if header.endswith(b"\n"):
                _check_version(self.path, header)
            # New, or a crash came before the first line was whole, or of an empty gallery that was here before.
            if not more and header != self._header:
                file.truncate(0)
                file.write(self._header)
                file.flush()
                os.fsync(file.fileno())
                sync_folder(self.path.parent)
            yield file


def subjects_of(db: apsw.Connection, faces: Sequence[int]) -> list[int]:
    """Ids of those whose faces these are."""
    found = db.execute(
        "SELECT DISTINCT subject_id FROM faces WHERE id IN (SELECT value FROM json_each(?)) ORDER BY subject_id",
        (json.dumps(faces),),
    )
    return [row[0] for row in found]


def _noted(db: apsw.Connection) -> list[Row]:
    """Some of the acts that are not in the file: number and text."""
    found: list[Row] = db.execute("SELECT seq, act FROM acts ORDER BY seq LIMIT ?", (AT_ONCE,)).fetchall()
    return found


def _put_end(db: apsw.Connection, end: _End, through: int = 0) -> None:
    """The file goes so far now, and has the acts noted up to `through`."""
    db.execute("DELETE FROM audit")
    db.execute("INSERT INTO audit (sequence, hash, start) VALUES (?, ?, ?)", (end.sequence, end.hash, end.start))
    db.execute("DELETE FROM acts WHERE seq <= ?", (through,))


def _end_line(file: BinaryIO) -> int:
    """See that the file ends with a whole line, whatever that is; where it ends."""
    size = file.seek(-1, os.SEEK_END) + 1
    return size if file.read(1) == b"\n" else size + file.write(b"\n")


def _check_version(path: Path, header: bytes) -> None:
    words = header.decode(errors="replace").split(" ")
    if words[0] == MAGIC and words[1].isdecimal() and int(words[1]) > VERSION:
        raise TooNewError(f"{path} is of version {words[1]}; this program knows {VERSION}")
