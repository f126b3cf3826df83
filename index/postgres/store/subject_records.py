"""Rows of the subjects. Key, name and metadata are sealed; a subject is found by the lookup of its key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import sql

from index.errors import ConflictError, NotFoundError
from index.postgres.store import collection_records, face_tables
from index.postgres.store.database import Connection, Row, execute_each
from index.postgres.store.sealing import seal, unseal
from index.records import FaceRecord, SubjectRecord
from index.types import CountedSubject, Properties, Subject
from index.validation import check_subject, normalised, normalised_metadata, read_object

# Columns from which `read` makes a Subject.
COLUMNS = "subjects.id, subjects.seal, subjects.sealed, subjects.created_at, subjects.expires_at"
# Inserts a subject, or replaces the properties of the present one, which another transaction may have inserted.
_PUT = sql.SQL("""
INSERT INTO subjects (collection_id, lookup, seal, sealed, created_at, expires_at) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (collection_id, lookup) DO UPDATE SET
    seal = CASE WHEN %s THEN excluded.seal ELSE subjects.seal END,
    sealed = CASE WHEN %s THEN excluded.sealed ELSE subjects.sealed END,
    expires_at = CASE WHEN %s THEN excluded.expires_at ELSE subjects.expires_at END
RETURNING id, xmax = 0
""")
_LIVE = "(expires_at IS NULL OR expires_at > %s)"


def read(row: Row) -> Subject:
    """Return the subject of a row of COLUMNS.

    Raises:
        CorruptError: the row is damaged.
    """
    number, key, name, metadata, created_at, expires_at = unsealed(row)
    return Subject(number, key, name, read_object(metadata), created_at, expires_at)


def unsealed(row: Row) -> Row:
    """Return id, key, name, metadata (JSON), time of creation and of expiry from a row of COLUMNS.

    Raises:
        CorruptError: the row is damaged.
    """
    number, key_of_seal, sealed, created_at, expires_at = row
    return number, *json.loads(unseal(key_of_seal, sealed)), created_at, expires_at


def _sealed(key: str, name: str | None, metadata: Mapping[str, Any]) -> tuple[bytes, bytes]:
    return seal(json.dumps((key, name, json.dumps(metadata))).encode())


def find(db: Connection, collection_id: int, key: str, now: float, *, lock: bool = False) -> Subject:
    """Return the subject with this key, unless it has expired. `lock`: until the transaction ends.

    Raises:
        NotFoundError.
    """
    statement = f"SELECT {COLUMNS} FROM subjects WHERE collection_id = %s AND lookup = %s AND {_LIVE}"  # noqa: S608
    values = (collection_id, lookup(db, collection_id, key), now)
    row = db.execute(sql.SQL(statement + (" FOR UPDATE" if lock else "")), values).fetchone()
    if row is None:
        raise NotFoundError(f"there is no subject {key!r}")
    return read(row)


def counted(db: Connection, collection_id: int, subject: Subject) -> CountedSubject:
    """Return the subject with the number of its faces."""
    statement = sql.SQL("SELECT count(*) FROM {} WHERE subject_id = %s").format(face_tables.faces(collection_id))
    row = db.execute(statement, (subject.id,)).fetchone()
    return CountedSubject(**subject.__dict__, faces=row[0] if row else 0)


def page(db: Connection, collection_id: int, after: str, limit: int, now: float) -> list[CountedSubject]:
    """Return at most `limit` subjects (-1: all) that follow the key `after` in the order of their lookups."""
    first = lookup(db, collection_id, after) if after else b""
    statement = sql.SQL(
        f"SELECT {COLUMNS}, (SELECT count(*) FROM {{}} AS own WHERE own.subject_id = subjects.id) FROM subjects"  # noqa: S608
        f" WHERE collection_id = %s AND lookup > %s AND {_LIVE} ORDER BY lookup LIMIT %s"
    ).format(face_tables.faces(collection_id))
    rows = db.execute(statement, (collection_id, first, now, None if limit < 0 else limit))
    return [CountedSubject(**read(row[:-1]).__dict__, faces=row[-1]) for row in rows]


def lookup(db: Connection, collection_id: int, key: str) -> bytes:
    """Return the lookup of a key."""
    return db.lookups.subject(collection_id, normalised(key))


def upsert(
    db: Connection,
    collection_id: int,
    key: str,
    *,
    name: str | None,
    metadata: Mapping[str, Any],
    expires_at: float | None,
    now: float,
) -> Subject:
    """Insert the subject or replace its properties, and return it.

    Raises:
        InvalidError: see `check_subject`.
    """
    check_subject(key, name, metadata, expires_at)
    key, metadata = normalised(key), normalised_metadata(metadata)
    row = db.execute(
        "INSERT INTO subjects (collection_id, lookup, seal, sealed, created_at, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (collection_id, lookup) DO UPDATE"
        " SET seal = excluded.seal, sealed = excluded.sealed, expires_at = excluded.expires_at"
        " RETURNING id, created_at, xmax = 0",
        (collection_id, lookup(db, collection_id, key), *_sealed(key, name, metadata), now, expires_at),
    ).fetchone()
    assert row is not None  # noqa: S101  one row is inserted or updated
    number, created_at, is_new = row
    if is_new:
        collection_records.add_counts(db, collection_id, subjects=1)
    else:
        db.execute("DELETE FROM subject_values WHERE subject_id = %s", (number,))
    insert_values(db, collection_id, {number: metadata})
    return Subject(number, key, name, dict(metadata), created_at, expires_at)


def insert_values(db: Connection, collection_id: int, metadata: Mapping[int, Mapping[str, Any]]) -> None:
    """Insert the values of subjects' metadata, by the subjects' ids, by which filters find them."""
    values = {
        (collection_id, db.lookups.value(collection_id, field, value), number)
        for number, fields in metadata.items()
        for field, value in fields.items()
        if isinstance(value, str | float | int)
    }
    if values:
        db.cursor().executemany("INSERT INTO subject_values VALUES (%s, %s, %s)", sorted(values))


def by_id(db: Connection, ids: Iterable[int]) -> dict[int, Subject]:
    """Return those of these subjects that exist, by id."""
    rows = db.execute(f"SELECT {COLUMNS} FROM subjects WHERE id = ANY(%s) ORDER BY id", (list(ids),))  # noqa: S608
    return {row[0]: read(row) for row in rows}


def read_records(db: Connection, collection_id: int, after: int, limit: int, now: float) -> list[SubjectRecord]:
    """Return at most `limit` subjects with ids above `after`, ascending, without those that have expired at `now`."""
    rows = db.execute(
        f"SELECT {COLUMNS} FROM subjects WHERE collection_id = %s AND id > %s AND {_LIVE} ORDER BY id LIMIT %s",  # noqa: S608
        (collection_id, after, now, limit),
    )
    return [SubjectRecord(*unsealed(row)) for row in rows]


def existing(db: Connection, collection_id: int, keys: Iterable[str]) -> dict[str, int]:
    """Return the ids of those of the subjects that exist, by key; lock them until the transaction ends."""
    lookups = {lookup(db, collection_id, key): key for key in keys}
    return {lookups[found]: number for found, number, _ in _lock(db, collection_id, lookups.values())}


def insert_missing(
    db: Connection, collection_id: int, records: Mapping[str, SubjectRecord | FaceRecord]
) -> dict[str, int]:
    """Insert the subjects that do not exist, and return the ids of the new ones by key; in the order of the records.

    `records`: by key in Unicode form C, valid properties of each subject, or a face with them.
    """
    found = existing(db, collection_id, records)
    missing = [(key, record) for key, record in records.items() if key not in found]
    if not missing:
        return {}
    cursor = db.cursor()
    cursor.executemany(
        "INSERT INTO subjects (collection_id, lookup, seal, sealed, created_at, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING id",
        [
            (
                collection_id,
                lookup(db, collection_id, key),
                *seal(json.dumps((key, record.name, record.metadata)).encode()),
                record.created_at,
                record.expires_at,
            )
            for key, record in missing
        ],
        returning=True,
    )
    inserted = [result.fetchone() for result in cursor.results()]
    new = {key: row[0] for (key, _), row in zip(missing, inserted, strict=True) if row is not None}
    insert_values(db, collection_id, {new[key]: json.loads(it.metadata) for key, it in missing if key in new})
    collection_records.add_counts(db, collection_id, subjects=len(new))
    return new


def put_all(
    db: Connection,
    collection_id: int,
    properties: Mapping[str, Properties | None],
    existing: Mapping[bytes, int],
    now: float,
) -> dict[str, int]:
    """Insert the subjects that do not exist, replace the properties that are not None; return all ids by key in form C.

    `properties`: by key. `existing`: the ids by lookup of those of the subjects that this transaction has locked. All
    are locked until it ends.

    Raises:
        InvalidError: see `check_subject`.
    """
    rows: dict[bytes, Row] = {}
    keys: dict[str, bytes] = {}
    for key, replaced in properties.items():
        new = Properties() if replaced is None else replaced
        check_subject(key, new.name, new.metadata, new.expires_at)
        keys[normalised(key)] = found = lookup(db, collection_id, key)
        if replaced is not None or found not in existing:
            sealed = _sealed(normalised(key), new.name, normalised_metadata(new.metadata))
            rows[found] = (collection_id, found, *sealed, now, new.expires_at, *[replaced is not None] * 3)
    ids = {**existing, **_put_rows(db, collection_id, dict(sorted(rows.items())))}
    metadata = {
        ids[lookup(db, collection_id, key)]: normalised_metadata(replaced.metadata)
        for key, replaced in properties.items()
        if replaced is not None
    }
    if metadata:
        db.execute("DELETE FROM subject_values WHERE subject_id = ANY(%s)", (list(metadata),))
        insert_values(db, collection_id, metadata)
    return {key: ids[found] for key, found in keys.items()}


def _put_rows(db: Connection, collection_id: int, rows: Mapping[bytes, Row]) -> dict[bytes, int]:
    """Insert rows in this order, or replace the properties of present ones; return the ids by lookup.

    The columns of a row are those below, and for each property whether to replace it.
    """
    if not rows:
        return {}
    results = execute_each(db, _PUT, list(rows.values()))
    collection_records.add_counts(db, collection_id, subjects=sum(is_new for _, is_new in results))
    return {found: number for found, (number, _) in zip(rows, results, strict=True)}


def _lock(db: Connection, collection_id: int, keys: Iterable[str]) -> list[Row]:
    return lock(db, collection_id, [lookup(db, collection_id, key) for key in keys])


def lock(db: Connection, collection_id: int, lookups: Sequence[bytes]) -> list[Row]:
    """Return lookup, id and expiry of the subjects with these lookups.

    Lock them until the transaction ends, in the order of their lookups.
    """
    return db.execute(
        "SELECT lookup, id, expires_at FROM subjects WHERE collection_id = %s AND lookup = ANY(%s)"
        " ORDER BY lookup FOR UPDATE",
        (collection_id, list(lookups)),
    ).fetchall()


def lock_existing(db: Connection, collection_id: int, key: str) -> int:
    """Return the id of the subject, even if it has expired or is damaged; lock it until the transaction ends.

    Raises:
        NotFoundError. ConflictError: it was absorbed in a merge, and exists again if the merge is undone.
    """
    rows = _lock(db, collection_id, [key])
    if not rows:
        absorbed = "SELECT 1 FROM absorbed_subjects WHERE collection_id = %s AND lookup = %s"
        if db.execute(absorbed, (collection_id, lookup(db, collection_id, key))).fetchone():
            raise ConflictError(f"{key!r} was merged into another subject: erase that one, or undo the merge first")
        raise NotFoundError(f"there is no subject {key!r}")
    return int(rows[0][1])


def lock_all(db: Connection, collection_id: int, keys: Iterable[str], now: float) -> tuple[dict[bytes, int], list[int]]:
    """Lock the subjects with these keys until the transaction ends.

    Return the ids by lookup, without those that have expired; and the ids of these, ascending.
    """
    rows = _lock(db, collection_id, keys)
    expired = {number for _, number, expires_at in rows if expires_at is not None and expires_at <= now}
    return {found: number for found, number, _ in rows if number not in expired}, sorted(expired)


def expired(db: Connection, now: float, limit: int) -> list[tuple[int, int]]:
    """Return collection id and id of at most `limit` expired subjects, the earliest expiry first."""
    rows = db.execute(
        "SELECT collection_id, id FROM subjects WHERE expires_at <= %s ORDER BY expires_at LIMIT %s", (now, limit)
    )
    return [(row[0], row[1]) for row in rows]


def lock_expired_ids(db: Connection, ids: Sequence[int], now: float) -> list[int]:
    """Lock those of the subjects that have expired until the transaction ends, and return their ids."""
    rows = db.execute(
        "SELECT id FROM subjects WHERE id = ANY(%s) AND expires_at <= %s ORDER BY lookup FOR UPDATE", (list(ids), now)
    )
    return [row[0] for row in rows]
