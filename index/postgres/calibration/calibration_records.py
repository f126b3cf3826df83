"""Rows of the calibrations of collections."""

from __future__ import annotations

import secrets

from index.errors import NotFoundError
from index.postgres.store.collection_records import CALIBRATION
from index.postgres.store.database import Connection
from index.types import Calibration, Collection


def insert(db: Connection, collection: Collection, data: str, now: float) -> Calibration:
    """Insert the next version, which is not in use; the collection is locked for update."""
    token = secrets.token_hex(16)
    db.execute(
        "INSERT INTO calibrations (collection_id, token, version, fingerprint, data, created_at)"
        " SELECT %(id)s, %(token)s, coalesce(max(version), 0) + 1, %(fingerprint)s, %(data)s, %(now)s"
        " FROM calibrations WHERE collection_id = %(id)s",
        {"id": collection.id, "token": token, "fingerprint": collection.fingerprint, "data": data, "now": now},
    )
    return find(db, collection.id, token)


def insert_record(db: Connection, collection_id: int, calibration: Calibration) -> None:
    """Insert a calibration of another gallery with its token and version."""
    db.execute(
        "INSERT INTO calibrations (collection_id, token, version, fingerprint, data, created_at, in_use)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (
            collection_id,
            calibration.token,
            calibration.version,
            calibration.fingerprint,
            calibration.data,
            calibration.created_at,
            calibration.in_use,
        ),
    )


def find(db: Connection, collection_id: int, token: str) -> Calibration:
    """Return the calibration.

    Raises:
        NotFoundError.
    """
    row = db.execute(CALIBRATION + " WHERE collection_id = %s AND token = %s", (collection_id, token)).fetchone()
    if row is None:
        raise NotFoundError("there is no such calibration")
    return Calibration(*row)


def use(db: Connection, collection_id: int, number: int) -> None:
    """Use the calibration with the id `number` only; 0: none."""
    db.execute("UPDATE calibrations SET in_use = (id = %s) WHERE collection_id = %s", (number, collection_id))


def page(db: Connection, collection_id: int, after: int, limit: int) -> list[Calibration]:
    """Return at most `limit` calibrations with versions above `after`, oldest first."""
    rows = db.execute(
        CALIBRATION + " WHERE collection_id = %s AND version > %s ORDER BY version LIMIT %s",
        (collection_id, after, limit),
    )
    return [Calibration(*row) for row in rows]
