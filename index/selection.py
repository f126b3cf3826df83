"""Which subjects have given values in their metadata: a text, a number or a boolean under a key of its first level."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import apsw

from index.records import Row

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
_AMONG = " AND subject_id IN (SELECT value FROM json_each(?))"


def counts(db: apsw.Connection, collection_id: int, where: Where) -> tuple[int, int]:
    """How many subjects of the collection there are, and how many faces of theirs."""
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
    condition, values = _condition(collection_id, where)
    rows = db.execute("SELECT DISTINCT subject_id " + condition + " LIMIT ?", (*values, limit))
    return sorted(row[0] for row in rows)


def among(db: apsw.Connection, collection_id: int, where: Where, ids: Iterable[int]) -> set[int]:
    """Those of the ids."""
    condition, values = _condition(collection_id, where)
    rows = db.execute("SELECT subject_id " + condition + _AMONG, (*values, json.dumps(list(ids))))
    return {row[0] for row in rows}


def _condition(collection_id: int, where: Where) -> tuple[str, Row]:
    """Of at least one key."""
    values = [value for key, allowed in where.items() for value in (collection_id, key, json.dumps(list(allowed)))]
    return _FIRST + _FURTHER * (len(where) - 1), tuple(values)
