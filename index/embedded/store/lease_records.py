"""Rows of the leases; the process that holds a task's lease does the task."""

from __future__ import annotations

import apsw


def take(db: apsw.Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Take or renew the lease and return True; False while another process holds it.

    A lease counts as expired if it ends later than a new lease would: it was taken while the clock was ahead.
    """
    db.execute(
        "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, expires_at = excluded.expires_at"
        " WHERE holder = excluded.holder OR expires_at <= ?4 OR expires_at > ?3",
        (name, holder, now + seconds, now),
    )
    return bool(db.execute("SELECT holder = ? FROM leases WHERE name = ?", (holder, name)).get)


def is_held(db: apsw.Connection, name: str, now: float, seconds: float) -> bool:
    """Return whether any process holds the lease, whose renewals last `seconds`; see `take`."""
    statement = "SELECT 1 FROM leases WHERE name = ? AND expires_at > ? AND expires_at <= ?"
    return db.execute(statement, (name, now, now + seconds)).get is not None


def renew(db: apsw.Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Renew the lease and return True; False if `holder` does not hold it."""
    db.execute("UPDATE leases SET expires_at = ? WHERE name = ? AND holder = ?", (now + seconds, name, holder))
    return db.changes() > 0


def release(db: apsw.Connection, name: str, holder: str) -> None:
    """Release the lease if `holder` holds it. The row stays, because a job without a lease row has failed."""
    db.execute("UPDATE leases SET holder = '', expires_at = 0 WHERE name = ? AND holder = ?", (name, holder))
