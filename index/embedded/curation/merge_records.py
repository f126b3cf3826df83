"""Rows of merges: what each moved, and the absorbed subjects with what an undo creates again.

The row of an absorbed subject has the columns of the subject's row unchanged, so that those of an encrypted collection
stay encrypted; an undo gives the subject its id again, with which they are bound. Ids of rejected faces are negative.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import apsw

from index.embedded.curation import rejected_faces
from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import erasure_records, subject_records, vector_records
from index.embedded.store.ledger import Row
from index.types import Collection, Merge, Receipt
from index.validation import normalised

_MERGE = (
    "SELECT merges.id, merges.token, merges.subject_id, merges.created_at, undo_until, undone_at,"
    " (SELECT count(*) FROM merged_faces WHERE merge_id = merges.id AND face_id > 0) FROM merges"
)
_COLUMNS = "key, name, metadata, created_at, expires_at, sealed"  # of a subject
_CLEAR = (
    "merge_id = NULL, key = NULL, name = NULL, metadata = NULL, created_at = NULL, expires_at = NULL, sealed = NULL"
)
_INSERT_MOVED = """
INSERT INTO merged_faces
SELECT ?1, id, subject_id FROM faces WHERE subject_id IN (SELECT value FROM json_each(?2))
UNION ALL SELECT ?1, -id, subject_id FROM rejections WHERE subject_id IN (SELECT value FROM json_each(?2))
RETURNING face_id
"""
_RETURN_SIGHTINGS = """
UPDATE sightings SET subject_id = ?4 WHERE subject_id = ?3
AND id IN (SELECT sighting_id FROM merged_sightings WHERE merge_id = ?1 AND subject_id = ?2)
"""
# Faces of an absorbed subject that are the kept subject's still.
_TO_RETURN = """
SELECT face_id FROM merged_faces AS moved JOIN faces ON faces.id = face_id
WHERE merge_id = ?1 AND moved.subject_id = ?2 AND faces.subject_id = ?3
UNION ALL SELECT face_id FROM merged_faces AS moved JOIN rejections ON rejections.id = -face_id
WHERE merge_id = ?1 AND moved.subject_id = ?2 AND rejections.subject_id = ?3
"""


def insert(db: apsw.Connection, collection: Collection, kept: int, absorbed: Sequence[int], merge: Merge) -> list[int]:
    """Let the subject `kept` absorb others; insert `merge`, whose id is ignored; return the ids of the moved faces."""
    number = db.execute(
        "INSERT INTO merges (collection_id, token, subject_id, created_at, undo_until) VALUES (?, ?, ?, ?, ?)"
        " RETURNING id",
        (collection.id, merge.token, kept, merge.created_at, merge.undo_until),
    ).get
    suspended = rejected_faces.contradicted(db, collection, [kept, *absorbed])
    db.executemany("UPDATE rejections SET suspended_by = ? WHERE id = -?", [(number, face) for face in suspended])
    rows: list[Row] = db.execute(_INSERT_MOVED, (number, json.dumps(list(absorbed)))).fetchall()
    faces = [row[0] for row in rows]
    _give(db, collection.id, faces, kept)
    for subject_id in absorbed:
        db.execute(
            "INSERT INTO merged_sightings SELECT ?, id, subject_id FROM sightings WHERE subject_id = ?",
            (number, subject_id),
        )
        db.execute("UPDATE sightings SET subject_id = ? WHERE subject_id = ?", (kept, subject_id))
        db.execute(
            f"INSERT INTO absorbed_subjects (id, collection_id, into_id, merge_id, {_COLUMNS})"  # noqa: S608  constants
            f" SELECT id, collection_id, ?, ?, {_COLUMNS} FROM subjects WHERE id = ?",
            (kept, number, subject_id),
        )
        # Another key first: pending items of bulk jobs under the subject's key must not be erased with its row.
        db.execute("UPDATE subjects SET key = ? || id WHERE id = ?", (merge.token, subject_id))
        db.execute("DELETE FROM subjects WHERE id = ?", (subject_id,))
    return faces


def _give(db: apsw.Connection, collection_id: int, faces: Sequence[int], subject_id: int) -> None:
    """Make these faces and rejected faces those of the subject."""
    vector_records.reassign(db, collection_id, [face for face in faces if face > 0], subject_id)
    rejected = [(subject_id, -face) for face in faces if face < 0]
    db.executemany("UPDATE rejections SET subject_id = ? WHERE id = ?", rejected)


def find(db: apsw.Connection, collection_id: int, token: str, now: float) -> tuple[Merge, int] | None:
    """Return the merge with this token and the id of the kept subject; None after the time to undo it."""
    row: Row | None = db.execute(
        f"{_MERGE} WHERE collection_id = ? AND token = ? AND undo_until > ?", (collection_id, token, now)
    ).fetchone()
    return None if row is None else (_merge(db, cipher_of(db, collection_id), row), row[2])


def of_subject(db: apsw.Connection, collection_id: int, kept: int, now: float) -> list[Merge]:
    """Return the merges in which the subject absorbed others and that can be undone, the last first."""
    rows: list[Row] = db.execute(
        f"{_MERGE} WHERE subject_id = ? AND undone_at IS NULL AND undo_until > ? ORDER BY id DESC", (kept, now)
    ).fetchall()
    return [_merge(db, cipher_of(db, collection_id), row) for row in rows]


def page(db: apsw.Connection, collection_id: int, after: int, limit: int, now: float) -> list[Merge]:
    """Return at most `limit` merges with ids above `after` that can be undone, oldest first."""
    rows: list[Row] = db.execute(
        f"{_MERGE} JOIN subjects ON subjects.id = subject_id WHERE merges.collection_id = ? AND merges.id > ?"
        " AND undone_at IS NULL AND undo_until > ?3 AND (expires_at IS NULL OR expires_at > ?3)"
        " ORDER BY merges.id LIMIT ?4",
        (collection_id, after, now, limit),
    ).fetchall()
    return [_merge(db, cipher_of(db, collection_id), row) for row in rows]


def _merge(db: apsw.Connection, cipher: Cipher, row: Row) -> Merge:
    number, token, kept, created_at, undo_until, undone_at, faces = row
    restored = db.execute("SELECT subject_id FROM restored_subjects WHERE merge_id = ? ORDER BY subject_id", (number,))
    subjects = subject_records.by_id(db, cipher, [kept, *(row[0] for row in restored)])
    key = subjects.pop(kept).key if kept in subjects else ""
    absorbed = [key for _, key in _absorbed(db, cipher, number)] + [subject.key for subject in subjects.values()]
    return Merge(number, token, key, tuple(absorbed), faces, created_at, undo_until, undone_at)


def _absorbed(db: apsw.Connection, cipher: Cipher, merge_id: int) -> list[tuple[int, str]]:
    """Return id and key of the subjects that were absorbed in the merge, unless it was undone."""
    rows: list[Row] = db.execute(
        "SELECT id, key, name, metadata, sealed FROM absorbed_subjects WHERE merge_id = ? ORDER BY id", (merge_id,)
    ).fetchall()
    return [(number, subject_records.decrypt(cipher, number, *stored)[0]) for number, *stored in rows]


def restore(
    db: apsw.Connection, collection_id: int, merge: Merge, kept: int, now: float
) -> tuple[list[int], list[int]]:
    """Undo the merge; return the ids of the restored subjects, and of the faces that moved back."""
    subjects: list[int] = []
    returned: list[int] = []
    for number, key in _absorbed(db, cipher_of(db, collection_id), merge.id):
        subject_id = _restore_subject(db, collection_id, number, key)
        rows: list[Row] = db.execute(_TO_RETURN, (merge.id, number, kept)).fetchall()
        faces = [row[0] for row in rows]
        _give(db, collection_id, faces, subject_id)
        db.execute(_RETURN_SIGHTINGS, (merge.id, number, kept, subject_id))
        subjects.append(subject_id)
        returned += faces
    db.execute("UPDATE rejections SET suspended_by = NULL WHERE suspended_by = ?", (merge.id,))
    db.executemany("INSERT INTO restored_subjects VALUES (?, ?)", [(merge.id, number) for number in subjects])
    db.execute("UPDATE merges SET undone_at = ? WHERE id = ?", (now, merge.id))
    return subjects, returned


def _restore_subject(db: apsw.Connection, collection_id: int, number: int, key: str) -> int:
    """Create the absorbed subject again and return its id, or that of a subject that has its key now."""
    present = db.execute(
        "SELECT subjects.id FROM subjects JOIN absorbed_subjects AS old USING (collection_id, key) WHERE old.id = ?",
        (number,),
    ).get
    if present is not None:
        db.execute(f"UPDATE absorbed_subjects SET into_id = ?, {_CLEAR} WHERE id = ?", (present, number))  # noqa: S608
        return int(present)
    db.execute(
        f"INSERT INTO subjects (id, collection_id, {_COLUMNS})"  # noqa: S608  constants
        f" SELECT id, collection_id, {_COLUMNS} FROM absorbed_subjects WHERE id = ?",
        (number,),
    )
    db.execute("DELETE FROM absorbed_subjects WHERE id = ?", (number,))
    if (form_c := normalised(key)) != key:
        lookup = cipher_of(db, collection_id).lookup(form_c)
        db.execute("INSERT INTO clashes VALUES (?, ?, ?)", (number, collection_id, lookup))
    return number


def keep_at(db: apsw.Connection, faces: Iterable[int]) -> None:
    """Let no undo of a merge move these faces, because they were moved since."""
    db.executemany("DELETE FROM merged_faces WHERE face_id = ?", [(face,) for face in faces])


def ended(db: apsw.Connection, now: float, limit: int) -> list[tuple[int, int]]:
    """Return id and collection id of at most `limit` merges that cannot be undone any more, oldest first."""
    rows = db.execute(
        "SELECT id, collection_id FROM merges WHERE undo_until <= ? ORDER BY undo_until, id LIMIT ?", (now, limit)
    )
    return [(row[0], row[1]) for row in rows]


def forget(db: apsw.Connection, collection_id: int, merge_id: int, now: float) -> tuple[list[int], Receipt]:
    """Erase what an undo of the merge needs; return the ids of the absorbed subjects, and a receipt.

    The receipt has the merge's token, and the suspended rejected faces are erased with it. Merges into the absorbed
    subjects cannot be undone any more, either: they end now.
    """
    token = str(db.execute("SELECT token FROM merges WHERE id = ?", (merge_id,)).get)
    rows: list[Row] = db.execute("SELECT id FROM absorbed_subjects WHERE merge_id = ?", (merge_id,)).fetchall()
    subjects = [row[0] for row in rows]
    db.executemany(
        "UPDATE merges SET undo_until = min(undo_until, ?) WHERE subject_id = ?", [(now, number) for number in subjects]
    )
    suspended: list[Row] = db.execute("SELECT -id FROM rejections WHERE suspended_by = ?", (merge_id,)).fetchall()
    db.execute(f"UPDATE absorbed_subjects SET {_CLEAR} WHERE merge_id = ?", (merge_id,))  # noqa: S608  constants
    db.execute("DELETE FROM merges WHERE id = ?", (merge_id,))
    faces = [row[0] for row in suspended]
    receipt = erasure_records.remove_faces(db, collection_id, faces, subjects=len(subjects), now=now, token=token)
    return subjects, receipt
