"""Feedback in PostgreSQL: faces that were reported not to be a subject.

A search (index/postgres/search.py) does not return a subject for a face that is at least as similar to such a rejected
face as to the subject. The crop of a rejected face is sealed as those of enrolled faces are. Without its crop a
rejected face is discarded when the collection is re-embedded (index/postgres/reembedding.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from index.audit_chain import AuditEvent
from index.errors import NotFoundError
from index.postgres.gallery import GalleryComponent
from index.postgres.store import audit_records, collection_records, erasure_records, face_records, subject_records
from index.postgres.store.database import Connection, committing
from index.records import RejectionRecord
from index.types import Floats, Receipt, Rejection
from index.validation import check_fingerprint, unit_vectors


class PostgresFeedback(GalleryComponent):
    """The `Feedback` of a gallery in PostgreSQL."""

    @committing
    def add(
        self,
        db: Connection,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> list[Rejection]:
        """See `Feedback`."""
        target = collection_records.find(db, collection, "share")
        check_fingerprint(target, fingerprint)
        scaled = unit_vectors(vectors, target.dimensions)
        # The subject is locked before time and ids are read: so those of its rejected faces increase with the commits.
        subject = subject_records.find(db, target.id, key, self.database.now(db), lock=True)
        now = self.database.now(db)
        rows = [
            (subject.id, RejectionRecord(0, key, secrets.token_hex(16), now, vector.astype("<f4").tobytes(), crop))
            for vector, crop in zip(scaled, crops or [None] * len(scaled), strict=True)
        ]
        faces = face_records.insert_rejections(db, target.id, rows)
        audit_records.record(
            db, AuditEvent("feedback", now, actor, target.id, [subject.id], [-face.id for face in faces])
        )
        return [Rejection(face.token, now, face.id) for face in faces]

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """See `Feedback`."""
        with self.gallery.reading(collection) as (db, target):
            subject = subject_records.find(db, target.id, key, self.database.now(db))
            rows = db.execute(
                "SELECT token, created_at, id FROM rejections"
                " WHERE subject_id = %s AND suspended_by IS NULL AND (created_at, id) > (%s, %s)"
                " ORDER BY created_at, id LIMIT %s",
                (subject.id, *after, None if limit < 0 else limit),
            )
            return [Rejection(*row) for row in rows]

    @committing
    def remove(self, db: Connection, collection: str, key: str, token: str, *, actor: str | None = None) -> Receipt:
        """See `Feedback`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        subject_id = subject_records.lock_existing(db, target.id, key)
        row = db.execute(
            "SELECT id FROM rejections WHERE subject_id = %s AND token = %s", (subject_id, token)
        ).fetchone()
        if row is None:
            raise NotFoundError("there is no such feedback")
        erasure_records.remove_rejections(db, [row[0]])
        receipt = erasure_records.insert_receipt(db, target.id, 0, 1, now)
        audit_records.record(db, AuditEvent("erase", now, actor, target.id, [subject_id], [-row[0]], receipt.token))
        return receipt
