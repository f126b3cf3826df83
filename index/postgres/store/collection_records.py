"""Rows of the collections, and the numbers of their subjects and faces."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

from psycopg import sql

from index.errors import ConflictError, InvalidError, NotFoundError
from index.postgres.store import face_tables
from index.postgres.store.database import Connection, Row
from index.types import Calibration, Collection
from index.validation import check_key, check_object, check_timestamp, normalised, read_object

_COLLECTION = "SELECT id, name, embedder, fingerprint, dimensions, settings, created_at, generation FROM collections"
CALIBRATION = "SELECT id, token, version, fingerprint, data, created_at, in_use FROM calibrations"
# "share": the collection cannot be dropped or re-embedded before this transaction ends; "update": nor changed at all.
Lock = Literal["none", "share", "update"]
_LOCKS: dict[Lock, sql.SQL] = {"none": sql.SQL(""), "share": sql.SQL(" FOR SHARE"), "update": sql.SQL(" FOR UPDATE")}


def _collection(row: Row) -> Collection:
    number, name, embedder, fingerprint, dimensions, settings, created_at, generation = row
    return Collection(number, name, embedder, fingerprint, dimensions, read_object(settings), created_at, generation)


def insert(db: Connection, collection: Collection) -> Collection:
    """Insert a collection with a table for its faces; return it with its new id and its name in Unicode form C.

    Raises:
        ConflictError: a collection of that name exists. InvalidError: it is to be encrypted; or the name cannot be part
            of a URL, or the settings or the time are not valid.
    """
    if collection.encrypted:
        raise InvalidError("encrypted collections are not supported with a database yet; use the embedded gallery")
    check_key(collection.name, "collection")
    check_object(collection.settings, "settings")
    check_timestamp(collection.created_at, "created_at")
    name = normalised(collection.name)
    row = db.execute(
        "INSERT INTO collections (name, embedder, fingerprint, dimensions, settings, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id",
        (
            name,
            collection.embedder,
            collection.fingerprint,
            collection.dimensions,
            json.dumps(collection.settings),
            collection.created_at,
        ),
    ).fetchone()
    if row is None:
        raise ConflictError(f"there is a collection {collection.name!r} already")
    face_tables.create(db, row[0], collection.dimensions)
    return replace(collection, id=row[0], name=name)


def find(db: Connection, name: str, lock: Lock = "none") -> Collection:
    """Return the collection of this name in Unicode form C.

    Raises:
        NotFoundError.
    """
    row = db.execute(sql.SQL(_COLLECTION + " WHERE name = %s") + _LOCKS[lock], (normalised(name),)).fetchone()
    if row is None:
        raise NotFoundError(f"there is no collection {name!r}")
    return _collection(row)


def find_id(db: Connection, collection_id: int, lock: Lock = "none") -> Collection | None:
    """Return the collection with this id; None if it was dropped."""
    row = db.execute(sql.SQL(_COLLECTION + " WHERE id = %s") + _LOCKS[lock], (collection_id,)).fetchone()
    return None if row is None else _collection(row)


def page(db: Connection, after: str, limit: int) -> list[Collection]:
    """Return at most `limit` collections (-1: all) whose names are greater than `after`, sorted by name."""
    rows = db.execute(_COLLECTION + " WHERE name > %s ORDER BY name LIMIT %s", (after, None if limit < 0 else limit))
    return [_collection(row) for row in rows]


def delete(db: Connection, collection: Collection) -> None:
    """Delete the collection and everything in it."""
    of_reembedding = "SELECT 'reembed:' || token FROM reembeddings WHERE collection_id = %s"
    db.execute(f"DELETE FROM leases WHERE name IN ({of_reembedding})", (collection.id,))  # noqa: S608  constants
    db.execute("DELETE FROM collections WHERE id = %s", (collection.id,))
    for table in ("subject_values", "collection_counts"):
        db.execute(sql.SQL("DELETE FROM {} WHERE collection_id = %s").format(sql.Identifier(table)), (collection.id,))
    face_tables.drop(db, collection.id)


def check_current(db: Connection, collection: Collection) -> None:
    """Raise ConflictError if the collection was dropped or re-embedded since it was read."""
    row = db.execute("SELECT generation FROM collections WHERE id = %s", (collection.id,)).fetchone()
    if row is None or row[0] != collection.generation:
        raise ConflictError(f"{collection.name!r} was dropped or re-embedded meanwhile")


def add_counts(db: Connection, collection_id: int, *, subjects: int = 0, faces: int = 0) -> None:
    """Add to the numbers of subjects and faces. No transaction waits for another one's."""
    if subjects or faces:
        db.execute("INSERT INTO collection_counts VALUES (%s, %s, %s)", (collection_id, subjects, faces))


def merge_counts(db: Connection) -> None:
    """Replace the rows of `add_counts` by one for each collection."""
    db.execute(
        "WITH added AS (DELETE FROM collection_counts RETURNING *) INSERT INTO collection_counts"
        " SELECT collection_id, sum(subjects), sum(faces) FROM added GROUP BY collection_id"
    )


def counts(db: Connection, collection_id: int) -> tuple[int, int]:
    """Return the numbers of subjects and of faces in the collection."""
    row = db.execute(
        "SELECT coalesce(sum(subjects), 0)::bigint, coalesce(sum(faces), 0)::bigint FROM collection_counts"
        " WHERE collection_id = %s",
        (collection_id,),
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def calibration_in_use(db: Connection, collection: Collection) -> Calibration | None:
    """Return the calibration in use for the collection's pipeline."""
    row = db.execute(
        CALIBRATION + " WHERE collection_id = %s AND in_use AND fingerprint = %s",
        (collection.id, collection.fingerprint),
    ).fetchone()
    return None if row is None else Calibration(*row)
