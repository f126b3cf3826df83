"""Filter subjects by metadata: text, number or boolean values under first-level keys.

The ledger indexes these values in the table `subject_values`, except for encrypted collections, whose metadata is
decrypted and compared for each query.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apsw

from index.embedded.encryption.aead import Cipher
from index.embedded.encryption.data_keys import cipher_of
from index.embedded.store import subject_records
from index.embedded.store.ledger import Row
from index.validation import normalised_where

# For each key the allowed values. A subject must have an allowed value under every key.
Where = Mapping[str, Sequence[str | float | bool]]

_VALUES = (
    "SELECT CASE type WHEN 'text' THEN 'text' WHEN 'true' THEN 'boolean' WHEN 'false' THEN 'boolean' ELSE 'number' END,"
    " value FROM json_each(?)"
)
_FIRST = f"FROM subject_values AS it WHERE collection_id = ? AND key = ? AND (kind, value) IN ({_VALUES})"
_FURTHER = (
    " AND EXISTS (SELECT 1 FROM subject_values AS other WHERE other.collection_id = ? AND other.key = ?"  # noqa: S608
    f" AND (other.kind, other.value) IN ({_VALUES}) AND other.subject_id = it.subject_id)"
)
_AMONG = "subject_id IN (SELECT value FROM json_each(?))"


def counts(db: apsw.Connection, collection_id: int, where: Where) -> tuple[int, int]:
    """Return the number of matching subjects of the collection, and the number of their faces."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        subject_ids = _decrypted_matches(db, cipher, collection_id, where)
        faces = db.execute(
            f"SELECT count(*) FROM faces WHERE {_AMONG}",  # noqa: S608  of constants
            (json.dumps(subject_ids),),
        ).get
        return len(subject_ids), faces
    condition, values = _condition(collection_id, where)
    chosen = f"SELECT DISTINCT subject_id {condition}"
    subjects, faces = db.execute(
        f"WITH chosen AS MATERIALIZED ({chosen}) SELECT (SELECT count(*) FROM chosen),"  # noqa: S608
        " (SELECT count(*) FROM chosen JOIN faces USING (subject_id))",
        values,
    ).get
    return subjects, faces


def subjects(db: apsw.Connection, collection_id: int, where: Where, limit: int = -1) -> list[int]:
    """Return the ids of at most `limit` matching subjects (-1: all), ascending."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        return _decrypted_matches(db, cipher, collection_id, where)[: None if limit < 0 else limit]
    condition, values = _condition(collection_id, where)
    rows = db.execute("SELECT DISTINCT subject_id " + condition + " LIMIT ?", (*values, limit))
    return sorted(row[0] for row in rows)


def among(db: apsw.Connection, collection_id: int, where: Where, ids: Iterable[int]) -> set[int]:
    """Return those of the subject ids that match."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        return set(_decrypted_matches(db, cipher, collection_id, where, ids))
    condition, values = _condition(collection_id, where)
    rows = db.execute(f"SELECT subject_id {condition} AND {_AMONG}", (*values, json.dumps(list(ids))))
    return {row[0] for row in rows}


def _decrypted_matches(
    db: apsw.Connection, cipher: Cipher, collection_id: int, where: Where, ids: Iterable[int] | None = None
) -> list[int]:
    """Return the matching ids of an encrypted collection, ascending. Decrypts all metadata, or that of `ids`."""
    subjects, where = subject_records.metadata(db, cipher, collection_id, ids), normalised_where(where)
    return [number for number, metadata in subjects if _is_match(metadata, where)]


def _is_match(metadata: Mapping[str, Any], where: Where) -> bool:
    return all(
        any((_kind(value), value) == (_kind(metadata.get(key)), metadata.get(key)) for value in allowed)
        for key, allowed in where.items()
    )


def _kind(value: object) -> str | None:
    """Return the type of a JSON value as `subject_values` distinguishes them: a boolean is not a number."""
    kinds = ((bool, "boolean"), (str, "text"), (int | float, "number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None)


def _condition(collection_id: int, where: Where) -> tuple[str, Row]:
    """Return the FROM and WHERE clauses of a filter with at least one key, and their parameters."""
    where = normalised_where(where)
    values = [value for key, allowed in where.items() for value in (collection_id, key, json.dumps(list(allowed)))]
    return _FIRST + _FURTHER * (len(where) - 1), tuple(values)
