"""Deletions of subjects, each recorded in the audit log by the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import AuditEvent
from index.embedded.store import erasure_records, face_records, subject_records
from index.types import Receipt

RETENTION = "retention"  # the actor of expiry


def remove_subjects(
    db: apsw.Connection, collection_id: int, subject_ids: Sequence[int], now: float, actor: str | None = None
) -> Receipt:
    """Delete the subjects and all their faces, and return the receipt."""
    faces = [face for subject_id in subject_ids for face in face_records.ids_of_subject(db, subject_id)]
    receipt = erasure_records.remove_subjects(db, collection_id, subject_ids, now)
    audit.record(db, AuditEvent("erase", now, actor, collection_id, subject_ids, faces, receipt.token))
    return receipt


def remove_expired(db: apsw.Connection, now: float, limit: int = 1000) -> int:
    """Delete at most `limit` expired subjects with their faces, and return how many.

    Needs no key, also for encrypted collections. The actor is `RETENTION`.
    """
    expired = subject_records.expired(db, now, limit)
    for collection_id, subject_id in expired:
        remove_subjects(db, collection_id, [subject_id], now, RETENTION)
    return len(expired)


def remove_expired_among(db: apsw.Connection, collection_id: int, keys: Iterable[str], now: float) -> None:
    """Delete those of the subjects that have expired, so that a new enrolment under the key starts a new subject."""
    if ids := subject_records.expired_among(db, collection_id, keys, now):
        remove_subjects(db, collection_id, ids, now, RETENTION)
