"""Rows of the collections, and totals over the whole ledger.

In all `*_records` modules, a function runs one or a few statements on the connection `db`. Call functions that change
rows only in a write of the ledger. Times are seconds since 1970.
"""

from __future__ import annotations

import json
from dataclasses import replace

import apsw

from index.embedded.encryption import insert_data_key
from index.embedded.store.ledger import Row
from index.errors import ConflictError, NotFoundError
from index.types import Calibration, Collection
from index.validation import check_key, check_object, check_timestamp, normalised, read_object

_COLLECTION = (
    "SELECT id, name, embedder, fingerprint, dimensions, settings, created_at, generation, encrypted FROM collections"
)
CALIBRATION = "SELECT id, token, version, fingerprint, data, created_at, in_use FROM calibrations"


def _collection(row: Row) -> Collection:
    *columns, settings, created_at, generation, encrypted = row
    columns += [read_object(settings), created_at, generation, bool(encrypted)]
    return Collection(*columns)


def insert(db: apsw.Connection, collection: Collection) -> Collection:
    """Insert a collection and return it with its new id and its name in Unicode form C.

    Raises:
        ConflictError: a collection of that name exists. LockedError: it is to be encrypted, and there is no operator's
            key. InvalidError: the name cannot be part of a URL, or the settings or the time are not valid.
    """
    check_key(collection.name, "collection")
    check_object(collection.settings, "settings")
    check_timestamp(collection.created_at, "created_at")
    name = normalised(collection.name)
    if db.execute("SELECT 1 FROM collections WHERE name IN (?, ?)", (name, collection.name)).get is not None:
        raise ConflictError(f"there is a collection {collection.name!r} already")
    number = db.execute(
        "INSERT INTO collections (name, embedder, fingerprint, dimensions, settings, created_at, encrypted)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            name,
            collection.embedder,
            collection.fingerprint,
            collection.dimensions,
            json.dumps(collection.settings),
            collection.created_at,
            collection.encrypted,
        ),
    ).get
    if collection.encrypted:
        insert_data_key(db, number)
    return replace(collection, id=number, name=name)


def find(db: apsw.Connection, name: str) -> Collection:
    """Return the collection of exactly this name, or else of this name in Unicode form C.

    Raises:
        NotFoundError.
    """
    row: Row | None = db.execute(
        f"{_COLLECTION} WHERE name IN (?1, ?2) ORDER BY name != ?1 LIMIT 1", (name, normalised(name))
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no collection {name!r}")
    return _collection(row)


def page(db: apsw.Connection, after: str, limit: int) -> list[Collection]:
    """Return at most `limit` collections whose names are greater than `after`, sorted by name."""
    rows = db.execute(f"{_COLLECTION} WHERE name > ? ORDER BY name LIMIT ?", (after, limit))
    return [_collection(row) for row in rows]


def exists(db: apsw.Connection, collection_id: int) -> bool:
    """Return whether the collection exists."""
    return db.execute("SELECT 1 FROM collections WHERE id = ?", (collection_id,)).get is not None


def check_current(db: apsw.Connection, collection: Collection) -> None:
    """Raise ConflictError if the collection was dropped or re-embedded since it was read."""
    if db.execute("SELECT generation FROM collections WHERE id = ?", (collection.id,)).get != collection.generation:
        raise ConflictError(f"{collection.name!r} was dropped or re-embedded meanwhile")


def has_unscaled_vectors(db: apsw.Connection, collection_id: int) -> bool:
    """Return whether the collection may have vectors of another length than 1, from an older version."""
    return bool(db.execute("SELECT unscaled FROM collections WHERE id = ?", (collection_id,)).get)


def mark_scaled(db: apsw.Connection, collection_id: int) -> None:
    """Record that all vectors of the collection have length 1."""
    db.execute("UPDATE collections SET unscaled = 0 WHERE id = ?", (collection_id,))


def dimensions(db: apsw.Connection, collection_id: int) -> int:
    """Return how many numbers a vector of the collection has."""
    return int(db.execute("SELECT dimensions FROM collections WHERE id = ?", (collection_id,)).get)


def counts(db: apsw.Connection, collection_id: int) -> tuple[int, int]:
    """Return the numbers of subjects and of faces in the collection."""
    subjects, faces = db.execute("SELECT subjects, faces FROM collections WHERE id = ?", (collection_id,)).get
    return subjects, faces


def totals(db: apsw.Connection) -> tuple[int, int, int]:
    """Return the numbers of collections, subjects and faces in the ledger."""
    collections, subjects, faces = db.execute(
        "SELECT (SELECT count(*) FROM collections), (SELECT count(*) FROM subjects), (SELECT count(*) FROM faces)"
    ).get
    return collections, subjects, faces


def gallery_id(db: apsw.Connection) -> str:
    """Return the gallery's unique id. Backups keep it."""
    return str(db.execute("SELECT id FROM gallery").get)


def read_calibration(row: Row) -> Calibration:
    """Return the calibration of a row of CALIBRATION."""
    number, token, version, fingerprint, data, created_at, is_in_use = row
    return Calibration(number, token, version, fingerprint, data, created_at, bool(is_in_use))


def calibration_in_use(db: apsw.Connection, collection: Collection) -> Calibration | None:
    """Return the calibration in use for the collection's pipeline."""
    row = db.execute(
        f"{CALIBRATION} WHERE collection_id = ? AND in_use AND fingerprint = ?",
        (collection.id, collection.fingerprint),
    ).fetchone()
    return None if row is None else read_calibration(row)
