"""Rows of erasures. What is erased is overwritten before it is deleted, and has a receipt.

PostgreSQL leaves deleted rows in its files until a vacuum, and a vacuum may leave a row's bytes in a page's free space.
An UPDATE just before the DELETE puts a row of zeros beside it, and the vacuum moves that over the old one
(index/postgres/maintenance.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import collection_records, face_records, face_tables, job_records
from index.postgres.store.database import Connection
from index.types import Collection, Receipt

_SEAL = bytes(32)  # what overwrites a key


def remove_faces(db: Connection, collection: Collection, ids: Sequence[int], *, subjects: int, now: float) -> Receipt:
    """Erase these faces of the collection and return the receipt, which counts `subjects` subjects.

    Lock the faces first, in the order of their ids.
    """
    zeros = "[" + ",".join("0" * collection.dimensions) + "]"
    table = face_tables.faces(collection.id)
    overwrite = sql.SQL(
        "UPDATE {} SET vector = %s::vector, token = '', details = '', seal = %s, erased = true WHERE id = ANY(%s)"
    )
    db.execute(overwrite.format(table), (zeros, _SEAL, list(ids)))
    deleted = db.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(table), (list(ids),)).rowcount
    collection_records.add_counts(db, collection.id, faces=-deleted)
    return insert_receipt(db, collection.id, subjects, len(ids), now)


def remove_rejections(db: Connection, ids: Sequence[int]) -> None:
    """Erase rejected faces."""
    db.execute(
        "UPDATE rejections SET vector = array_fill(0, ARRAY[vector_dims(vector)])::vector, seal = %s,"
        " reembedded = NULL WHERE id = ANY(%s)",
        (_SEAL, list(ids)),
    )
    db.execute("DELETE FROM rejections WHERE id = ANY(%s)", (list(ids),))


def remove_subjects(
    db: Connection, collection: Collection, subject_ids: Sequence[int], now: float
) -> tuple[Receipt, list[int]]:
    """Erase the subjects with all their faces, feedback and pending items of jobs.

    Return the receipt and the ids of the faces. Lock the subjects first.
    """
    job_records.erase_items_of(db, subject_ids)
    faces = face_records.lock_of_subjects(db, collection.id, subject_ids)
    receipt = remove_faces(db, collection, faces, subjects=len(subject_ids), now=now)
    rejected = db.execute("SELECT id FROM rejections WHERE subject_id = ANY(%s)", (list(subject_ids),)).fetchall()
    remove_rejections(db, [row[0] for row in rejected])
    db.execute("UPDATE subjects SET seal = %s, sealed = '' WHERE id = ANY(%s)", (_SEAL, list(subject_ids)))
    deleted = db.execute("DELETE FROM subjects WHERE id = ANY(%s)", (list(subject_ids),)).rowcount
    collection_records.add_counts(db, collection.id, subjects=-deleted)
    return receipt, faces


def remove_collection(db: Connection, collection: Collection, now: float) -> Receipt:
    """Erase the collection and everything in it, and return the receipt."""
    job_records.delete_all(db, collection.id, now)
    subjects, faces = collection_records.counts(db, collection.id)
    of_collection = "(SELECT id FROM subjects WHERE collection_id = %s)"
    rejected = db.execute(
        f"SELECT id FROM rejections WHERE subject_id IN {of_collection}",  # noqa: S608  constants
        (collection.id,),
    ).fetchall()
    remove_rejections(db, [row[0] for row in rejected])
    db.execute("UPDATE subjects SET seal = %s, sealed = '' WHERE collection_id = %s", (_SEAL, collection.id))
    collection_records.delete(db, collection)
    return insert_receipt(db, collection.id, subjects, faces, now)


def insert_receipt(
    db: Connection, collection_id: int, subjects: int, faces: int, now: float, token: str | None = None
) -> Receipt:
    """Insert a receipt for what this transaction erases. `token`: by default a new one."""
    receipt = Receipt(token or secrets.token_hex(16), subjects, faces, now, None)
    db.execute(
        "INSERT INTO receipts (token, collection_id, subjects, faces, requested_at) VALUES (%s, %s, %s, %s, %s)",
        (receipt.token, collection_id, subjects, faces, now),
    )
    return receipt


def receipt(db: Connection, token: str) -> Receipt:
    """Return the receipt with this token.

    Raises:
        NotFoundError.
    """
    statement = "SELECT token, subjects, faces, requested_at, erased_at FROM receipts WHERE token = %s"
    row = db.execute(statement, (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such receipt")
    return Receipt(*row)
