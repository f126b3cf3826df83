"""Rejected faces that a merge or a move contradicts, because they are enrolled faces of the same subject then."""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw

from index.embedded.store import vector_records
from index.embedded.store.ledger import Row
from index.embedded.store.vector_records import FaceVectors
from index.types import Collection
from index.validation import ROUNDING


def contradicted(db: apsw.Connection, collection: Collection, subject_ids: Sequence[int]) -> list[int]:
    """Return the rejected faces of the subjects that are an enrolled face of another of them, as negative ids."""
    rejected = _rejected(db, collection, subject_ids)
    if not len(rejected.faces):
        return []
    faces, _ = vector_records.of_subjects(db, collection, subject_ids)
    return _same(rejected, faces, other_subject=True)


def of_faces(db: apsw.Connection, collection: Collection, subject_id: int, faces: Sequence[int]) -> list[int]:
    """Return the rejected faces of the subject that are one of these enrolled faces, as negative ids."""
    rejected = _rejected(db, collection, [subject_id])
    return _same(rejected, vector_records.of_faces(db, collection, faces), other_subject=False)


def _rejected(db: apsw.Connection, collection: Collection, subject_ids: Sequence[int]) -> FaceVectors:
    """Return the rejected faces of the subjects that affect searches."""
    rows: list[Row] = db.execute(
        "SELECT -id, subject_id, data FROM rejections"
        " WHERE suspended_by IS NULL AND subject_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(subject_ids)),),
    ).fetchall()
    return vector_records.decoded(db, collection, rows)


def _same(rejected: FaceVectors, enrolled: FaceVectors, *, other_subject: bool) -> list[int]:
    """Return the rejected faces whose vector is an enrolled face's. `other_subject`: only of another subject's."""
    same = rejected.vectors @ enrolled.vectors.T >= 1 - ROUNDING
    if other_subject:
        same &= rejected.subjects[:, None] != enrolled.subjects
    return [int(face) for face in rejected.faces[same.any(axis=1)]]
