"""Feedback: faces that were reported not to be a subject.

A search (index/embedded/query/search.py) does not return a subject for a face that is at least as similar to such a
rejected face as to the subject. So the same image never matches that subject again, most other images of the same
person do not, and the subject's own images, which are more similar to the subject, still do.

If the collection keeps crops, the crop of a rejected face is kept, too, and erased with it. Without its crop a rejected
face is discarded when the collection is re-embedded (index/embedded/tasks/reembedding.py), since its vector is then
meaningless.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.gallery import GalleryComponent
from index.embedded.store import collection_records, erasure_records, subject_records, vector_records
from index.embedded.store.changes import committing
from index.embedded.store.tombstones import erasing
from index.errors import NotFoundError
from index.records import RejectionRecord
from index.types import Floats, Receipt, Rejection
from index.validation import check_fingerprint, unit_vectors


class Feedback(GalleryComponent):
    """The feedback on a gallery's subjects."""

    @committing
    def add(
        self,
        db: apsw.Connection,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> list[Rejection]:
        """Store that these faces [N, D] are not the subject. They are erased with the subject.

        Raises:
            NotFoundError: no such collection or subject. InvalidError, ConflictError: see `Searches`.
        """
        target, now = collection_records.find(db, collection), self.gallery.clock()
        check_fingerprint(target, fingerprint)
        scaled = unit_vectors(vectors, target.dimensions)
        subject = subject_records.find(db, target.id, key, now)
        faces = [
            RejectionRecord(number, key, secrets.token_hex(16), now, vector.astype("<f4").tobytes(), crop)
            for number, vector, crop in zip(
                vector_records.new_rejection_ids(len(scaled)), scaled, crops or [None] * len(scaled), strict=True
            )
        ]
        vector_records.insert_rejected(db, target.id, [(subject.id, face) for face in faces])
        audit.record(db, AuditEvent("feedback", now, actor, target.id, [subject.id], [-face.id for face in faces]))
        return [Rejection(face.token, now, face.id) for face in faces]

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """Return at most `limit` rejected faces of the subject (-1: all), by `created_at` and `id`, above `after`.

        Raises:
            NotFoundError: no such collection or subject.
        """
        with self.ledger.snapshot() as db:
            subject = subject_records.find(db, collection_records.find(db, collection).id, key, self.gallery.clock())
            rows = db.execute(
                "SELECT token, created_at, id FROM rejections"
                " WHERE subject_id = ? AND suspended_by IS NULL AND (created_at, id) > (?, ?)"
                " ORDER BY created_at, id LIMIT ?",
                (subject.id, *after, limit),
            )
            return [Rejection(*row) for row in rows]

    @erasing
    def remove(
        self, db: apsw.Connection, collection: str, key: str, token: str, *, actor: str | None = None
    ) -> Receipt:
        """Erase a rejected face, so that it no longer affects searches.

        Raises:
            NotFoundError: no such collection, subject or rejected face.
        """
        number = collection_records.find(db, collection).id
        subject = subject_records.find(db, number, key)
        row = db.execute("SELECT id FROM rejections WHERE subject_id = ? AND token = ?", (subject.id, token)).fetchone()
        if row is None:
            raise NotFoundError("there is no such feedback")
        faces = [-row[0]]
        receipt = erasure_records.remove_faces(db, number, faces, subjects=0, now=self.gallery.clock())
        audit.record(db, AuditEvent("erase", receipt.requested_at, actor, number, [subject.id], faces, receipt.token))
        return receipt
