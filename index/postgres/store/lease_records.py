"""Rows of the leases; the process that holds a task's lease does the task. `now` is the database's time."""

from __future__ import annotations

from index.postgres.store.database import Connection


def take(db: Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Take or renew the lease and return True; False while another process holds it."""
    taken = db.execute(
        "INSERT INTO leases VALUES (%s, %s, %s) ON CONFLICT (name) DO UPDATE"
        " SET holder = excluded.holder, expires_at = excluded.expires_at"
        " WHERE leases.holder = excluded.holder OR leases.expires_at <= %s",
        (name, holder, now + seconds, now),
    )
    return taken.rowcount > 0


def is_held(db: Connection, name: str, now: float) -> bool:
    """Return whether any process holds the lease."""
    return db.execute("SELECT 1 FROM leases WHERE name = %s AND expires_at > %s", (name, now)).fetchone() is not None


def renew(db: Connection, name: str, holder: str, now: float, seconds: float) -> bool:
    """Renew the lease and return True; False if `holder` does not hold it."""
    statement = "UPDATE leases SET expires_at = %s WHERE name = %s AND holder = %s"
    return db.execute(statement, (now + seconds, name, holder)).rowcount > 0


def release(db: Connection, name: str, holder: str) -> None:
    """Release the lease if `holder` holds it."""
    db.execute("DELETE FROM leases WHERE name = %s AND holder = %s", (name, holder))


def held(db: Connection, prefix: str, now: float) -> int:
    """Return how many leases with this prefix are held, and delete those that have expired."""
    db.execute("DELETE FROM leases WHERE starts_with(name, %s) AND expires_at <= %s", (prefix, now))
    row = db.execute("SELECT count(*) FROM leases WHERE starts_with(name, %s)", (prefix,)).fetchone()
    return row[0] if row else 0
