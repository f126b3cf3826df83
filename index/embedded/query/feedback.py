"""Feedback: faces that were reported not to be a subject, and their effect on searches.

A search does not return a subject for a face that is at least as similar to such a rejected face as to the subject. So
the same image never matches that subject again, most other images of the same person do not, and the subject's own
images, which are more similar to the subject, still do.

If the collection keeps crops, the crop of a rejected face is kept, too, and erased with it. Without its crop a rejected
face is discarded when the collection is re-embedded (index/embedded/tasks/reembedding.py), since its vector is then
meaningless.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apsw
import numpy as np

from index.embedded.audit import log as audit
from index.embedded.audit.entries import AuditEvent
from index.embedded.encryption.data_keys import cipher_of, ciphers
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, subject_records
from index.embedded.store.ledger import Change, committing
from index.errors import NotFoundError
from index.types import Floats, Match, Receipt
from index.validation import unit_vectors

ROUNDING = 1e-5  # the most by which two computations of the same cosine differ


@dataclass(frozen=True)
class Rejection:
    """A face that is not the subject's. `token` identifies it in the API, `id` is its row."""

    token: str
    created_at: float
    id: int


class Feedback:
    """The feedback on a gallery's subjects."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery

    @committing
    def add(
        self,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> Change[list[Rejection]]:
        """Store that these faces [N, D] are not the subject. They are erased with the subject.

        Raises:
            NotFoundError: no such collection or subject. InvalidError, ConflictError: see `Gallery.search`.
        """

        def write(db: apsw.Connection) -> list[Rejection]:
            target, now = collection_records.find(db, collection), self._gallery.clock()
            collection_records.check_fingerprint(target, fingerprint)
            scaled = unit_vectors(vectors, target.dimensions)
            subject, cipher = subject_records.find(db, target.id, key, now), cipher_of(db, target.id)
            rejections = [Rejection(secrets.token_hex(16), now, secrets.randbelow(2**62) + 1) for _ in scaled]
            face_ids = [-rejection.id for rejection in rejections]
            for rejection, vector, crop in zip(rejections, scaled, crops or [None] * len(scaled), strict=True):
                data = cipher.encrypt(vector.astype("<f4").tobytes(), "vector", -rejection.id)
                crop_data = None if crop is None else cipher.encrypt(crop, "crop", -rejection.id)
                db.execute(
                    "INSERT INTO rejections (id, subject_id, token, created_at, data, crop) VALUES (?, ?, ?, ?, ?, ?)",
                    (rejection.id, subject.id, rejection.token, rejection.created_at, data, crop_data),
                )
            audit.record(db, AuditEvent("feedback", now, actor, target.id, [subject.id], face_ids))
            return rejections

        return self._gallery.change(write)

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """Return at most `limit` rejected faces of the subject (-1: all), by `created_at` and `id`, above `after`.

        Raises:
            NotFoundError: no such collection or subject.
        """
        with self._gallery.ledger.snapshot() as db:
            subject = subject_records.find(db, collection_records.find(db, collection).id, key, self._gallery.clock())
            rows = db.execute(
                "SELECT token, created_at, id FROM rejections WHERE subject_id = ? AND (created_at, id) > (?, ?)"
                " ORDER BY created_at, id LIMIT ?",
                (subject.id, *after, limit),
            )
            return [Rejection(*row) for row in rows]

    @committing
    def remove(self, collection: str, key: str, token: str, *, actor: str | None = None) -> Change[Receipt]:
        """Erase a rejected face, so that it no longer affects searches.

        Raises:
            NotFoundError: no such collection, subject or rejected face.
        """

        def write(db: apsw.Connection) -> Receipt:
            number = collection_records.find(db, collection).id
            subject = subject_records.find(db, number, key)
            row = db.execute(
                "SELECT id FROM rejections WHERE subject_id = ? AND token = ?", (subject.id, token)
            ).fetchone()
            if row is None:
                raise NotFoundError("there is no such feedback")
            faces = [-row[0]]
            receipt = erasure_records.remove_faces(db, number, faces, subjects=0, now=self._gallery.clock())
            audit.record(
                db, AuditEvent("erase", receipt.requested_at, actor, number, [subject.id], faces, receipt.token)
            )
            return receipt

        return self._gallery.erasure(write)


def rejected_subjects(db: apsw.Connection, matches: Iterable[Match], query: Floats) -> set[int]:
    """Return the ids of the matched subjects that feedback rules out for the face [D]."""
    similarities = {match.subject.id: match.similarity for match in matches}
    rows = db.execute(
        "SELECT collection_id, subject_id, rejections.id, data FROM rejections"
        " JOIN subjects ON subjects.id = subject_id WHERE subject_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(similarities)),),
    )
    cipher_for = ciphers(db)
    return {
        subject
        for collection_id, subject, number, data in rows
        if float(np.frombuffer(cipher_for(collection_id).decrypt(data, "vector", -number), "<f4") @ query)
        >= similarities[subject] - ROUNDING
    }


def drop_rejected(db: apsw.Connection, matches: Sequence[Match], query: Floats) -> list[Match]:
    """Return the matches that feedback does not rule out for the face [D]."""
    rejected = rejected_subjects(db, matches, query)
    return [match for match in matches if match.subject.id not in rejected]
