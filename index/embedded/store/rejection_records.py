"""Rows of feedback: faces that were reported not to be a subject."""

from __future__ import annotations

from collections.abc import Mapping

import apsw
import numpy as np

from index.embedded.encryption.data_keys import cipher_of
from index.embedded.store import vector_records
from index.embedded.store.ledger import Row
from index.types import Collection, Floats, Ints


def read(db: apsw.Connection, collection: Collection, after: int, limit: int) -> tuple[Ints, Floats]:
    """Return ids [N] and vectors [N, D] of at most `limit` rows with ids greater than `after`, ascending.

    Rows whose vector does not have D numbers are left out; see `reembedding.find_faults`.

    Raises:
        LockedError. CorruptError: encrypted data was modified.
    """
    cipher = cipher_of(db, collection.id)
    rows: list[Row] = db.execute(
        "SELECT rejections.id, data FROM rejections JOIN subjects ON subjects.id = subject_id"
        " WHERE collection_id = ? AND rejections.id > ? AND length(data) = ? ORDER BY rejections.id LIMIT ?",
        (collection.id, after, cipher.encrypted_size(4 * collection.dimensions), limit),
    ).fetchall()
    data = b"".join(cipher.decrypt(encrypted, "vector", -number) for number, encrypted in rows)
    vectors = np.frombuffer(data, "<f4").reshape(len(rows), collection.dimensions)
    return np.fromiter((row[0] for row in rows), np.int64, len(rows)), vectors


def replace_vectors(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats]) -> dict[int, int]:
    """Replace the vectors [D] of these rows, by id; return the subject of each row that still exists."""
    cipher, subjects = cipher_of(db, collection.id), {}
    for number, vector in vectors.items():
        data = cipher.encrypt(vector_records.encode(vector, collection.dimensions), "vector", -number)
        for row in db.execute("UPDATE rejections SET data = ? WHERE id = ? RETURNING subject_id", (data, number)):
            subjects[number] = row[0]
    return subjects
