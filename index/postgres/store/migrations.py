"""Migrations: the database's schema as numbered steps. A released step is never changed.

Names, metadata, crops and the data of bulk jobs are stored encrypted, each with a key of its own in the same row
(index/postgres/store/sealing.py): an erasure overwrites the short keys in their pages, wherever the long ciphertexts
lie. Subjects and values of metadata are looked up by an HMAC. Vectors are plain, because PostgreSQL compares them.

A trigger records the page of each deleted or replaced row of the tables from which data is erased (`scrubs`), for
maintenance to overwrite (index/postgres/store/scrubbing.py). No statistics are collected of their content.
The faces of a collection have a table of their own (index/postgres/store/face_tables.py).
"""

from __future__ import annotations

import secrets

import psycopg

from index.errors import GalleryError, TooNewError, UnavailableError
from index.postgres.store.schema import alerts, calibration, curation, erasure, gallery, sightings, transfer

OLDEST_PGVECTOR = (0, 8, 6)  # earlier versions can damage an index, or return too few rows to a filtered search
LOCK = 0x76657374  # the advisory lock of migrations: "vest"

STEPS: tuple[str, ...] = (
    gallery.STEP,
    curation.STEP,
    transfer.STEP,
    sightings.STEP,
    calibration.STEP,
    alerts.STEP,
    erasure.STEP,
)


def migrate_database(url: str) -> int:
    """Migrate the database with this URL and return its version. No message contains the URL.

    Raises:
        UnavailableError: it cannot be reached. TooNewError, GalleryError: see `migrate`; or the role lacks a privilege.
    """
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            migrate(connection)
    except psycopg.OperationalError as error:
        raise UnavailableError(f"the database cannot be reached: {_one_line(error)}") from error
    except psycopg.Error as error:
        raise GalleryError(f"the database cannot be migrated: {_one_line(error)}") from error
    return len(STEPS)


def _one_line(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


def migrate(connection: psycopg.Connection[tuple[object, ...]], steps: tuple[str, ...] = STEPS) -> None:
    """Run the `steps` that the database lacks, each in its own transaction; other processes wait meanwhile.

    Raises:
        TooNewError: it has more steps than these. GalleryError: pgvector is missing or too old.
    """
    connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
    try:
        _require_pgvector(connection)
        # IF NOT EXISTS would need the privilege to create tables also where there is nothing to migrate.
        if connection.execute("SELECT to_regclass('migrations')").fetchone() == (None,):
            connection.execute("CREATE TABLE migrations (step integer PRIMARY KEY)")
        row = connection.execute("SELECT coalesce(max(step), 0) FROM migrations").fetchone()
        done = int(str(row[0])) if row else 0
        if done > len(steps):
            raise TooNewError(f"the database is of version {done}; this program knows {len(steps)}")
        for number, step in enumerate(steps[done:], done + 1):
            with connection.transaction():
                connection.execute(step)
                if number == 1:
                    values = (secrets.token_hex(16), secrets.token_bytes(32))
                    connection.execute("INSERT INTO gallery VALUES (%s, %s)", values)
                connection.execute("INSERT INTO migrations VALUES (%s)", (number,))
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))


def _require_pgvector(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except psycopg.Error as error:
        raise GalleryError(f"pgvector is needed, and CREATE EXTENSION vector failed: {error}") from error
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    version = str(row[0]) if row else ""
    if tuple(int(part) for part in version.split(".")) < OLDEST_PGVECTOR:
        oldest = ".".join(map(str, OLDEST_PGVECTOR))
        raise GalleryError(f"pgvector {version} can damage an index; {oldest} or later is needed: ALTER EXTENSION")
