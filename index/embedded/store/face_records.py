"""Rows of the faces and their crops; those of an encrypted collection are encrypted and decrypted here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import apsw
import numpy as np

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import collection_records, subject_records
from index.embedded.store.ledger import Row
from index.errors import NotFoundError
from index.records import FaceRecord, new_faces, validated_face
from index.types import Face, Ints, NewFace, Subject
from index.validation import (
    check_key,
    check_object,
    read_object,
    unit_vectors,
)

# The faces come first: a search asks for a few, and only their rows and their subjects' rows must be read.
_OWNERS = f"""
SELECT faces.id, token, {subject_records.COLUMNS} FROM (VALUES %s) AS wanted
CROSS JOIN faces ON faces.id = wanted.column1 CROSS JOIN subjects ON subjects.id = subject_id
"""  # noqa: S608
# Faces per statement; passing them as a JSON list would take twice as long.
_OWNERS_BATCH = 256


def of_subject(
    db: apsw.Connection, collection_id: int, subject: Subject, after: int = 0, limit: int = -1
) -> list[Face]:
    """Return at most `limit` faces of the subject (-1: all) with ids above `after`, in the order of enrolment."""
    cipher = cipher_of(db, collection_id)
    rows = db.execute(
        "SELECT id, token, details, sealed, created_at FROM faces WHERE subject_id = ? AND id > ? ORDER BY id LIMIT ?",
        (subject.id, after, limit),
    )
    return [
        Face(number, token, subject.key, read_object(_decrypted_details(cipher, token, details, sealed)), created_at)
        for number, token, details, sealed, created_at in rows
    ]


def _encrypted_details(cipher: Cipher, token: str, details: str) -> tuple[str, bytes | None]:
    """Return the columns `details` and `sealed` for the details (JSON) of the face with this token."""
    if cipher.encrypted and details != "{}":
        return "{}", cipher.encrypt(details.encode(), "details", token)
    return details, None


def _decrypted_details(cipher: Cipher, token: str, details: str, sealed: bytes | None) -> str:
    return details if sealed is None else cipher.decrypt(sealed, "details", token).decode()


def owners(db: apsw.Connection, cipher: Cipher, faces: Sequence[int]) -> dict[int, tuple[str, Subject]]:
    """Return token and subject by face id, for those of `faces` that exist in the collection."""
    subjects = {}
    for start in range(0, len(faces), _OWNERS_BATCH):
        batch = faces[start : start + _OWNERS_BATCH]
        for face, token, *columns in db.execute(_OWNERS % ",".join(["(?)"] * len(batch)), batch):
            subjects[face] = token, subject_records.read_subject(cipher, columns)
    return subjects


def crop(db: apsw.Connection, collection_id: int, token: str) -> bytes:
    """Return the encoded crop that was stored with a face.

    Raises:
        NotFoundError: the face does not exist or has no crop.
    """
    row = db.execute(
        "SELECT face_id, data FROM crops JOIN faces ON faces.id = face_id WHERE collection_id = ? AND token = ?",
        (collection_id, token),
    ).fetchone()
    if row is None:
        raise NotFoundError("there is no crop of that face")
    return cipher_of(db, collection_id).decrypt(row[1], "crop", row[0])


def ids_of_tokens(db: apsw.Connection, collection_id: int, tokens: Sequence[str]) -> list[int]:
    """Return the ids of the collection's faces with these tokens, ascending.

    Raises:
        NotFoundError: the collection has no face with one of the tokens.
    """
    # The plus makes SQLite use the index of tokens instead of reading the whole collection.
    rows: list[Row] = db.execute(
        "SELECT id FROM faces WHERE token IN (SELECT value FROM json_each(?)) AND +collection_id = ? ORDER BY id",
        (json.dumps(list(tokens)), collection_id),
    ).fetchall()
    if len(rows) != len(set(tokens)):
        raise NotFoundError("there is no such face")
    return [row[0] for row in rows]


def ids_of_subject(db: apsw.Connection, subject_id: int) -> list[int]:
    """Return the ids of the subject's faces, ascending."""
    return [row[0] for row in db.execute("SELECT id FROM faces WHERE subject_id = ? ORDER BY id", (subject_id,))]


def subjects_of(db: apsw.Connection, faces: Sequence[int]) -> list[int]:
    """Return the ids of the subjects of these faces, ascending."""
    rows = db.execute(
        "SELECT DISTINCT subject_id FROM faces WHERE id IN (SELECT value FROM json_each(?)) ORDER BY subject_id",
        (json.dumps(faces),),
    )
    return [row[0] for row in rows]


def ids_through(db: apsw.Connection, collection_id: int, through: int) -> Ints:
    """Return the ids of the collection's faces up to `through`, ascending."""
    rows = db.execute("SELECT id FROM faces WHERE collection_id = ? AND id <= ? ORDER BY id", (collection_id, through))
    return np.fromiter((row[0] for row in rows), np.int64)


def read_records(db: apsw.Connection, collection_id: int, after: int, limit: int, now: float) -> list[FaceRecord]:
    """Return at most `limit` faces with ids above `after`, ascending, without those of subjects expired at `now`."""
    rows = db.execute(
        f"SELECT {subject_records.COLUMNS},"  # noqa: S608
        " faces.id, token, details, faces.sealed, faces.created_at, vectors.data, crops.data"
        " FROM faces JOIN subjects ON subjects.id = subject_id JOIN vectors ON vectors.face_id = faces.id"
        " LEFT JOIN crops ON crops.face_id = faces.id"
        " WHERE faces.collection_id = ? AND faces.id > ? AND (expires_at IS NULL OR expires_at > ?)"
        " ORDER BY faces.id LIMIT ?",
        (collection_id, after, now, limit),
    )
    cipher = cipher_of(db, collection_id)
    return [_record(cipher, row) for row in rows]


def _record(cipher: Cipher, row: Row) -> FaceRecord:
    subject_id, *stored, _, expires_at, number, token, details, sealed, created_at, vector, crop = row
    key, name, metadata = subject_records.decrypt(cipher, subject_id, *stored)
    return FaceRecord(
        number,
        key,
        name,
        metadata,
        expires_at,
        token,
        _decrypted_details(cipher, token, details, sealed),
        created_at,
        cipher.decrypt(vector, "vector", number),
        None if crop is None else cipher.decrypt(crop, "crop", number),
    )


def insert(db: apsw.Connection, collection_id: int, faces: Sequence[NewFace], now: float) -> list[Face]:
    """Enrol the faces and return them; subjects that do not exist are inserted.

    Raises:
        InvalidError: see `unit_vectors`, `check_key` and `check_object`.
    """
    if not faces:
        return []
    for face in faces:
        check_key(face.subject, "subject")
        check_object(face.details, "details")
    dimensions = collection_records.dimensions(db, collection_id)
    vectors = unit_vectors([face.vector for face in faces], dimensions).astype("<f4")
    records = [
        FaceRecord(
            0,
            face.subject,
            None,
            "{}",
            None,
            secrets.token_hex(16),
            json.dumps(dict(face.details)),
            now,
            vector.tobytes(),
            face.crop,
        )
        for face, vector in zip(faces, vectors, strict=True)
    ]
    enrolled = zip(_insert(db, collection_id, records), records, faces, strict=True)
    return [Face(number, record.token, key, dict(face.details), now) for (number, key), record, face in enrolled]


def insert_records(
    db: apsw.Connection, collection_id: int, faces: Sequence[FaceRecord], *, create_subjects: bool
) -> list[int]:
    """Enrol those of the faces that are not enrolled yet, with their tokens, and return their ids.

    `create_subjects`: create the subjects that do not exist, else leave out their faces. Existing subjects are kept.

    Raises:
        ConflictError: another face has one of the tokens. InvalidError: see `validated_face`.
    """
    cipher, dimensions = cipher_of(db, collection_id), collection_records.dimensions(db, collection_id)
    faces = [validated_face(face, dimensions) for face in faces]
    if not create_subjects:
        existing = subject_records.existing(db, collection_id, {face.subject for face in faces})
        faces = [face for face in faces if face.subject in existing]

    def owner(key: str) -> tuple[int, str]:
        return collection_id, cipher.lookup(subject_records.stored_key(db, cipher, collection_id, key))

    rows: list[Row] = db.execute(
        "SELECT token, faces.collection_id, key, faces.id, data FROM faces JOIN subjects ON subjects.id = subject_id"
        " JOIN vectors ON face_id = faces.id WHERE token IN (SELECT value FROM json_each(?))",
        (json.dumps([face.token for face in faces]),),
    ).fetchall()
    enrolled = {
        # The vector of another collection cannot always be decrypted, and need not be.
        token: ((number, key), cipher.decrypt(vector, "vector", face) if number == collection_id else b"")
        for token, number, key, face, vector in rows
    }
    return [row[0] for row in _insert(db, collection_id, new_faces(faces, enrolled, owner))]


def _insert(db: apsw.Connection, collection_id: int, faces: Sequence[FaceRecord]) -> list[tuple[int, str]]:
    """Insert valid faces, and their subjects where those do not exist; return each face's id and its subject's key.

    One statement per table instead of one per face: three times as fast.
    """
    cipher = cipher_of(db, collection_id)
    keys = {
        key: subject_records.stored_key(db, cipher, collection_id, key)
        for key in dict.fromkeys(face.subject for face in faces)
    }
    first: dict[str, FaceRecord] = {}
    for face in faces:
        first.setdefault(keys[face.subject], face)
    subjects = subject_records.insert_missing(db, collection_id, first)
    # There is one writer at a time, so the next ids are known: they follow the greatest id ever assigned.
    last = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'faces'").get
    numbered = list(enumerate(faces, last + 1))
    db.executemany(
        "INSERT INTO faces (id, collection_id, subject_id, token, details, sealed, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                number,
                collection_id,
                subjects[keys[face.subject]],
                face.token,
                *_encrypted_details(cipher, face.token, face.details),
                face.created_at,
            )
            for number, face in numbered
        ],
    )
    db.executemany(
        "INSERT INTO vectors VALUES (?, ?)",
        [(number, cipher.encrypt(face.vector, "vector", number)) for number, face in numbered],
    )
    db.executemany(
        "INSERT INTO crops VALUES (?, ?)",
        [(number, cipher.encrypt(face.crop, "crop", number)) for number, face in numbered if face.crop is not None],
    )
    db.execute("UPDATE collections SET faces = faces + ? WHERE id = ?", (len(faces), collection_id))
    return [(number, keys[face.subject]) for number, face in numbered]
