"""The audit log in the database: lines of the format of index/audit_chain.py, one a row.

`audit_records.record` stores an event in the transaction that it describes. `AuditLog.flush`, called by each round of
maintenance, moves stored events into lines: in one transaction, so that a crash loses none and repeats none. Searches
change nothing in the database: their events wait in memory for the next flush, and are lost with the process.

Events get their numbers in the order in which they were recorded. An event that commits later than a flush gets a later
number, so that a reader who continues at a cursor misses none.

`verify` detects lines that were changed, removed or moved, and a truncated end, as far as the table `audit_head`
records it. A person who can write to the database can write a new, consistent chain; only a `LogHead` that was stored
elsewhere detects that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from index.audit_chain import (
    HASH_LENGTH,
    MAGIC,
    VERSION,
    AuditEntry,
    AuditEvent,
    LogFault,
    LogHead,
    find_fault,
    format_line,
    initial_hash,
    parse_line,
)
from index.errors import CorruptError, InvalidError, UnavailableError
from index.postgres.store import audit_records
from index.postgres.store.database import Connection, Database

FLUSH_BATCH = 1000  # events of one transaction, and lines that `verify` reads at once
MAX_QUEUED = 10_000  # search events in memory, at which `add` flushes


class AuditLog:
    """The log of a database, which several processes may write to."""

    def __init__(self, database: Database):
        self._database = database
        self._queue: list[AuditEvent] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self.header = f"{MAGIC} {VERSION} {database.gallery_id}\n".encode()
        # The head before a transaction of which it is unknown whether it was committed.
        self._uncertain_since: int | None = None

    def add(self, event: AuditEvent) -> None:
        """Queue an event that changed nothing in the database; the next flush makes it durable."""
        with self._lock:
            self._queue.append(event)
            full = len(self._queue) >= MAX_QUEUED
        if full:
            self.flush()

    def flush(self) -> None:
        """Write all recorded and queued events durably.

        Raises:
            UnavailableError: the next flush writes the events.
        """
        with self._flushing:
            more = True
            while more:
                with self._lock:
                    queued = self._queue[:FLUSH_BATCH]
                more = self._append(queued) or len(queued) == FLUSH_BATCH
                with self._lock:
                    del self._queue[: len(queued)]

    def _append(self, queued: list[AuditEvent]) -> bool:
        """Write these events and a batch of recorded ones; return whether there may be more of those."""
        before = 0

        def write(db: Connection) -> bool:
            nonlocal before
            head = audit_records.lock_head(db)
            before = head.sequence
            recorded = audit_records.take(db, FLUSH_BATCH)
            written = set() if self._uncertain_since is None else audit_records.ids_after(db, self._uncertain_since)
            previous = head.hash or initial_hash(self.header)
            lines: list[bytes] = []
            for event in (*recorded, *(event for event in queued if event.id not in written)):
                line = format_line(head.sequence + len(lines) + 1, previous, event)
                previous = line[:HASH_LENGTH].decode()
                lines.append(line)
            if lines:
                audit_records.append(db, head.sequence, lines, previous)
            return len(recorded) == FLUSH_BATCH

        try:
            more = self._database.write(write)
        except UnavailableError:
            if self._uncertain_since is None:
                self._uncertain_since = before
            raise
        self._uncertain_since = None
        return more

    def head(self) -> LogHead:
        """Flush the log and return its head."""
        self.flush()
        with self._database.snapshot() as db:
            return self._head(db)

    def _head(self, db: Connection) -> LogHead:
        head = audit_records.head(db)
        return head if head.sequence else LogHead(0, initial_hash(self.header))

    def read(self, cursor: int = 0, limit: int = 100) -> tuple[list[AuditEntry], int]:
        """Return at most `limit` entries from the line `cursor` on (0: the first), and the cursor of the next page.

        Raises:
            InvalidError: no entry begins at the cursor. CorruptError: a line is malformed; see `verify`.
        """
        self.flush()
        start = cursor or 1
        with self._database.snapshot() as db:
            if not 0 < start <= audit_records.head(db).sequence + 1:
                raise InvalidError(f"no entry of the audit log begins at {cursor}")
            lines = audit_records.lines(db, start, limit)
        entries: list[AuditEntry] = []
        for number, line in lines:
            if (entry := parse_line(line)) is None:
                raise CorruptError(f"the line {number} of the audit log is malformed")
            entries.append(entry)
        return entries, lines[-1][0] + 1 if lines else start

    def verify(self, heads: Iterable[LogHead] = ()) -> LogFault | None:
        """Check the whole log, also against `heads` that were stored elsewhere; return the first fault or None."""
        self.flush()
        with self._database.snapshot() as db:
            end = self._head(db)
            hashes: dict[int, set[str]] = {}
            for head in (*heads, end):
                hashes.setdefault(head.sequence, set()).add(head.hash)
            previous, expected = initial_hash(self.header), 1
            if hashes.get(0, {previous}) != {previous}:
                return LogFault(0, "the log is another gallery's")
            while lines := audit_records.lines(db, expected, FLUSH_BATCH):
                for _, line in lines:
                    if reason := find_fault(line, previous, expected, hashes):
                        return LogFault(expected, reason)
                    previous, expected = line[:HASH_LENGTH].decode(), expected + 1
        return LogFault(expected, "the end was cut off") if max(hashes) >= expected else None
