"""Rows of the audit log: events, recorded in the transactions that they describe, and the chained lines.

The hash of a line depends on the line before, so that only one process may chain: the one that does maintenance
(index/postgres/audit.py). Until then an event waits in a row of its own, for which no other transaction waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from index.audit_chain import AuditEvent, dump_event
from index.postgres.store.database import Connection


def record(db: Connection, *events: AuditEvent) -> None:
    """Record events in the transaction that they describe."""
    rows: Sequence[tuple[str]] = [(dump_event(event),) for event in events]
    db.cursor().executemany("INSERT INTO audit_events (event) VALUES (%s)", rows)
