"""The audit log: an append-only, hash-chained text file of enrolments, searches, erasures and re-embeddings.

`app` has a second log, for its keys and models, beside their own ledger. The log is a file and not a table: restoring
a backup of the ledger does not change it, SQLite never overwrites it, and it can be read and checked without this
program. The header line names the format, the version and the gallery. Every other line is an event: a SHA-256, a
space, and JSON with sorted keys and no spaces. The hash covers the previous line's hash and the JSON; the hash before
the first event is that of the header line.

`record` stores an event in the ledger, in the transaction that it describes, so both are durable together. `flush`,
called by each round of maintenance, moves stored events to the file within seconds. Searches change nothing in the
ledger: their events wait in memory for the next flush, so that a search costs no fsync, and are lost with the process.

Events contain only ids that the ledger assigned, as the tombstones do. The ids identify nobody without the ledger, nor
after their subject is erased. Face tokens are not recorded, because a caller may store them with a name.

`verify` detects lines that were changed, removed, moved or inserted, and a truncated end, as far as the ledger's table
`audit` records the end of the file. A person who can write to both file and ledger can write a new, consistent chain;
only a `LogHead` that was stored elsewhere detects that. Not detected: the loss of events that were not in the file yet,
and a truncation together with a restore of an older ledger. A log that begins with a restore continues another log.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import apsw

from index.audit_chain import (
    HASH_LENGTH,
    MAGIC,
    VERSION,
    AuditEntry,
    AuditEvent,
    LogFault,
    LogHead,
    dump_event,
    find_fault,
    format_line,
    initial_hash,
    parse_line,
    read_event,
)
from index.embedded.store.atomic_files import begin_file
from index.embedded.store.ledger import Ledger, Row
from index.errors import CorruptError, InvalidError, TooNewError
from index.folders import sync

FLUSH_BATCH = 1000  # events that are written with one fsync
MAX_QUEUED = 10_000  # search events in memory, at which `add` flushes


@dataclass(frozen=True)
class _LogEnd(LogHead):
    """`start`: the offset of the last line in the file; None where it is unknown."""

    start: int | None


def record(db: apsw.Connection, event: AuditEvent) -> None:
    """Store the event in the ledger, to be moved to the file if this transaction commits."""
    db.execute("INSERT INTO acts (act) VALUES (?)", (dump_event(event),))


class AuditLog:
    """The log in `path`, which several processes may write to. `owner`: the id of the gallery, or other owner."""

    def __init__(self, path: Path, ledger: Ledger, owner: str):
        self.path = path
        self._ledger = ledger
        self._queue: list[AuditEvent] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._header = f"{MAGIC} {VERSION} {owner}\n".encode()

    def add(self, event: AuditEvent) -> None:
        """Queue an event that changed nothing in the ledger; the next flush makes it durable."""
        with self._lock:
            self._queue.append(event)
            full = len(self._queue) >= MAX_QUEUED
        if full:
            self.flush()

    def flush(self, *, recover: bool = False) -> None:
        """Write all recorded and queued events durably. `recover`: also truncate a partial line that a crash left.

        Raises:
            OSError: the write failed; the next flush writes the events. TooNewError.
        """
        with self._flushing:
            more = recover or self._has_pending()
            while more:
                with self._open() as file:
                    more = self._append(file)

    def head(self) -> LogHead:
        """Flush the log and return its head."""
        self.flush()
        end = self._ledger_end()
        return LogHead(end.sequence, end.hash)

    def read(self, cursor: int = 0, limit: int = 100) -> tuple[list[AuditEntry], int]:
        """Return at most `limit` entries from `cursor` on (0: the first), and the cursor of the next page.

        Raises:
            InvalidError: no entry begins at the cursor. CorruptError: a line is malformed; see `verify`. TooNewError.
        """
        self.flush()
        entries: list[AuditEntry] = []
        with self.path.open("rb") as file:
            header = file.readline()
            _check_version(self.path, header)
            start = cursor or len(header)
            file.seek(max(0, start - 1))
            if start < len(header) or file.read(1) != b"\n":
                raise InvalidError(f"no entry of the audit log begins at {cursor}")
            while len(entries) < limit and (line := file.readline()).endswith(b"\n"):
                if (entry := parse_line(line)) is None:
                    raise CorruptError(f"{self.path}: the line at byte {start} is malformed")
                entries.append(entry)
                start += len(line)
        return entries, start

    def verify(self, heads: Iterable[LogHead] = ()) -> LogFault | None:
        """Check the whole log, also against `heads` that were stored elsewhere; return the first fault or None.

        Raises:
            TooNewError.
        """
        self.flush(recover=True)
        with self._open() as file:
            size, end = os.fstat(file.fileno()).st_size, self._ledger_end()
        hashes: dict[int, set[str]] = {}
        for head in (*heads, end):
            hashes.setdefault(head.sequence, set()).add(head.hash)
        with self.path.open("rb") as file:
            if file.readline() != self._header:
                return LogFault(0, "the first line is not this gallery's")
            previous, expected = initial_hash(self._header), 1
            while file.tell() < size:
                line = file.readline()
                if reason := find_fault(line, previous, expected, hashes):
                    return LogFault(expected, reason)
                previous, expected = line[:HASH_LENGTH].decode(), expected + 1
        return LogFault(expected, "the end was cut off") if max(hashes) >= expected else None

    def adopt(self) -> None:
        """Set the restored ledger's end of the log to the last valid line of the file.

        The backup's ledger records an older end. In a new folder there is no log: a new log begins, with the restore as
        its first entry.
        """
        with self._open() as file:
            size = os.fstat(file.fileno()).st_size
            first = _LogEnd(0, initial_hash(self._header), 0)
            end, written, end_offset = self._scan(file, first if size == len(self._header) else self._ledger_end())
            # `flush` truncates data after the end, which a crash left. Here somebody may have written it: keep it.
            start = end.start if end_offset == size else None
            ids = json.dumps(list(written))

            def write(db: apsw.Connection) -> None:
                _put_end(db, _LogEnd(end.sequence, end.hash, start))
                db.execute("DELETE FROM acts WHERE act ->> 'id' IN (SELECT value FROM json_each(?))", (ids,))

            self._ledger.write(write)

    def _has_pending(self) -> bool:
        return bool(self._queue) or self._ledger.reader().execute("SELECT 1 FROM acts").get is not None

    def _append(self, file: BinaryIO) -> bool:
        """Write one batch of pending events; return whether there may be more."""
        with self._lock:
            queued = self._queue[:FLUSH_BATCH]
        select = "SELECT seq, act FROM acts ORDER BY seq LIMIT ?"
        rows: list[Row] = self._ledger.reader().execute(select, (FLUSH_BATCH,)).fetchall()
        ledger_end = self._ledger_end()
        end, written, offset = self._scan(file, ledger_end)
        events = [
            event for event in (*(read_event(json.loads(text)) for _, text in rows), *queued) if event.id not in written
        ]
        if end.start is not None:
            file.truncate(offset)  # a partial line of a crash, whose event is still pending
        elif events:  # the file lacks the ledger's last line: keep the file; the chain has a gap here
            offset = _end_line(file)
        for event in sorted(events, key=lambda event: event.at):
            line = format_line(end.sequence + 1, end.hash, event)
            end = _LogEnd(end.sequence + 1, line[:HASH_LENGTH].decode(), offset)
            offset += file.write(line)
        if rows or (end.start is not None and end != ledger_end):
            sync(file)
            self._ledger.write(lambda db: _put_end(db, end, rows[-1][0] if rows else 0))
        with self._lock:
            del self._queue[: len(queued)]
        return FLUSH_BATCH in (len(rows), len(queued))

    def _ledger_end(self) -> _LogEnd:
        """Return the end of the log according to the ledger."""
        row = self._ledger.reader().execute("SELECT sequence, hash, start FROM audit").fetchone()
        return _LogEnd(*row) if row else _LogEnd(0, initial_hash(self._header), 0)

    def _scan(self, file: BinaryIO, end: _LogEnd) -> tuple[_LogEnd, set[str], int]:
        """Follow the chain from the ledger's end to the file's last valid line.

        Return that line, the ids of the events on the way, and the offset behind it. Its `start` is None where the
        file does not contain the ledger's end.
        """
        written: set[str] = set()
        offset = file.seek(end.start or 0)
        line = file.readline()
        line_hash = line[:HASH_LENGTH].decode(errors="replace") if end.sequence else initial_hash(line)
        if end.start is None or line_hash != end.hash or not line.endswith(b"\n"):
            return _LogEnd(end.sequence, end.hash, None), written, offset
        offset += len(line)
        while find_fault(line := file.readline(), end.hash, end.sequence + 1, {}) is None:
            end = _LogEnd(end.sequence + 1, line[:HASH_LENGTH].decode(), offset)
            written.add(json.loads(line[HASH_LENGTH:])["id"])
            offset += len(line)
        return end, written, offset

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """Open the file with an exclusive lock, and write the header if it is new."""
        with open(self.path, "a+b", opener=partial(os.open, mode=0o600)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            header, more = file.readline(), file.read(1)
            if header.endswith(b"\n"):
                _check_version(self.path, header)
            # The file is new, or a crash truncated its header, or it belongs to an earlier, empty gallery.
            if not more and header != self._header:
                begin_file(self.path, file, self._header)
            yield file


def _put_end(db: apsw.Connection, end: _LogEnd, through: int = 0) -> None:
    """Store the end of the file, and delete the recorded events up to `through`, which the file contains."""
    db.execute("DELETE FROM audit")
    db.execute("INSERT INTO audit (sequence, hash, start) VALUES (?, ?, ?)", (end.sequence, end.hash, end.start))
    db.execute("DELETE FROM acts WHERE seq <= ?", (through,))


def _end_line(file: BinaryIO) -> int:
    """Append a line break unless the file ends with one; return its size."""
    size = file.seek(-1, os.SEEK_END) + 1
    return size if file.read(1) == b"\n" else size + file.write(b"\n")


def _check_version(path: Path, header: bytes) -> None:
    words = header.decode(errors="replace").split(" ")
    if words[0] == MAGIC and words[1].isdecimal() and int(words[1]) > VERSION:
        raise TooNewError(f"{path} has version {words[1]}; this program reads up to version {VERSION}")
