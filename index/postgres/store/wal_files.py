"""Files of the write-ahead log (WAL) of PostgreSQL, which contain all changes until a checkpoint deletes the files.

A position in the log is a `pg_lsn` as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import psycopg
from psycopg import sql

from index.errors import GalleryError, UnavailableError
from index.postgres.store.database import Connection, Row, scalar

# The oldest file's position, that of the last checkpoint, after which all data files are current, and on a standby that
# up to which changes were replayed: the least is the position before which no file of the server has any change.
_CLEAN_UNTIL = """
SELECT least(redo_lsn, pg_last_wal_replay_lsn(), (
    SELECT '0/0'::pg_lsn + min(
        ('x' || substr(name, 9, 8))::bit(32)::bigint::numeric * 4294967296
        + ('x' || substr(name, 17, 8))::bit(32)::bigint * pg_size_bytes(current_setting('wal_segment_size'))
    ) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}'
))::text FROM pg_control_checkpoint()
"""
_PRIVILEGES = (
    ("pg_has_role('pg_checkpoint', 'usage')", "GRANT pg_checkpoint TO {}"),
    ("has_function_privilege('pg_ls_waldir()', 'execute')", "GRANT pg_monitor TO {}"),
    ("has_function_privilege('pg_switch_wal()', 'execute')", "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO {}"),
)
_CONNECT_S = 10


def obstacles(db: psycopg.Connection[Row]) -> list[str]:
    """Return why erasures cannot be finished on this server: privileges that its user lacks, and settings."""
    user = db.execute("SELECT quote_ident(current_user), current_setting('wal_recycle')").fetchone()
    assert user is not None  # noqa: S101  a SELECT without FROM has one row
    missing = [
        grant.format(user[0])
        for check, grant in _PRIVILEGES
        if db.execute(sql.SQL("SELECT {}").format(sql.SQL(check))).fetchone() != (True,)
    ]
    if user[1] == "on":  # a file under a new name would contain old changes
        missing.append("ALTER SYSTEM SET wal_recycle = off")
    return missing


def _require(db: psycopg.Connection[Row], server: str) -> None:
    if found := obstacles(db):
        raise GalleryError(f"erasures cannot be finished on {server}: run {'; '.join(found)}")


def end_file(db: Connection) -> str:
    """Write all data files and begin a new file of the log; return its position. Connect outside a transaction.

    Raises:
        GalleryError: see `obstacles`.
    """
    _require(db, "the database")
    end = str(scalar(db, sql.SQL("SELECT pg_switch_wal()::text")))
    db.execute("CHECKPOINT")
    return end


def clean_until(db: Connection, standbys: Sequence[str], wanted: str) -> str:
    """Return the position before which no file of the database and of the standbys at these addresses has any change.

    Where that is before `wanted`, the server writes its data files and deletes old files of the log first, if it can.

    Raises:
        GalleryError: see `obstacles`. UnavailableError: a standby cannot be reached.
    """
    _require(db, "the database")
    least = _clean_until(db, wanted)
    for number, address in enumerate(standbys, 1):
        name = f"the standby {number}"
        try:
            connection = psycopg.connect(address, autocommit=True, connect_timeout=_CONNECT_S)
        except psycopg.OperationalError as error:
            raise UnavailableError(f"{name} cannot be reached") from error
        with closing(connection) as standby:
            _require(standby, name)
            if standby.execute("SELECT pg_is_in_recovery()").fetchone() != (True,):
                raise GalleryError(f"{name} is not a standby")
            clean = _clean_until(standby, wanted)
        least = str(scalar(db, sql.SQL("SELECT least(%s::pg_lsn, %s::pg_lsn)::text"), (least, clean)))
    return least


def _clean_until(db: psycopg.Connection[Row], wanted: str) -> str:
    statement = f"SELECT clean, clean::pg_lsn >= %s::pg_lsn FROM ({_CLEAN_UNTIL}) AS server (clean)"  # noqa: S608
    clean, is_enough = db.execute(sql.SQL(statement), (wanted,)).fetchone() or ("0/0", False)
    if not is_enough:
        db.execute("CHECKPOINT")
        clean, _ = db.execute(sql.SQL(statement), (wanted,)).fetchone() or ("0/0", False)
    return str(clean)
