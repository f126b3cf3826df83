"""Rows of the subjects; key, name and metadata of an encrypted collection's are encrypted and decrypted here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import apsw

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store.ledger import Row
from index.errors import ConflictError, CorruptError, NotFoundError
from index.records import FaceRecord, SubjectRecord
from index.types import CountedSubject, Subject
from index.validation import check_subject, normalised, normalised_metadata, read_object

# Columns from which `read_subject` makes a Subject.
COLUMNS = (
    "subjects.id, subjects.key, subjects.name, subjects.metadata, subjects.sealed, subjects.created_at,"
    " subjects.expires_at"
)
_SUBJECT = f"SELECT {COLUMNS}, (SELECT count(*) FROM faces WHERE subject_id = subjects.id) FROM subjects"  # noqa: S608


def read_subject(cipher: Cipher, row: Sequence[Any]) -> Subject:
    """Return the subject of a row of COLUMNS."""
    number, key, name, metadata, sealed, created_at, expires_at = row
    key, name, metadata = decrypt(cipher, number, key, name, metadata, sealed)
    return Subject(number, key, name, read_object(metadata), created_at, expires_at)


def _counted(cipher: Cipher, row: Row) -> CountedSubject:
    *columns, faces = row
    return CountedSubject(**read_subject(cipher, columns).__dict__, faces=faces)


def encrypt(db: apsw.Connection, cipher: Cipher, rows: Iterable[Row]) -> None:
    """Encrypt subjects of an encrypted collection and store them; each row is id, key, name and metadata (JSON)."""
    values = [
        (cipher.encrypt(json.dumps((key, *properties)).encode(), "subject", cipher.lookup(key), number), number)
        for number, key, *properties in rows
    ]
    db.executemany("UPDATE subjects SET sealed = ? WHERE id = ?", values)


def decrypt(
    cipher: Cipher, number: int, key: str, name: str | None, metadata: str, sealed: bytes | None
) -> tuple[str, str | None, str]:
    """Return key, name and metadata (JSON) of a subject from its columns."""
    if cipher.encrypted:
        key, name, metadata = json.loads(cipher.decrypt(sealed, "subject", key, number))
    return key, name, metadata


def stored_key(db: apsw.Connection, cipher: Cipher, collection_id: int, key: str) -> str:
    """Return the key under which the ledger stores, or would store, this subject: its Unicode form C.

    It is `key` unchanged if a subject has exactly that key because it could not be normalised
    (index/embedded/audit/id_normalisation.py).
    """
    form_c = normalised(key)
    statement = "SELECT 1 FROM subjects WHERE collection_id = ? AND key = ?"
    if form_c != key and db.execute(statement, (collection_id, cipher.lookup(key))).get is not None:
        return key
    return form_c


def ids_of_key(db: apsw.Connection, collection_id: int, key: str) -> list[int]:
    """Return the ids of the subjects with this key in Unicode form C; several where a key could not be normalised.

    Raises:
        NotFoundError: no subject has this key. ConflictError: no subject has it now, and one that was absorbed in a
            merge gets it back if the merge is undone.
    """
    stored = collection_id, cipher_of(db, collection_id).lookup(normalised(key))
    rows = db.execute(
        "SELECT id FROM subjects WHERE collection_id = ?1 AND key = ?2"
        " UNION SELECT subject_id FROM clashes WHERE collection_id = ?1 AND key = ?2",
        stored,
    )
    ids = [row[0] for row in rows]
    if not ids:
        if db.execute("SELECT 1 FROM absorbed_subjects WHERE collection_id = ? AND key = ?", stored).get is not None:
            raise ConflictError(f"{key!r} was merged into another subject: erase that one, or undo the merge first")
        raise NotFoundError(f"there is no subject {key!r}")
    return ids


def find(db: apsw.Connection, collection_id: int, key: str, now: float | None = None) -> CountedSubject:
    """Return the subject with this key; see `stored_key`.

    Raises:
        NotFoundError: also where the subject has expired at `now` (None: expired subjects are returned).
    """
    cipher = cipher_of(db, collection_id)
    row = db.execute(
        f"{_SUBJECT} WHERE collection_id = ? AND subjects.key = ?"
        " AND (?3 IS NULL OR expires_at IS NULL OR expires_at > ?3)",
        (collection_id, cipher.lookup(stored_key(db, cipher, collection_id, key)), now),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"there is no subject {key!r}")
    return _counted(cipher, row)


def page(
    db: apsw.Connection, collection_id: int, after: str, limit: int, now: float | None = None
) -> list[CountedSubject]:
    """Return at most `limit` subjects that follow the key `after`, without those expired at `now` (None: with them).

    They are sorted by key; those of an encrypted collection by the key's HMAC.
    """
    cipher = cipher_of(db, collection_id)
    rows = db.execute(
        f"{_SUBJECT} WHERE collection_id = ? AND subjects.key > ?"
        " AND (?3 IS NULL OR expires_at IS NULL OR expires_at > ?3) ORDER BY subjects.key LIMIT ?4",
        (collection_id, after and cipher.lookup(after), now, limit),
    )
    return [_counted(cipher, row) for row in rows]


def by_id(db: apsw.Connection, cipher: Cipher, ids: Iterable[int]) -> dict[int, Subject]:
    """Return the subjects with the given ids that exist, by id."""
    rows = db.execute(
        f"SELECT {COLUMNS} FROM json_each(?) JOIN subjects ON subjects.id = value",  # noqa: S608  of constants
        (json.dumps(list(ids)),),
    )
    return {row[0]: read_subject(cipher, row) for row in rows}


def metadata(
    db: apsw.Connection, cipher: Cipher, collection_id: int, ids: Iterable[int] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield id and metadata of these subjects of the collection (None: of all), sorted by id."""
    among = "" if ids is None else " AND id IN (SELECT value FROM json_each(?))"
    rows = db.execute(
        f"SELECT id, key, name, metadata, sealed FROM subjects WHERE collection_id = ?{among} ORDER BY id",  # noqa: S608
        (collection_id,) if ids is None else (collection_id, json.dumps(list(ids))),
    )
    return ((number, read_object(decrypt(cipher, number, *stored)[2])) for number, *stored in rows)


def readable(db: apsw.Connection, cipher: Cipher, collection_id: int) -> Iterator[tuple[int, str, str | None, str]]:
    """Yield id, key, name and metadata (JSON) of each subject that can be decrypted, sorted by id."""
    rows = db.execute(
        "SELECT id, key, name, metadata, sealed FROM subjects WHERE collection_id = ? ORDER BY id", (collection_id,)
    )
    for number, *stored in rows:
        with suppress(CorruptError):
            yield number, *decrypt(cipher, number, *stored)


def upsert(
    db: apsw.Connection,
    collection_id: int,
    key: str,
    *,
    name: str | None,
    metadata: Mapping[str, Any],
    expires_at: float | None,
    now: float,
) -> CountedSubject:
    """Insert the subject or replace its properties, and return it; see `stored_key`.

    Raises:
        InvalidError: see `check_subject`.
    """
    check_subject(key, name, metadata, expires_at)
    cipher = cipher_of(db, collection_id)
    key, metadata = stored_key(db, cipher, collection_id, key), normalised_metadata(metadata)
    plaintext = (None, "{}") if cipher.encrypted else (name, json.dumps(metadata))
    number = db.execute(
        "INSERT INTO subjects (collection_id, key, name, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (collection_id, key) DO UPDATE"
        " SET name = excluded.name, metadata = excluded.metadata, expires_at = excluded.expires_at RETURNING id",
        (collection_id, cipher.lookup(key), *plaintext, now, expires_at),
    ).get
    if cipher.encrypted:
        encrypt(db, cipher, [(number, key, name, json.dumps(metadata))])
    return find(db, collection_id, key)


def read_records(db: apsw.Connection, collection_id: int, after: int, limit: int, now: float) -> list[SubjectRecord]:
    """Return at most `limit` subjects with ids above `after`, ascending, without those that have expired at `now`."""
    cipher = cipher_of(db, collection_id)
    rows = db.execute(
        f"SELECT {COLUMNS} FROM subjects WHERE collection_id = ? AND id > ?"  # noqa: S608  of constants
        " AND (expires_at IS NULL OR expires_at > ?) ORDER BY id LIMIT ?",
        (collection_id, after, now, limit),
    )
    return [
        SubjectRecord(number, *decrypt(cipher, number, *stored), created_at, expires_at)
        for number, *stored, created_at, expires_at in rows
    ]


def existing(db: apsw.Connection, collection_id: int, keys: Iterable[str]) -> dict[str, int]:
    """Return the ids of those of the subjects that exist, by the given keys; see `stored_key`."""
    cipher = cipher_of(db, collection_id)
    lookups = {key: cipher.lookup(stored_key(db, cipher, collection_id, key)) for key in keys}
    rows = db.execute(
        "SELECT key, id FROM subjects WHERE collection_id = ? AND key IN (SELECT value FROM json_each(?))",
        (collection_id, json.dumps(list(lookups.values()))),
    )
    ids: dict[str, int] = dict(rows)
    return {key: ids[lookup] for key, lookup in lookups.items() if lookup in ids}


def insert_missing(
    db: apsw.Connection, collection_id: int, records: Mapping[str, FaceRecord | SubjectRecord]
) -> dict[str, int]:
    """Insert the subjects that do not exist, and return the ids of all by their keys.

    `records`: by the stored key of each subject, its properties, or a face with them.
    """
    cipher = cipher_of(db, collection_id)
    key_of = {cipher.lookup(key): key for key in records}
    db.executemany(
        "INSERT INTO subjects (collection_id, key, name, metadata, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        [
            (
                collection_id,
                lookup,
                *((None, "{}") if cipher.encrypted else (records[key].name, records[key].metadata)),
                records[key].created_at,
                records[key].expires_at,
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
        encrypt(db, cipher, [(n, key, records[key].name, records[key].metadata) for n, key in new])
    return {key_of[lookup]: number for lookup, number, _ in rows}


def expired(db: apsw.Connection, now: float, limit: int) -> list[tuple[int, int]]:
    """Return collection id and id of at most `limit` expired subjects, the earliest expiry first."""
    rows = db.execute(
        "SELECT collection_id, id FROM subjects WHERE expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
    )
    return [(row[0], row[1]) for row in rows]


def expired_among(db: apsw.Connection, collection_id: int, keys: Iterable[str], now: float) -> list[int]:
    """Return the ids of those subjects with these keys that have expired."""
    cipher = cipher_of(db, collection_id)
    stored = [cipher.lookup(stored_key(db, cipher, collection_id, key)) for key in keys]
    rows: list[Row] = db.execute(
        "SELECT id FROM subjects WHERE collection_id = ? AND expires_at <= ?"
        " AND key IN (SELECT value FROM json_each(?)) ORDER BY id",
        (collection_id, now, json.dumps(stored)),
    ).fetchall()
    return [row[0] for row in rows]
