"""Rows of the faces of a collection."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from pgvector import Vector
from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import collection_records, face_tables, subject_records
from index.postgres.store.database import Connection, Row, execute_each
from index.postgres.store.sealing import seal, unseal
from index.records import FaceRecord, RejectionRecord, new_faces, validated_face
from index.types import Collection, Face, Floats, NewFace, Subject
from index.validation import check_object, normalised, read_object, unit_vectors


def insert(
    db: Connection, collection: Collection, faces: Sequence[NewFace], subjects: Mapping[str, int], now: float
) -> tuple[list[Face], list[int]]:
    """Insert the faces; return them in their order, and the ids of their subjects, ascending.

    `subjects`: the ids by key in Unicode form C. Lock them first: so the ids of a subject's faces increase in the order
    of the commits.

    Raises:
        InvalidError: a vector or details cannot be stored.
    """
    vectors: Iterable[Floats] = unit_vectors([face.vector for face in faces], collection.dimensions) if faces else ()
    for face in faces:
        check_object(face.details, "details")
    rows: list[Row] = [
        (
            subjects[normalised(face.subject)],
            secrets.token_hex(16),
            json.dumps(dict(face.details)),
            now,
            vector,
            *_sealed(face.crop),
        )
        for face, vector in zip(faces, vectors, strict=True)
    ]
    inserted = [
        Face(number, token, normalised(face.subject), read_object(details), now)
        for number, face, (_, token, details, *_) in zip(_insert(db, collection, rows), faces, rows, strict=True)
    ]
    return inserted, sorted({row[0] for row in rows})


def insert_records(
    db: Connection, collection: Collection, faces: Sequence[FaceRecord], *, create_subjects: bool
) -> tuple[list[int], list[int]]:
    """Enrol those of the faces that are not enrolled yet, with their tokens; return their ids and their subjects'.

    `create_subjects`: create the subjects that do not exist, else leave out their faces. Existing subjects are kept.
    All subjects are locked until the transaction ends.

    Raises:
        ConflictError: another face has one of the tokens. InvalidError: see `validated_face`.
    """
    faces = [replace(it, subject=normalised(it.subject)) for it in faces]
    faces = [validated_face(face, collection.dimensions) for face in faces]
    first: dict[str, FaceRecord] = {}
    for face in faces:
        first.setdefault(face.subject, face)
    if create_subjects:
        subject_records.insert_missing(db, collection.id, first)
    subjects = subject_records.existing(db, collection.id, first)
    faces = [face for face in faces if face.subject in subjects]
    new = new_faces(faces, _enrolled(db, collection, [face.token for face in faces]), subjects.__getitem__)
    rows: list[Row] = [
        (
            subjects[face.subject],
            face.token,
            face.details,
            face.created_at,
            np.frombuffer(face.vector, "<f4"),
            *_sealed(face.crop),
        )
        for face in new
    ]
    return _insert(db, collection, rows), sorted({subjects[face.subject] for face in new})


def _enrolled(db: Connection, collection: Collection, tokens: list[str]) -> dict[str, tuple[int, bytes]]:
    """Return the subject's id and the vector of each of these faces that is enrolled; 0 if in another collection."""
    enrolled = {}
    for other in collection_records.page(db, "", -1):
        # Locked, so that it is not dropped meanwhile.
        if other.id == collection.id or collection_records.find_id(db, other.id, "share"):
            statement = sql.SQL("SELECT token, subject_id, vector FROM {} WHERE token = ANY(%s)")
            for token, subject_id, vector in db.execute(statement.format(face_tables.faces(other.id)), (tokens,)):
                enrolled[token] = (subject_id, _vector_bytes(vector)) if other.id == collection.id else (0, b"")
    return enrolled


def _insert(db: Connection, collection: Collection, rows: Sequence[Row]) -> list[int]:
    """Insert rows of subject's id, token, details, time, vector, seal and sealed crop; return their ids, ascending."""
    statement = "INSERT INTO {} (subject_id, token, details, created_at, vector, seal, crop)"
    values = " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id"
    table = face_tables.faces(collection.id)
    inserted = execute_each(db, sql.SQL(statement + values).format(table), rows) if rows else []
    collection_records.add_counts(db, collection.id, faces=len(rows))
    return [row[0] for row in inserted]


def insert_rejections(
    db: Connection, collection_id: int, rows: Sequence[tuple[int, RejectionRecord]]
) -> list[RejectionRecord]:
    """Insert rejected faces, and return them with their new ids; each row is the id of the subject and the face.

    Lock the subjects first: so the ids of a subject's rejected faces increase in the order of the commits.
    """
    faces = [replace(face, id=number) for number, (_, face) in zip(_new_ids(db, len(rows)), rows, strict=True)]
    db.cursor().executemany(
        "INSERT INTO rejections (id, collection_id, subject_id, token, created_at, vector, seal, crop)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                face.id,
                collection_id,
                subject_id,
                face.token,
                face.created_at,
                np.frombuffer(face.vector, "<f4"),
                *_sealed(face.crop),
            )
            for face, (subject_id, _) in zip(faces, rows, strict=True)
        ],
    )
    return faces


def _new_ids(db: Connection, count: int) -> list[int]:
    return [row[0] for row in db.execute("SELECT nextval('face_ids') FROM generate_series(1, %s)", (count,))]


def _sealed(crop: bytes | None) -> tuple[bytes | None, bytes | None]:
    return (None, None) if crop is None else seal(crop)


def read_records(db: Connection, collection_id: int, after: int, limit: int, now: float) -> list[FaceRecord]:
    """Return at most `limit` faces with ids above `after`, ascending, without those of subjects expired at `now`.

    Raises:
        CorruptError: a row is damaged.
    """
    statement = sql.SQL(
        f"SELECT {subject_records.COLUMNS}, own.id, token, details, own.created_at, vector, own.seal, crop"  # noqa: S608
        " FROM {} AS own JOIN subjects ON subjects.id = subject_id"
        " WHERE own.id > %s AND (expires_at IS NULL OR expires_at > %s) ORDER BY own.id LIMIT %s"
    ).format(face_tables.faces(collection_id))
    records = []
    for row in db.execute(statement, (after, now, limit), binary=True):
        number, token, details, created_at, vector, key, crop = row[5:]
        _, subject, name, metadata, _, expires_at = subject_records.unsealed(row[:5])
        records.append(
            FaceRecord(
                number,
                subject,
                name,
                metadata,
                expires_at,
                token,
                details,
                created_at,
                _vector_bytes(vector),
                None if key is None else unseal(key, crop),
            )
        )
    return records


def read_rejections(db: Connection, collection_id: int, after: int, limit: int, now: float) -> list[RejectionRecord]:
    """Return at most `limit` rejected faces with ids above `after`, without suspended ones; see `read_records`."""
    rows = db.execute(
        f"SELECT {subject_records.COLUMNS}, own.id, token, own.created_at, vector, own.seal, crop"  # noqa: S608
        " FROM rejections AS own JOIN subjects ON subjects.id = subject_id"
        " WHERE own.collection_id = %s AND own.id > %s AND suspended_by IS NULL"
        " AND (expires_at IS NULL OR expires_at > %s) ORDER BY own.id LIMIT %s",
        (collection_id, after, now, limit),
    )
    records = []
    for row in rows:
        number, token, created_at, vector, key, crop = row[5:]
        subject = subject_records.unsealed(row[:5])[1]
        plain_crop = None if key is None else unseal(key, crop)
        records.append(RejectionRecord(number, subject, token, created_at, _vector_bytes(vector), plain_crop))
    return records


def _vector_bytes(vector: Vector) -> bytes:
    return vector.to_numpy().astype("<f4").tobytes()


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
