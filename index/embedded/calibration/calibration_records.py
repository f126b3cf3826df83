"""Rows of the calibrations of collections."""

from __future__ import annotations

import secrets

import apsw

from index.embedded.store.collection_records import CALIBRATION, read_calibration
from index.errors import NotFoundError
from index.types import Calibration, Collection


def insert(db: apsw.Connection, collection: Collection, data: str, now: float) -> Calibration:
    """Insert the next version, which is not in use."""
    version = db.execute(
        "SELECT coalesce(max(version), 0) + 1 FROM calibrations WHERE collection_id = ?", (collection.id,)
    ).get
    token = secrets.token_hex(16)
    db.execute(
        "INSERT INTO calibrations (collection_id, token, version, fingerprint, data, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (collection.id, token, version, collection.fingerprint, data, now),
    )
    return find(db, collection.id, token)


def insert_record(db: apsw.Connection, collection_id: int, calibration: Calibration) -> None:
    """Insert a calibration of another gallery with its token and version."""
    db.execute(
        "INSERT INTO calibrations (collection_id, token, version, fingerprint, data, created_at, in_use)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
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


def find(db: apsw.Connection, collection_id: int, token: str) -> Calibration:
    """Return the calibration.

    Raises:
        NotFoundError.
    """
    row = db.execute(f"{CALIBRATION} WHERE collection_id = ? AND token = ?", (collection_id, token)).fetchone()
    if row is None:
        raise NotFoundError("there is no such calibration")
    return read_calibration(row)


def use(db: apsw.Connection, collection_id: int, number: int) -> None:
    """Use the calibration with the id `number` only; 0: none."""
    db.execute("UPDATE calibrations SET in_use = (id = ?) WHERE collection_id = ?", (number, collection_id))


def page(db: apsw.Connection, collection_id: int, after: int, limit: int) -> list[Calibration]:
    """Return at most `limit` calibrations with versions above `after`, oldest first."""
    rows = db.execute(
        f"{CALIBRATION} WHERE collection_id = ? AND version > ? ORDER BY version LIMIT ?",
        (collection_id, after, limit),
    )
    return [read_calibration(row) for row in rows]
