"""Rows of feedback: faces that were reported not to be a subject. As faces they have negative ids."""

from __future__ import annotations

from collections.abc import Mapping

import apsw

from index.embedded.encryption import cipher_of
from index.embedded.store import vector_records
from index.embedded.store.ledger import Row
from index.embedded.store.vector_records import FaceVectors
from index.types import Collection, Floats


def read(db: apsw.Connection, collection: Collection, after: int, limit: int) -> FaceVectors:
    """Return the vectors of at most `limit` rejected faces with ids above `after`, ascending.

    Vectors that do not have D numbers are left out; `vestibule gallery verify` reports them.

    Raises:
        LockedError. CorruptError: encrypted data was modified.
    """
    size = cipher_of(db, collection.id).overhead + 4 * collection.dimensions
    rows: list[Row] = db.execute(
        "SELECT -rejections.id, subject_id, data FROM rejections JOIN subjects ON subjects.id = subject_id"
        " WHERE collection_id = ? AND -rejections.id > ? AND length(data) = ? ORDER BY rejections.id DESC LIMIT ?",
        (collection.id, after, size, limit),
    ).fetchall()
    return vector_records.decoded(db, collection, rows)


def replace(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats]) -> list[int]:
    """Replace the vectors [D] of those of these rejected faces that exist, and return their ids."""
    statement = "UPDATE rejections SET data = ? WHERE id = -? RETURNING -id"
    return vector_records.update(db, collection, vectors, statement)
