"""Rows of merges: what each moved, and the absorbed subjects with what an undo creates again.

The row of an absorbed subject has the sealed columns of the subject's row. Ids of rejected faces are negative. A face
that changes its subject moves to another partition; a transaction that waits for its row is aborted and repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from index.postgres.store import collection_records, erasure_records, face_records, face_tables, subject_records
from index.postgres.store.database import Connection, Row
from index.types import Collection, Merge, Receipt, Subject
from index.validation import ROUNDING

_MERGE = (
    "SELECT merges.id, merges.token, merges.subject_id, merges.created_at, undo_until, undone_at, restored,"
    " (SELECT count(*) FROM merged_faces WHERE merge_id = merges.id AND face_id > 0) FROM merges"
)
_SUSPEND = """
UPDATE rejections SET suspended_by = %(merge)s
WHERE subject_id = ANY(%(subjects)s) AND suspended_by IS NULL AND EXISTS (
    SELECT FROM {faces} AS faces WHERE faces.subject_id = ANY(%(subjects)s)
    AND faces.subject_id != rejections.subject_id AND faces.vector <#> rejections.vector <= %(rounding)s - 1
)
"""
_SAME_FACES = """
SELECT id FROM rejections WHERE subject_id = %(subject)s AND suspended_by IS NULL AND EXISTS (
    SELECT FROM {faces} AS faces WHERE faces.id = ANY(%(faces)s)
    AND faces.vector <#> rejections.vector <= %(rounding)s - 1
) ORDER BY id
"""
_RETURN_SIGHTINGS = """
UPDATE sightings SET subject_id = %s WHERE subject_id = %s
AND id IN (SELECT sighting_id FROM merged_sightings WHERE merge_id = %s AND subject_id = %s)
"""


def insert(db: Connection, collection: Collection, kept: int, absorbed: Sequence[int], merge: Merge) -> list[int]:
    """Let the subject `kept` absorb others; insert `merge`, whose id is ignored; return the ids of the moved faces.

    Lock the subjects first.
    """
    row = db.execute(
        "INSERT INTO merges (collection_id, token, subject_id, created_at, undo_until) VALUES (%s, %s, %s, %s, %s)"
        " RETURNING id",
        (collection.id, merge.token, kept, merge.created_at, merge.undo_until),
    ).fetchone()
    assert row is not None  # noqa: S101  one row is inserted
    number, ids = row[0], list(absorbed)
    face_records.lock_of_subjects(db, collection.id, ids)
    values = {"merge": number, "subjects": [kept, *ids], "rounding": ROUNDING}
    db.execute(sql.SQL(_SUSPEND).format(faces=face_tables.faces(collection.id)), values)
    moved = db.execute(
        sql.SQL(
            "INSERT INTO merged_faces SELECT %s, id, subject_id FROM {} WHERE subject_id = ANY(%s)"
            " UNION ALL SELECT %s, -id, subject_id FROM rejections WHERE subject_id = ANY(%s) RETURNING face_id"
        ).format(face_tables.faces(collection.id)),
        (number, ids, number, ids),
    )
    faces = sorted(row[0] for row in moved)
    give(db, collection.id, faces, kept)
    db.execute(
        "INSERT INTO merged_sightings SELECT %s, id, subject_id FROM sightings WHERE subject_id = ANY(%s)",
        (number, ids),
    )
    db.execute("UPDATE sightings SET subject_id = %s WHERE subject_id = ANY(%s)", (kept, ids))
    db.execute(
        "INSERT INTO absorbed_subjects (id, collection_id, merge_id, lookup, seal, sealed, created_at, expires_at)"
        " SELECT id, collection_id, %s, lookup, seal, sealed, created_at, expires_at FROM subjects WHERE id = ANY(%s)",
        (number, ids),
    )
    db.execute("DELETE FROM subjects WHERE id = ANY(%s)", (ids,))
    collection_records.add_counts(db, collection.id, subjects=-len(ids))
    return faces


def give(db: Connection, collection_id: int, faces: Sequence[int], subject_id: int) -> None:
    """Make these faces, which are locked, and rejected faces those of the subject; also their new vectors, if any."""
    enrolled, rejected = [face for face in faces if face > 0], [-face for face in faces if face < 0]
    tables = [face_tables.faces(collection_id)]
    if db.execute("SELECT 1 FROM reembeddings WHERE collection_id = %s", (collection_id,)).fetchone():
        tables.append(face_tables.reembedded(collection_id))
    for table in tables:
        statement = sql.SQL("UPDATE {} SET subject_id = %s WHERE id = ANY(%s)").format(table)
        db.execute(statement, (subject_id, enrolled))
    db.execute("UPDATE rejections SET subject_id = %s WHERE id = ANY(%s)", (subject_id, rejected))


def rejections_of_faces(db: Connection, collection_id: int, subject_id: int, faces: Sequence[int]) -> list[int]:
    """Return the ids of the subject's rejected faces that are one of these enrolled faces."""
    values = {"subject": subject_id, "faces": list(faces), "rounding": ROUNDING}
    rows = db.execute(sql.SQL(_SAME_FACES).format(faces=face_tables.faces(collection_id)), values)
    return [row[0] for row in rows]


def find(db: Connection, collection_id: int, token: str, now: float, *, lock: bool = False) -> tuple[Merge, int] | None:
    """Return the merge with this token and the id of the kept subject; None after the time to undo it.

    `lock`: until the transaction ends.
    """
    statement = f"{_MERGE} WHERE collection_id = %s AND token = %s AND undo_until > %s"
    row = db.execute(sql.SQL(statement + (" FOR UPDATE" if lock else "")), (collection_id, token, now)).fetchone()
    return None if row is None else (_merge(db, row), row[2])


def of_subject(db: Connection, kept: int, now: float) -> list[Merge]:
    """Return the merges in which the subject absorbed others and that can be undone, the last first."""
    rows = db.execute(
        sql.SQL(f"{_MERGE} WHERE subject_id = %s AND undone_at IS NULL AND undo_until > %s ORDER BY id DESC"),
        (kept, now),
    ).fetchall()
    return [_merge(db, row) for row in rows]


def page(db: Connection, collection_id: int, after: int, limit: int, now: float) -> list[Merge]:
    """Return at most `limit` merges with ids above `after` that can be undone, oldest first."""
    rows = db.execute(
        sql.SQL(
            f"{_MERGE} JOIN subjects ON subjects.id = subject_id WHERE merges.collection_id = %s AND merges.id > %s"
            " AND undone_at IS NULL AND undo_until > %s AND (expires_at IS NULL OR expires_at > %s)"
            " ORDER BY merges.id LIMIT %s"
        ),
        (collection_id, after, now, now, limit),
    ).fetchall()
    return [_merge(db, row) for row in rows]


def _merge(db: Connection, row: Row) -> Merge:
    number, token, kept, created_at, undo_until, undone_at, restored, faces = row
    subjects = subject_records.by_id(db, [kept, *restored])
    key = subjects.pop(kept).key if kept in subjects else ""
    keys = [subject.key for subject, _ in absorbed_subjects(db, number)] + [
        subject.key for subject in subjects.values()
    ]
    return Merge(number, token, key, tuple(keys), faces, created_at, undo_until, undone_at)


def absorbed_subjects(db: Connection, merge_id: int) -> list[tuple[Subject, bytes]]:
    """Return the subjects that were absorbed in the merge with their lookups, by id, unless it was undone."""
    rows = db.execute(
        "SELECT id, seal, sealed, created_at, expires_at, lookup FROM absorbed_subjects WHERE merge_id = %s"
        " ORDER BY id",
        (merge_id,),
    )
    return [(subject_records.read(row[:5]), row[5]) for row in rows]


def restore(db: Connection, collection: Collection, merge: Merge, kept: int, now: float) -> tuple[list[int], list[int]]:
    """Undo the merge; return the ids of the restored subjects, and of the faces that moved back.

    Lock the kept subject, and those that have the key of an absorbed one.
    """
    subjects: list[int] = []
    returned: list[int] = []
    for subject, _ in absorbed_subjects(db, merge.id):
        subject_id = _restore_subject(db, collection.id, subject)
        faces = _to_return(db, collection.id, merge.id, subject.id, kept)
        give(db, collection.id, faces, subject_id)
        db.execute(_RETURN_SIGHTINGS, (subject_id, kept, merge.id, subject.id))
        subjects.append(subject_id)
        returned += faces
    db.execute("DELETE FROM absorbed_subjects WHERE merge_id = %s", (merge.id,))
    db.execute("UPDATE rejections SET suspended_by = NULL WHERE suspended_by = %s", (merge.id,))
    db.execute("UPDATE merges SET undone_at = %s, restored = %s WHERE id = %s", (now, subjects, merge.id))
    return subjects, returned


def _restore_subject(db: Connection, collection_id: int, subject: Subject) -> int:
    """Create the absorbed subject again and return its id, or that of a subject that has its key now."""
    row = db.execute(
        "INSERT INTO subjects (id, collection_id, lookup, seal, sealed, created_at, expires_at)"
        " OVERRIDING SYSTEM VALUE SELECT id, collection_id, lookup, seal, sealed, created_at, expires_at"
        " FROM absorbed_subjects WHERE id = %s"
        " ON CONFLICT (collection_id, lookup) DO UPDATE SET lookup = excluded.lookup RETURNING id",
        (subject.id,),
    ).fetchone()
    assert row is not None  # noqa: S101  one row is inserted or updated
    if row[0] == subject.id:
        collection_records.add_counts(db, collection_id, subjects=1)
        subject_records.insert_values(db, collection_id, {subject.id: subject.metadata})
    return int(row[0])


def _to_return(db: Connection, collection_id: int, merge_id: int, absorbed: int, kept: int) -> list[int]:
    """Return the faces of an absorbed subject that are the kept subject's still; lock the enrolled ones."""
    moved = "SELECT face_id FROM merged_faces WHERE merge_id = %s AND subject_id = %s"
    values = (kept, merge_id, absorbed)
    statement = sql.SQL(f"SELECT id FROM {{}} WHERE subject_id = %s AND id IN ({moved}) ORDER BY id FOR UPDATE")  # noqa: S608
    enrolled = db.execute(statement.format(face_tables.faces(collection_id)), values).fetchall()
    rejected = db.execute(f"SELECT -id FROM rejections WHERE subject_id = %s AND -id IN ({moved})", values)  # noqa: S608
    return [row[0] for row in (*enrolled, *rejected)]


def keep_at(db: Connection, faces: Sequence[int]) -> None:
    """Let no undo of a merge move these faces, because they were moved since."""
    db.execute("DELETE FROM merged_faces WHERE face_id = ANY(%s)", (list(faces),))


def take_ended(db: Connection, now: float, limit: int) -> list[tuple[int, int, str]]:
    """Lock at most `limit` merges that cannot be undone any more; return id, collection id and token, oldest first."""
    rows = db.execute(
        "SELECT id, collection_id, token FROM merges WHERE undo_until <= %s ORDER BY undo_until, id LIMIT %s"
        " FOR UPDATE SKIP LOCKED",
        (now, limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def forget(db: Connection, collection_id: int, merge_id: int, token: str, now: float) -> tuple[list[int], Receipt]:
    """Erase what an undo of the merge needs; return the ids of the absorbed subjects, and a receipt with the token.

    The suspended rejected faces are erased with it. Merges into the absorbed subjects cannot be undone any more,
    either: they end now.
    """
    rows = db.execute("DELETE FROM absorbed_subjects WHERE merge_id = %s RETURNING id", (merge_id,)).fetchall()
    subjects = sorted(row[0] for row in rows)
    db.execute("UPDATE merges SET undo_until = least(undo_until, %s) WHERE subject_id = ANY(%s)", (now, subjects))
    suspended = db.execute("SELECT id FROM rejections WHERE suspended_by = %s", (merge_id,)).fetchall()
    erasure_records.remove_rejections(db, [row[0] for row in suspended])
    db.execute("DELETE FROM merges WHERE id = %s", (merge_id,))
    receipt = erasure_records.insert_receipt(db, collection_id, len(subjects), len(suspended), now, token)
    return subjects, receipt
