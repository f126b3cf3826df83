"""Rows of erasures: the removals, which other processes and restored backups repeat, and the receipts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import apsw
import numpy as np

from index.embedded.store import collection_records, face_records
from index.embedded.store.ledger import Row
from index.errors import NotFoundError
from index.types import Collection, Ints, Receipt


@dataclass(frozen=True)
class Removal:
    """The erasure of a face; of a whole subject if `face_id` is 0; of a whole collection if both ids are 0.

    The ids of feedback and of sightings are negative.
    """

    seq: int
    collection_id: int
    subject_id: int
    face_id: int


# The subjects that a subject absorbed, and that those had absorbed before.
_ABSORBED = """
WITH RECURSIVE absorbed (id) AS (
    SELECT id FROM absorbed_subjects WHERE into_id = ?
    UNION SELECT earlier.id FROM absorbed JOIN absorbed_subjects AS earlier ON earlier.into_id = absorbed.id
) SELECT id FROM absorbed ORDER BY id
"""


def remove_faces(
    db: apsw.Connection,
    collection_id: int,
    ids: Sequence[int],
    *,
    subjects: int,
    now: float,
    sightings: int = 0,
    token: str | None = None,
) -> Receipt:
    """Delete these faces of the collection and return the receipt, which counts so many `subjects` and `sightings`.

    `token`: of the receipt; by default a new one.
    """
    db.execute("DELETE FROM faces WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(ids),))
    db.executemany("INSERT INTO removals (collection_id, face_id) VALUES (?, ?)", [(collection_id, id_) for id_ in ids])
    return insert_receipt(
        db, collection_id, Receipt(token or secrets.token_hex(16), subjects, len(ids), now, None, sightings)
    )


def remove_subjects(
    db: apsw.Connection, collection_id: int, subject_ids: Sequence[int], now: float
) -> tuple[Receipt, list[int]]:
    """Delete the subjects with all their faces and sightings, and return the receipt and the ids of the faces.

    The subjects that they absorbed are removed with them: a restored backup may still have those.
    """
    faces = [face for subject_id in subject_ids for face in face_records.ids_of_subject(db, subject_id)]
    sightings = db.execute(
        "SELECT count(*) FROM sightings WHERE subject_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(subject_ids)),),
    ).get
    receipt = remove_faces(db, collection_id, faces, subjects=len(subject_ids), now=now, sightings=sightings)
    for subject_id in subject_ids:
        absorbed = [row[0] for row in db.execute(_ABSORBED, (subject_id,))]
        db.execute("DELETE FROM subjects WHERE id = ?", (subject_id,))
        for number in (subject_id, *absorbed):
            _insert_removal(db, collection_id, number)
    return receipt, faces


def remove_collection(db: apsw.Connection, collection: Collection, now: float) -> Receipt:
    """Delete the collection and everything in it, and return the receipt."""
    subjects, faces = collection_records.counts(db, collection.id)
    sightings = db.execute("SELECT count(*) FROM sightings WHERE collection_id = ?", (collection.id,)).get
    db.execute("DELETE FROM collections WHERE id = ?", (collection.id,))
    db.execute("DELETE FROM removals WHERE collection_id = ?", (collection.id,))
    _insert_removal(db, collection.id)
    receipt = Receipt(secrets.token_hex(16), subjects, faces, now, None, sightings)
    return insert_receipt(db, collection.id, receipt, through=0)


def remove_sighting(db: apsw.Connection, collection_id: int, sighting_id: int, now: float) -> Receipt:
    """Delete the sighting and return the receipt."""
    db.execute("INSERT INTO removals (collection_id, face_id) VALUES (?, ?)", (collection_id, -sighting_id))
    return insert_receipt(db, collection_id, Receipt(secrets.token_hex(16), 0, 0, now, None, 1), through=0)


def _insert_removal(db: apsw.Connection, collection_id: int, subject_id: int = 0) -> None:
    """Insert the removal of a whole subject or of a whole collection."""
    db.execute(
        "INSERT INTO removals (collection_id, subject_id, face_id) VALUES (?, ?, 0)", (collection_id, subject_id)
    )


def insert_receipt(db: apsw.Connection, collection_id: int, receipt: Receipt, *, through: int | None = None) -> Receipt:
    """Insert the receipt for the removals up to `through`, by default the last one, and return it."""
    db.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
        (
            receipt.token,
            collection_id,
            receipt.subjects,
            receipt.faces,
            last_removal(db) if through is None else through,
            receipt.requested_at,
            receipt.sightings,
        ),
    )
    return receipt


def receipt(db: apsw.Connection, token: str) -> Receipt:
    """Return the receipt with this token.

    Raises:
        NotFoundError.
    """
    row = db.execute(
        "SELECT token, subjects, faces, requested_at, erased_at, sightings FROM receipts WHERE token = ?", (token,)
    ).fetchone()
    if row is None:
        raise NotFoundError("there is no such receipt")
    return Receipt(*row)


def receipts(db: apsw.Connection, after: str, limit: int) -> list[Receipt]:
    """Return at most `limit` receipts with tokens greater than `after`, sorted by token."""
    columns = "token, subjects, faces, requested_at, erased_at, sightings"
    rows = db.execute(f"SELECT {columns} FROM receipts WHERE token > ? ORDER BY token LIMIT ?", (after, limit))  # noqa: S608
    return [Receipt(*row) for row in rows]


def insert_foreign_receipts(db: apsw.Connection, receipts: Iterable[Receipt]) -> int:
    """Insert receipts of another gallery, whose data this one never had; return the number of new ones."""
    return len(
        list(
            db.executemany(
                "INSERT OR IGNORE INTO receipts VALUES (?, 0, ?, ?, 0, ?, ?, ?) RETURNING token",
                [(it.token, it.subjects, it.faces, it.requested_at, it.erased_at, it.sightings) for it in receipts],
            )
        )
    )


def unfinished_receipts(db: apsw.Connection) -> list[tuple[str, int, int]]:
    """Return token, collection id and last removal of each receipt whose data may still be in a file."""
    return [
        (row[0], row[1], row[2])
        for row in db.execute("SELECT token, collection_id, removals_through FROM receipts WHERE erased_at IS NULL")
    ]


def finish_receipts(db: apsw.Connection, tokens: Sequence[str], now: float) -> None:
    """Record that no file contains the erased data of these receipts."""
    db.executemany("UPDATE receipts SET erased_at = ? WHERE token = ?", [(now, token) for token in tokens])


def removals(db: apsw.Connection, after: int, through: int = 2**63 - 1, limit: int = -1) -> list[Removal]:
    """Return at most `limit` removals of all collections with `after` < seq <= `through`, sorted by seq."""
    rows = db.execute(
        "SELECT seq, collection_id, subject_id, face_id FROM removals WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (after, through, limit),
    )
    return [Removal(*row) for row in rows]


def removed_faces(db: apsw.Connection, collection_id: int, after: int) -> tuple[Ints, int]:
    """Return the ids of the faces removed since the removal `after`, and the number of the last of these removals.

    Feedback and sightings, with negative ids, are in no segment.
    """
    rows: list[Row] = db.execute(
        "SELECT face_id, seq FROM removals WHERE collection_id = ? AND seq > ? AND face_id > 0 ORDER BY seq",
        (collection_id, after),
    ).fetchall()
    return np.array([row[0] for row in rows], np.int64), rows[-1][1] if rows else after


def last_removal(db: apsw.Connection) -> int:
    """Return the number of the last removal of all collections, 0 if there is none."""
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM removals").get)


def _target(removal: Removal) -> tuple[str, int]:
    """Return the table and the id of the face, subject or collection of the removal."""
    if removal.face_id:
        return "faces", removal.face_id
    return ("subjects", removal.subject_id) if removal.subject_id else ("collections", removal.collection_id)


def target_exists(db: apsw.Connection, removal: Removal) -> bool:
    """Return whether the face, subject or collection of the removal exists."""
    table, number = _target(removal)
    return db.execute(f"SELECT 1 FROM {table} WHERE id = ?", (number,)).get is not None  # noqa: S608  a constant


def replay(db: apsw.Connection, removal: Removal) -> None:
    """Repeat a removal in a ledger that was restored from a backup; its target may be missing."""
    db.execute(
        "INSERT OR IGNORE INTO removals (seq, collection_id, subject_id, face_id) VALUES (?, ?, ?, ?)",
        (removal.seq, removal.collection_id, removal.subject_id, removal.face_id),
    )
    table, number = _target(removal)
    db.execute(f"DELETE FROM {table} WHERE id = ?", (number,))  # noqa: S608  a constant


def skip_ids(db: apsw.Connection, gap: Callable[[], int]) -> None:
    """Make the next id of each table exceed all earlier ids, including removed ones, by more than the next `gap`."""
    greatest = db.execute(
        "SELECT coalesce(max(collection_id), 0), coalesce(max(subject_id), 0), coalesce(max(face_id), 0),"
        " coalesce(max(seq), 0), 0, 0 FROM removals"
    ).get
    tables = ("collections", "subjects", "faces", "removals", "sightings", "alerts")
    for table, removed in zip(tables, greatest, strict=True):
        last = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?", (table,)).get
        db.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, max(removed, last) + gap()))
