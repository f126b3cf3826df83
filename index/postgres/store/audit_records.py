"""Rows of the audit log: events, recorded in the transactions that they describe, and the chained lines.

The hash of a line depends on the line before, so that one transaction at a time chains (index/postgres/audit.py). Until
then an event waits in a row of its own, for which no other transaction waits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from psycopg import sql

from index.audit_chain import HASH_LENGTH, AuditEvent, LogHead, dump_event, read_event
from index.postgres.store.database import Connection, execute_each


def record(db: Connection, *events: AuditEvent) -> None:
    """Record events in the transaction that they describe."""
    statement = sql.SQL("INSERT INTO audit_events (event) VALUES (%s)")
    execute_each(db, statement, [(dump_event(event),) for event in events])


def take(db: Connection, limit: int) -> list[AuditEvent]:
    """Delete at most `limit` recorded events and return them in the order in which they were recorded."""
    rows = db.execute(
        "WITH taken AS (DELETE FROM audit_events WHERE seq IN (SELECT seq FROM audit_events ORDER BY seq LIMIT %s)"
        " RETURNING seq, event) SELECT event FROM taken ORDER BY seq",
        (limit,),
    )
    return [read_event(json.loads(row[0])) for row in rows]


def head(db: Connection) -> LogHead:
    """Return number and hash of the last line; 0 and an empty hash where there is none."""
    row = db.execute("SELECT sequence, hash FROM audit_head").fetchone()
    assert row is not None  # noqa: S101  the first migration inserts it
    return LogHead(row[0], row[1])


def lock_head(db: Connection) -> LogHead:
    """Return `head`, which no other transaction changes before this one ends."""
    db.execute("SELECT 1 FROM audit_head FOR UPDATE")
    return head(db)


def append(db: Connection, last: int, lines: Sequence[bytes], new_hash: str) -> None:
    """Append lines behind the line `last`. `new_hash`: of the last one. Lock the head first."""
    rows = [(number, line[:-1].decode()) for number, line in enumerate(lines, last + 1)]
    db.cursor().executemany("INSERT INTO audit_lines VALUES (%s, %s)", rows)
    db.execute("UPDATE audit_head SET sequence = %s, hash = %s", (last + len(lines), new_hash))


def lines(db: Connection, first: int, limit: int) -> list[tuple[int, bytes]]:
    """Return number and text of at most `limit` lines with numbers from `first` on."""
    rows = db.execute(
        "SELECT sequence, line FROM audit_lines WHERE sequence >= %s ORDER BY sequence LIMIT %s", (first, limit)
    )
    return [(row[0], f"{row[1]}\n".encode()) for row in rows]


def ids_after(db: Connection, last: int) -> set[str]:
    """Return the ids of the events in the lines behind the line `last`."""
    rows = db.execute("SELECT line FROM audit_lines WHERE sequence > %s", (last,))
    return {json.loads(row[0][HASH_LENGTH:])["id"] for row in rows}
