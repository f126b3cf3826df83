"""Rows of the faces of a collection."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence

from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import collection_records, face_tables, subject_records
from index.postgres.store.database import Connection, Row
from index.postgres.store.sealing import seal, unseal
from index.types import Collection, Face, Floats, NewFace, Subject
from index.validation import check_object, normalised, read_object, unit_vectors


def insert(
    db: Connection, collection: Collection, faces: Sequence[NewFace], now: float
) -> tuple[list[Face], list[int]]:
    """Insert the faces; return them in their order, and the ids of their subjects, ascending.

    Subjects that do not exist are created, and all are locked until the transaction ends: so the ids of a subject's
    faces increase in the order of the commits.

    Raises:
        InvalidError: a vector, a key or details cannot be stored.
    """
    vectors: Iterable[Floats] = unit_vectors([face.vector for face in faces], collection.dimensions) if faces else ()
    for face in faces:
        check_object(face.details, "details")
    subjects = subject_records.ids_for_enrolment(db, collection.id, {face.subject for face in faces}, now)
    ids = [row[0] for row in db.execute("SELECT nextval('face_ids') FROM generate_series(1, %s)", (len(faces),))]
    rows: list[Row] = []
    inserted: list[Face] = []
    for number, face, vector in zip(ids, faces, vectors, strict=True):
        token, key = secrets.token_hex(16), normalised(face.subject)
        sealed = (None, None) if face.crop is None else seal(face.crop)
        details = json.dumps(dict(face.details))
        rows.append((number, subjects[key], token, details, now, vector, *sealed))
        inserted.append(Face(number, token, key, read_object(details), now))
    statement = "INSERT INTO {} (id, subject_id, token, details, created_at, vector, seal, crop)"
    values = " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
    db.cursor().executemany(sql.SQL(statement + values).format(face_tables.faces(collection.id)), rows)
    collection_records.add_counts(db, collection.id, faces=len(rows))
    return inserted, sorted(set(subjects.values()))


def of_subject(db: Connection, collection_id: int, subject: Subject, after: int, limit: int) -> list[Face]:
    """Return at most `limit` faces of the subject (-1: all) with ids above `after`, ascending."""
    statement = sql.SQL(
        "SELECT id, token, details, created_at FROM {} WHERE subject_id = %s AND id > %s ORDER BY id LIMIT %s"
    ).format(face_tables.faces(collection_id))
    rows = db.execute(statement, (subject.id, after, None if limit < 0 else limit))
    return [
        Face(number, token, subject.key, read_object(details), created_at)
        for number, token, details, created_at in rows
    ]


def crop(db: Connection, collection_id: int, token: str) -> bytes:
    """Return the encoded crop of the face.

    Raises:
        NotFoundError: no such face, or it has no crop. CorruptError: the crop is damaged.
    """
    statement = sql.SQL("SELECT seal, crop FROM {} WHERE token = %s").format(face_tables.faces(collection_id))
    row = db.execute(statement, (token,)).fetchone()
    if row is None:
        raise NotFoundError(f"there is no face {token!r}")
    if row[0] is None:
        raise NotFoundError(f"no crop is stored for the face {token!r}")
    return unseal(row[0], row[1])


def ids_of_tokens(db: Connection, collection_id: int, tokens: Sequence[str]) -> dict[int, int]:
    """Return the subject's id of each face by the face's id, ascending; lock the faces until the transaction ends.

    Raises:
        NotFoundError: one of them does not exist.
    """
    statement = sql.SQL("SELECT id, subject_id, token FROM {} WHERE token = ANY(%s) ORDER BY id FOR UPDATE")
    rows = db.execute(statement.format(face_tables.faces(collection_id)), (list(tokens),)).fetchall()
    if missing := set(tokens) - {row[2] for row in rows}:
        raise NotFoundError(f"there is no face {min(missing)!r}")
    return {row[0]: row[1] for row in rows}


def lock_of_subjects(db: Connection, collection_id: int, subject_ids: Sequence[int]) -> list[int]:
    """Return the ids of the subjects' faces, ascending; lock the faces until the transaction ends."""
    statement = sql.SQL("SELECT id FROM {} WHERE subject_id = ANY(%s) ORDER BY id FOR UPDATE")
    return [row[0] for row in db.execute(statement.format(face_tables.faces(collection_id)), (list(subject_ids),))]
