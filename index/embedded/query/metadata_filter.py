"""Which subjects have given values in their metadata: a text, a number or a boolean under a key of its first level.

The ledger has them in a table to look them up by; but of encrypted collections, whose metadata is unsealed each time.
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
from index.unicode_forms import normalised_where

# By key, the values of which a subject must have one; of several keys all.
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
    """How many subjects of the collection there are, and how many faces of theirs."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        found = _unsealed(db, cipher, collection_id, where)
        faces = db.execute(
            f"SELECT count(*) FROM faces WHERE {_AMONG}",  # noqa: S608  of constants
            (json.dumps(found),),
        ).get
        return len(found), faces
    condition, values = _condition(collection_id, where)
    chosen = f"SELECT DISTINCT subject_id {condition}"
    subjects, faces = db.execute(
        f"WITH chosen AS MATERIALIZED ({chosen}) SELECT (SELECT count(*) FROM chosen),"  # noqa: S608
        " (SELECT count(*) FROM chosen JOIN faces USING (subject_id))",
        values,
    ).get
    return subjects, faces


def subjects(db: apsw.Connection, collection_id: int, where: Where, limit: int = -1) -> list[int]:
    """Ids of at most `limit` of them, ascending where it is all."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        return _unsealed(db, cipher, collection_id, where)[: None if limit < 0 else limit]
    condition, values = _condition(collection_id, where)
    rows = db.execute("SELECT DISTINCT subject_id " + condition + " LIMIT ?", (*values, limit))
    return sorted(row[0] for row in rows)


def among(db: apsw.Connection, collection_id: int, where: Where, ids: Iterable[int]) -> set[int]:
    """Those of the ids."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        return set(_unsealed(db, cipher, collection_id, where, ids))
    condition, values = _condition(collection_id, where)
    rows = db.execute(f"SELECT subject_id {condition} AND {_AMONG}", (*values, json.dumps(list(ids))))
    return {row[0] for row in rows}


def _unsealed(
    db: apsw.Connection, cipher: Cipher, collection_id: int, where: Where, ids: Iterable[int] | None = None
) -> list[int]:
    """Of an encrypted collection, whose metadata nothing in the ledger tells: all of it is looked at, or that of `ids`.

    Ids, ascending.
    """
    found, where = subject_records.metadata(db, cipher, collection_id, ids), normalised_where(where)
    return [number for number, metadata in found if _is_chosen(metadata, where)]


def _is_chosen(metadata: Mapping[str, Any], where: Where) -> bool:
    return all(
        any((_kind(value), value) == (_kind(metadata.get(key)), metadata.get(key)) for value in allowed)
        for key, allowed in where.items()
    )


def _kind(value: object) -> str | None:
    """As SQLite tells kinds of JSON: a boolean is no number."""
    kinds = ((bool, "boolean"), (str, "text"), (int | float, "number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), None)


def _condition(collection_id: int, where: Where) -> tuple[str, Row]:
    """Of at least one key."""
    where = normalised_where(where)
    values = [value for key, allowed in where.items() for value in (collection_id, key, json.dumps(list(allowed)))]
    return _FIRST + _FURTHER * (len(where) - 1), tuple(values)
