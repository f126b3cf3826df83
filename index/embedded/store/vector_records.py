"""Rows of vectors and of the files for searches that are built from them: segments and inverted files.

The vectors are those of faces, and those of feedback: faces that were reported not to be a subject.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apsw
import numpy as np
import numpy.typing as npt

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import subject_records
from index.embedded.store.ledger import Row
from index.records import RejectionRecord
from index.types import Collection, Floats, Ints
from index.validation import unit_vectors

MAX_ID = 2**63 - 1  # of a row in SQLite


@dataclass(frozen=True)
class FaceVectors:
    """Faces as an index needs them: ids [N] ascending, ids of their subjects [N], vectors [N, D]."""

    faces: Ints
    subjects: Ints
    vectors: Floats


@dataclass(frozen=True)
class Reassignments:
    """Faces whose subject changed: their ids [N] and the ids of their subjects now [N]. `through`: the last change."""

    faces: Ints
    subjects: Ints
    through: int


NO_REASSIGNMENTS = Reassignments(np.empty(0, np.int64), np.empty(0, np.int64), 0)


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
    db: apsw.Connection, collection: Collection, after: int, limit: int = -1, through: int = MAX_ID
) -> FaceVectors:
    """Return the vectors of at most `limit` faces of the collection with ids in `after` < id <= `through`."""
    rows: list[Row] = db.execute(
        "SELECT faces.id, subject_id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE collection_id = ? AND faces.id > ? AND faces.id <= ? ORDER BY faces.id LIMIT ?",
        (collection.id, after, through, limit),
    ).fetchall()
    return decoded(db, collection, rows)


def decoded(db: apsw.Connection, collection: Collection, rows: Sequence[Row]) -> FaceVectors:
    """Return the faces of rows of face id, subject id and vector as it is stored."""
    cipher = cipher_of(db, collection.id)
    data = b"".join(cipher.decrypt(row[2], "vector", row[0]) for row in rows)
    ids = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    return FaceVectors(ids[:, 0], ids[:, 1], np.frombuffer(data, "<f4").reshape(len(rows), collection.dimensions))


def reassign(db: apsw.Connection, collection_id: int, faces: Sequence[int], subject_id: int) -> None:
    """Make these faces of the collection those of another subject of it."""
    values = json.dumps(faces)
    db.execute("UPDATE faces SET subject_id = ? WHERE id IN (SELECT value FROM json_each(?))", (subject_id, values))
    db.execute(
        "INSERT OR REPLACE INTO reassignments (collection_id, face_id) SELECT ?, value FROM json_each(?)",
        (collection_id, values),
    )


def reassignments(db: apsw.Connection, collection_id: int, after: int = 0) -> Reassignments:
    """Return the faces whose subject was changed since the change `after`."""
    rows: list[Row] = db.execute(
        "SELECT face_id, subject_id, seq FROM reassignments JOIN faces ON faces.id = face_id"
        " WHERE reassignments.collection_id = ? AND seq > ? ORDER BY seq",
        (collection_id, after),
    ).fetchall()
    ids = np.array([row[:2] for row in rows], np.int64).reshape(-1, 2)
    return Reassignments(ids[:, 0], ids[:, 1], rows[-1][2] if rows else after)


def has_more(db: apsw.Connection, collection_id: int, after: int, count: int) -> bool:
    """Return whether at least `count` faces have ids greater than `after`; reads no vector."""
    statement = "SELECT 1 FROM faces WHERE collection_id = ? AND id > ? ORDER BY id LIMIT 1 OFFSET ?"
    return db.execute(statement, (collection_id, after, count - 1)).get is not None


def of_subjects(db: apsw.Connection, collection: Collection, ids: Iterable[int]) -> tuple[FaceVectors, list[str]]:
    """Return the vectors and the tokens of all faces of these subjects, sorted by subject and face."""
    rows: list[Row] = db.execute(
        "SELECT faces.id, subject_id, data, token FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE subject_id IN (SELECT value FROM json_each(?)) ORDER BY subject_id, faces.id",
        (json.dumps(list(ids)),),
    ).fetchall()
    return decoded(db, collection, rows), [row[3] for row in rows]


def of_faces(db: apsw.Connection, collection: Collection, ids: Iterable[int]) -> FaceVectors:
    """Return the vectors of those of these faces that exist, ascending."""
    rows: list[Row] = db.execute(
        "SELECT faces.id, subject_id, data FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE faces.id IN (SELECT value FROM json_each(?)) ORDER BY faces.id",
        (json.dumps(list(ids)),),
    ).fetchall()
    return decoded(db, collection, rows)


def replace(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats]) -> list[int]:
    """Replace the vectors of the given faces that exist, drop all files of old vectors, and return the faces' ids."""
    replaced = update(db, collection, vectors, "UPDATE vectors SET data = ? WHERE face_id = ? RETURNING face_id")
    drop_files(db, collection.id)
    return replaced


def update(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats], statement: str) -> list[int]:
    """Run the statement for the stored form and the id of each vector [D], and return the ids that it returns."""
    cipher = cipher_of(db, collection.id)
    rows = [
        (cipher.encrypt(encode(vector, collection.dimensions), "vector", face), face)
        for face, vector in vectors.items()
    ]
    return [row[0] for row in db.executemany(statement, rows)]


def read_rejected(db: apsw.Connection, collection: Collection, after: int, limit: int) -> FaceVectors:
    """Return the vectors of at most `limit` rejected faces with ids above `after`, ascending; their ids are negative.

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
    return decoded(db, collection, rows)


def new_rejection_ids(count: int) -> list[int]:
    """Return random ids for new rejected faces, ascending: a random id is never given again after an erasure."""
    return sorted(secrets.randbelow(2**62) + 1 for _ in range(count))


def insert_rejected(db: apsw.Connection, collection_id: int, rows: Iterable[tuple[int, RejectionRecord]]) -> None:
    """Insert rejected faces under their ids; each row is the id of the subject and the face."""
    cipher = cipher_of(db, collection_id)
    db.executemany(
        "INSERT INTO rejections (id, subject_id, token, created_at, data, crop) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                face.id,
                subject_id,
                face.token,
                face.created_at,
                cipher.encrypt(face.vector, "vector", -face.id),
                None if face.crop is None else cipher.encrypt(face.crop, "crop", -face.id),
            )
            for subject_id, face in rows
        ],
    )


def rejection_records(
    db: apsw.Connection, collection_id: int, after: int, limit: int, now: float
) -> list[RejectionRecord]:
    """Return at most `limit` rejected faces with ids above `after`, without those of subjects expired at `now`.

    Those that a merge suspends are left out.
    """
    cipher = cipher_of(db, collection_id)
    rows = db.execute(
        f"SELECT {subject_records.COLUMNS}, rejections.id, token, rejections.created_at, data, crop"  # noqa: S608
        " FROM rejections JOIN subjects ON subjects.id = subject_id WHERE collection_id = ? AND rejections.id > ?"
        " AND suspended_by IS NULL AND (expires_at IS NULL OR expires_at > ?) ORDER BY rejections.id LIMIT ?",
        (collection_id, after, now, limit),
    )
    return [_rejection_record(cipher, row) for row in rows]


def _rejection_record(cipher: Cipher, row: Row) -> RejectionRecord:
    subject_id, *stored, _, _, number, token, created_at, data, crop = row
    key, _, _ = subject_records.decrypt(cipher, subject_id, *stored)
    vector = cipher.decrypt(data, "vector", -number)
    plain_crop = None if crop is None else cipher.decrypt(crop, "crop", -number)
    return RejectionRecord(number, key, token, created_at, vector, plain_crop)


def replace_rejected(db: apsw.Connection, collection: Collection, vectors: Mapping[int, Floats]) -> list[int]:
    """Replace the vectors [D] of those of these rejected faces that exist, and return their ids."""
    statement = "UPDATE rejections SET data = ? WHERE id = -? RETURNING -id"
    return update(db, collection, vectors, statement)


def drop_files(db: apsw.Connection, collection_id: int) -> None:
    """Begin a new generation of the collection's vectors, and delete the rows of all files of the old ones."""
    db.execute("UPDATE collections SET generation = generation + 1 WHERE id = ?", (collection_id,))
    db.execute("DELETE FROM segments WHERE collection_id = ?", (collection_id,))
    drop_inverted_file(db, collection_id)


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


def file_records(db: apsw.Connection, collection_id: int) -> list[SegmentRecord | InvertedFileRecord]:
    """Return the collection's segments in the order of their faces' ids, and then its inverted file if it has one."""
    index = inverted_file(db, collection_id)
    return [*segments(db, collection_id), *((index,) if index else ())]


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
