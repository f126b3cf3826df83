"""Rows of the faces and their crops; those of an encrypted collection are encrypted and decrypted here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import apsw
import numpy as np

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import subject_records, vector_records
from index.embedded.store.ledger import Row
from index.errors import ConflictError, NotFoundError
from index.types import Face, Ints, NewFace, Subject
from index.validation import (
    check_key,
    check_object,
    check_subject,
    check_timestamp,
    normalised_json,
    parse_object,
    read_object,
    unit_vectors,
)


@dataclass(slots=True)  # not frozen, which takes several times as long: an enrolment creates one per face
class FaceRecord:
    """Everything stored about a face and its subject. Metadata and details are JSON, the vector is float32 bytes."""

    id: int
    subject: str
    name: str | None
    metadata: str
    expires_at: float | None
    token: str
    details: str
    created_at: float
    vector: bytes
    crop: bytes | None


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
            subjects[face] = token, subject_records.read_subject(cipher, tuple(columns))
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


def last_id(db: apsw.Connection, collection_id: int) -> int:
    """Return the greatest id of the collection's faces, 0 if it has none."""
    return int(db.execute("SELECT coalesce(max(id), 0) FROM faces WHERE collection_id = ?", (collection_id,)).get)


def read_records(
    db: apsw.Connection, collection_id: int, after: int, through: int, limit: int, now: float
) -> list[FaceRecord]:
    """Return at most `limit` faces with ids in `after` < id <= `through`, without those of expired subjects."""
    rows = db.execute(
        f"SELECT {subject_records.COLUMNS},"  # noqa: S608
        " faces.id, token, details, faces.sealed, faces.created_at, vectors.data, crops.data"
        " FROM faces JOIN subjects ON subjects.id = subject_id JOIN vectors ON vectors.face_id = faces.id"
        " LEFT JOIN crops ON crops.face_id = faces.id"
        " WHERE faces.collection_id = ? AND faces.id > ? AND faces.id <= ? AND (expires_at IS NULL OR expires_at > ?)"
        " ORDER BY faces.id LIMIT ?",
        (collection_id, after, through, now, limit),
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
    vectors = unit_vectors([face.vector for face in faces], _dimensions(db, collection_id)).astype("<f4")
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


def insert_record(db: apsw.Connection, collection_id: int, face: FaceRecord) -> bool:
    """Enrol the face with its token and return True; False if it is enrolled already. An existing subject is kept.

    Raises:
        ConflictError: another face has the token. InvalidError: see `validated`.
    """
    face, cipher = validated(face, _dimensions(db, collection_id)), cipher_of(db, collection_id)
    existing: Row | None = db.execute(
        "SELECT faces.collection_id, key, faces.id, data FROM faces JOIN subjects ON subjects.id = subject_id"
        " JOIN vectors ON face_id = faces.id WHERE token = ?",
        (face.token,),
    ).fetchone()
    if existing is None:
        _insert(db, collection_id, [face])
        return True
    *owner, number, vector = existing
    key = cipher.lookup(subject_records.stored_key(db, cipher, collection_id, face.subject))
    if owner != [collection_id, key] or cipher.decrypt(vector, "vector", number) != face.vector:
        raise ConflictError(f"face {face.token} is enrolled with another collection, subject or vector")
    return False


def validated(face: FaceRecord, dimensions: int) -> FaceRecord:
    """Return the face with its vector scaled to length 1, and its metadata in Unicode form C.

    Raises:
        InvalidError: it cannot be enrolled; see `unit_vectors`, `check_subject`, `check_object` and `check_timestamp`.
    """
    check_subject(face.subject, face.name, parse_object(face.metadata, "metadata"), face.expires_at)
    parse_object(face.details, "details")
    check_timestamp(face.created_at, "created_at")
    vector = vector_records.encode(np.frombuffer(face.vector, "<f4"), dimensions)
    return replace(face, vector=vector, metadata=normalised_json(face.metadata))


def _dimensions(db: apsw.Connection, collection_id: int) -> int:
    return int(db.execute("SELECT dimensions FROM collections WHERE id = ?", (collection_id,)).get)


def _insert(db: apsw.Connection, collection_id: int, faces: Sequence[FaceRecord]) -> list[tuple[int, str]]:
    """Insert valid faces, and their subjects where those do not exist; return each face's id and its subject's key.

    One statement per table instead of one per face: three times as fast.
    """
    cipher = cipher_of(db, collection_id)
    keys = {
        key: subject_records.stored_key(db, cipher, collection_id, key)
        for key in dict.fromkeys(face.subject for face in faces)
    }
    subjects = _insert_subjects(db, cipher, collection_id, {keys[face.subject]: face for face in faces})
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


def _insert_subjects(
    db: apsw.Connection, cipher: Cipher, collection_id: int, owners: Mapping[str, FaceRecord]
) -> dict[str, int]:
    """Insert the subjects that do not exist, and return the ids of all by their keys; `owners`: a face of each key."""
    key_of = {cipher.lookup(key): key for key in owners}
    db.executemany(
        "INSERT INTO subjects (collection_id, key, name, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            (
                collection_id,
                lookup,
                *((None, "{}") if cipher.encrypted else (owners[key].name, owners[key].metadata)),
                owners[key].created_at,
                owners[key].expires_at,
            )
            for lookup, key in key_of.items()
        ],
    )
    rows: list[Row] = db.execute(
        "SELECT key, id, sealed IS NULL FROM subjects"
        " WHERE collection_id = ? AND key IN (SELECT value FROM json_each(?))",
        (collection_id, json.dumps(list(key_of))),
    ).fetchall()
    if cipher.encrypted:
        new = [(number, key_of[lookup]) for lookup, number, is_new in rows if is_new]
        subject_records.encrypt(db, cipher, [(n, key, owners[key].name, owners[key].metadata) for n, key in new])
    return {key_of[lookup]: number for lookup, number, _ in rows}
