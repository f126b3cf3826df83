"""Rows of the face vectors, and of the files for searches that are built from them: segments and inverted files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apsw
import numpy as np
import numpy.typing as npt

from index.embedded.encryption.data_keys import cipher_of, ciphers
from index.embedded.store.ledger import Row
from index.types import Collection, Floats, Ints
from index.validation import unit_vectors


@dataclass(frozen=True)
class FaceVectors:
    """Faces as an index needs them: ids [N] ascending, ids of their subjects [N], vectors [N, D]."""

    faces: Ints
    subjects: Ints
    vectors: Floats


@dataclass(frozen=True)
class SegmentRecord:
    """A segment's file, which holds the collection's faces from `first_face` to `last_face`.

    It contains no face that was removed before or by the removal `removals_through`.
    """

    file: str
    first_face: int
    last_face: int
    removals_through: int


@dataclass(frozen=True)
class InvertedFileRecord:
    """An inverted file, which holds the faces of all segments up to `last_face`; trained for `trained_rows` faces."""

    file: str
    last_face: int
    removals_through: int
    trained_rows: int


def encode(vector: npt.ArrayLike, dimensions: int) -> bytes:
    """Return a vector [D] as the ledger stores it: scaled to length 1, little-endian float32.

    Raises:
        InvalidError: see `unit_vectors`.
    """
    return unit_vectors(np.asarray(vector)[None], dimensions).astype("<f4").tobytes()


def read(
    db: apsw.Connection, collection_id: int, dimensions: int, after: int, limit: int = -1, through: int | None = None
) -> FaceVectors:
    """Return the vectors of at most `limit` faces of the collection with ids in `after` < id <= `through`."""
    rows: list[Row] = db.execute(
        "SELECT faces.id, subject_id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE collection_id = ? AND faces.id > ? AND faces.id <= ? ORDER BY faces.id LIMIT ?",
        (collection_id, after, 2**63 - 1 if through is None else through, limit),
    ).fetchall()
    cipher = cipher_of(db, collection_id)
    data = b"".join(cipher.decrypt(row[2], "vector", row[0]) for row in rows)
    return FaceVectors(
        np.fromiter((row[0] for row in rows), np.int64, len(rows)),
        np.fromiter((row[1] for row in rows), np.int64, len(rows)),
        np.frombuffer(data, "<f4").reshape(len(rows), dimensions),
    )


def has_more(db: apsw.Connection, collection_id: int, after: int, count: int) -> bool:
    """Return whether at least `count` faces have ids greater than `after`; reads no vector."""
    statement = "SELECT 1 FROM faces WHERE collection_id = ? AND id > ? ORDER BY id LIMIT 1 OFFSET ?"
    return db.execute(statement, (collection_id, after, count - 1)).get is not None


def by_subject(db: apsw.Connection, ids: Iterable[int], dimensions: int) -> dict[int, Floats]:
    """Return the vectors [faces, D] of each of the subjects that has any, by the subject's id."""
    vectors: dict[int, list[Floats]] = {}
    cipher = ciphers(db)
    rows = db.execute(
        "SELECT collection_id, subject_id, faces.id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE subject_id IN (SELECT value FROM json_each(?)) ORDER BY faces.id",
        (json.dumps(list(ids)),),
    )
    for collection_id, subject_id, face_id, data in rows:
        vector = cipher(collection_id).decrypt(data, "vector", face_id)
        vectors.setdefault(subject_id, []).append(np.frombuffer(vector, "<f4", dimensions))
    return {subject_id: np.stack(rows) for subject_id, rows in vectors.items()}


def replace(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats]) -> list[int]:
    """Replace the vectors of these faces, drop all files built from the old ones, and return the faces' ids."""
    cipher = cipher_of(db, collection.id)
    rows = [
        (cipher.encrypt(encode(vector, collection.dimensions), "vector", face), face)
        for face, vector in vectors.items()
    ]
    db.executemany("UPDATE vectors SET data = ? WHERE face_id = ?", rows)
    db.execute("UPDATE collections SET generation = generation + 1 WHERE id = ?", (collection.id,))
    db.execute("DELETE FROM segments WHERE collection_id = ?", (collection.id,))
    drop_inverted_file(db, collection.id)
    return list(vectors)


def count_missing(db: apsw.Connection, collection_id: int, size: int) -> int:
    """Return how many of the collection's faces have no vector of `size` bytes."""
    return int(
        db.execute(
            "SELECT count(*) FROM faces LEFT JOIN vectors ON face_id = id"
            " WHERE collection_id = ? AND length(data) IS NOT ?",
            (collection_id, size),
        ).get
    )


def segments(db: apsw.Connection, collection_id: int) -> list[SegmentRecord]:
    """Return the collection's segments in the order of their faces' ids."""
    columns = "SELECT file, first_face, last_face, removals_through FROM segments"
    rows = db.execute(f"{columns} WHERE collection_id = ? ORDER BY first_face", (collection_id,))
    return [SegmentRecord(*row) for row in rows]


def put_segment(db: apsw.Connection, collection_id: int, new: SegmentRecord, old: str | None = None) -> None:
    """Insert a segment, and delete the one of the file `old` if that is given."""
    db.execute("DELETE FROM segments WHERE file = ?", (old,))
    db.execute(
        "INSERT INTO segments (file, collection_id, first_face, last_face, removals_through) VALUES (?, ?, ?, ?, ?)",
        (new.file, collection_id, new.first_face, new.last_face, new.removals_through),
    )


def inverted_file(db: apsw.Connection, collection_id: int) -> InvertedFileRecord | None:
    """Return the collection's inverted file, or None if it has none."""
    row: Row | None = db.execute(
        "SELECT file, last_face, removals_through, trained_rows FROM indexes WHERE collection_id = ?", (collection_id,)
    ).fetchone()
    return InvertedFileRecord(*row) if row else None


def put_inverted_file(db: apsw.Connection, collection_id: int, new: InvertedFileRecord) -> None:
    """Insert the collection's inverted file, or replace it."""
    db.execute(
        "INSERT OR REPLACE INTO indexes (collection_id, file, last_face, removals_through, trained_rows)"
        " VALUES (?, ?, ?, ?, ?)",
        (collection_id, new.file, new.last_face, new.removals_through, new.trained_rows),
    )


def drop_inverted_file(db: apsw.Connection, collection_id: int) -> None:
    """Delete the row of the collection's inverted file, so that searches compare every face."""
    db.execute("DELETE FROM indexes WHERE collection_id = ?", (collection_id,))


def mark_clean(db: apsw.Connection, collection_id: int, files: Sequence[str], through: int) -> None:
    """Record that these files contain no face that was removed before or by the removal `through`."""
    values = [(through, collection_id, file) for file in files]
    assignment = "SET removals_through = max(removals_through, ?) WHERE collection_id = ? AND file = ?"
    db.executemany(f"UPDATE segments {assignment}", values)
    db.executemany(f"UPDATE indexes {assignment}", values)


def files(db: apsw.Connection) -> set[str]:
    """Return the names of all segments and inverted files."""
    return {row[0] for row in db.execute("SELECT file FROM segments UNION ALL SELECT file FROM indexes")}


def forget_files(db: apsw.Connection) -> None:
    """Delete the rows of all segments, inverted files and leases, for a ledger that was restored without files."""
    db.execute("DELETE FROM segments; DELETE FROM indexes; DELETE FROM leases")
