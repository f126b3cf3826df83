"""Rows of erasures. Each has a receipt, which maintenance finishes when no file contains the rows (`scrubbing`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import collection_records, face_records, face_tables, job_records
from index.postgres.store.database import Connection, scalar
from index.types import Collection, Receipt


def remove_faces(
    db: Connection, collection: Collection, ids: Sequence[int], *, subjects: int, now: float, sightings: int = 0
) -> Receipt:
    """Erase these faces of the collection and return the receipt, which counts so many `subjects` and `sightings`.

    Lock the faces first, in the order of their ids.
    """
    deleted = _remove(db, face_tables.faces(collection.id), ids)
    collection_records.add_counts(db, collection.id, faces=-deleted)
    # Only now: a re-embedding that copies such a face has locked it until the copy is committed, and seen here.
    if db.execute("SELECT 1 FROM reembeddings WHERE collection_id = %s", (collection.id,)).fetchone():
        _remove(db, face_tables.reembedded(collection.id), ids)
    return insert_receipt(db, collection.id, subjects, len(ids), now, sightings=sightings)


def _remove(db: Connection, table: sql.Identifier, ids: Sequence[int]) -> int:
    """Erase the faces that are in this table, and return their number."""
    return db.execute(sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(table), (list(ids),)).rowcount


def remove_rejections(db: Connection, ids: Sequence[int]) -> None:
    """Erase rejected faces."""
    db.execute("DELETE FROM rejections WHERE id = ANY(%s)", (list(ids),))


def remove_subjects(
    db: Connection, collection: Collection, subject_ids: Sequence[int], now: float
) -> tuple[Receipt, list[int]]:
    """Erase the subjects with all their faces, feedback, sightings, merges and pending items of jobs.

    Return the receipt and the ids of the faces. Lock the subjects first.
    """
    job_records.erase_items_of(db, subject_ids)
    faces = face_records.lock_of_subjects(db, collection.id, subject_ids)
    sightings = db.execute("DELETE FROM sightings WHERE subject_id = ANY(%s)", (list(subject_ids),)).rowcount
    receipt = remove_faces(db, collection, faces, subjects=len(subject_ids), now=now, sightings=sightings)
    rejected = db.execute("SELECT id FROM rejections WHERE subject_id = ANY(%s)", (list(subject_ids),)).fetchall()
    remove_rejections(db, [row[0] for row in rejected])
    _remove_merges(db, subject_ids)
    deleted = db.execute("DELETE FROM subjects WHERE id = ANY(%s)", (list(subject_ids),)).rowcount
    collection_records.add_counts(db, collection.id, subjects=-deleted)
    return receipt, faces


# The subjects themselves, those that they absorbed, and those that these had absorbed before.
_INVOLVED = """
WITH RECURSIVE involved (id) AS (
    SELECT unnest(%s::bigint[]) UNION SELECT absorbed_subjects.id FROM involved
    JOIN merges ON merges.subject_id = involved.id JOIN absorbed_subjects ON merge_id = merges.id
) SELECT id FROM involved
"""


def _remove_merges(db: Connection, subject_ids: Sequence[int]) -> None:
    """Erase what is kept to undo merges into these subjects."""
    ids = [row[0] for row in db.execute(_INVOLVED, (list(subject_ids),))]
    db.execute("DELETE FROM absorbed_subjects WHERE id = ANY(%s)", (ids,))
    db.execute("DELETE FROM merges WHERE subject_id = ANY(%s)", (ids,))


def remove_collection(db: Connection, collection: Collection, now: float) -> Receipt:
    """Erase the collection and everything in it, and return the receipt."""
    subjects, faces = collection_records.counts(db, collection.id)
    of_collection = "(SELECT id FROM subjects WHERE collection_id = %s)"
    rejected = db.execute(
        f"SELECT id FROM rejections WHERE subject_id IN {of_collection}",  # noqa: S608  constants
        (collection.id,),
    ).fetchall()
    remove_rejections(db, [row[0] for row in rejected])
    sightings = db.execute("DELETE FROM sightings WHERE collection_id = %s", (collection.id,)).rowcount
    collection_records.delete(db, collection)
    return insert_receipt(db, collection.id, subjects, faces, now, sightings=sightings)


def insert_receipt(
    db: Connection,
    collection_id: int,
    subjects: int,
    faces: int,
    now: float,
    token: str | None = None,
    *,
    sightings: int = 0,
) -> Receipt:
    """Insert a receipt for what this transaction erases. `token`: by default a new one."""
    receipt = Receipt(token or secrets.token_hex(16), subjects, faces, now, None, sightings)
    db.execute(
        "INSERT INTO receipts (token, collection_id, subjects, faces, requested_at, sightings)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (receipt.token, collection_id, subjects, faces, now, sightings),
    )
    return receipt


def receipt(db: Connection, token: str) -> Receipt:
    """Return the receipt with this token.

    Raises:
        NotFoundError.
    """
    statement = "SELECT token, subjects, faces, requested_at, erased_at, sightings FROM receipts WHERE token = %s"
    row = db.execute(statement, (token,)).fetchone()
    if row is None:
        raise NotFoundError("there is no such receipt")
    return Receipt(*row)


def receipts(db: Connection, after: str, limit: int) -> list[Receipt]:
    """Return at most `limit` receipts with tokens greater than `after`, sorted by token."""
    statement = "SELECT token, subjects, faces, requested_at, erased_at, sightings FROM receipts WHERE token > %s"
    return [Receipt(*row) for row in db.execute(statement + " ORDER BY token LIMIT %s", (after, limit))]


def insert_foreign_receipts(db: Connection, receipts: Sequence[Receipt]) -> int:
    """Insert receipts of another gallery, whose data this one never had; return the number of new ones."""
    cursor = db.cursor()
    cursor.executemany(
        "INSERT INTO receipts (token, collection_id, subjects, faces, requested_at, erased_at, sightings)"
        " VALUES (%s, 0, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        [(it.token, it.subjects, it.faces, it.requested_at, it.erased_at, it.sightings) for it in receipts],
    )
    return cursor.rowcount


def overwritten_receipts(db: Connection) -> list[str]:
    """Return the tokens of the receipts whose rows are overwritten, but may still be in files of the log."""
    rows = db.execute(
        "SELECT token FROM receipts WHERE erased_at IS NULL AND lsn IS NULL"
        " AND xid < (SELECT coalesce(min(xid), pg_snapshot_xmin(pg_current_snapshot())) FROM scrubs)"
    )
    return [row[0] for row in rows]


def put_position(db: Connection, tokens: Sequence[str], lsn: str) -> None:
    """Record the position in the log after which the log and the data files have nothing of these erasures."""
    db.execute("UPDATE receipts SET lsn = %s::pg_lsn WHERE token = ANY(%s)", (lsn, list(tokens)))


def last_position(db: Connection) -> str | None:
    """Return the last position of the receipts that are not finished; None where there is none."""
    return scalar(db, sql.SQL("SELECT max(lsn)::text FROM receipts WHERE erased_at IS NULL"))  # type: ignore[no-any-return]


def finish_receipts(db: Connection, clean_until: str, now: float) -> None:
    """Record that no file has anything of the erasures with positions up to `clean_until`."""
    db.execute("UPDATE receipts SET erased_at = %s WHERE erased_at IS NULL AND lsn <= %s::pg_lsn", (now, clean_until))
