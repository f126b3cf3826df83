"""Merges of subjects with undo, moves of faces, and enrolled vectors; see `index.protocol.Curation`.

A merge and a move change the subjects of faces, which keep their ids: other processes' searchers, and segments that
have the earlier subjects, follow by the ledger's table `reassignments`. A re-embedding goes on, because new vectors are
staged by face.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.curation import merge_records, rejected_faces
from index.embedded.encryption import cipher_of
from index.embedded.gallery import RETENTION, GalleryComponent, remove_expired_among
from index.embedded.store import collection_records, erasure_records, face_records, subject_records, vector_records
from index.embedded.store.changes import committing
from index.embedded.store.ledger import Row
from index.embedded.store.tombstones import erasing
from index.errors import ConflictError, InvalidError, NotFoundError
from index.protocol import UNDO_S
from index.types import Collection, CountedSubject, Merge, MovedFaces, SubjectVectors
from index.validation import normalised


class Curation(GalleryComponent):
    """The curation of a gallery; see `index.protocol.Curation`."""

    @committing
    def merge(
        self,
        db: apsw.Connection,
        collection: str,
        key: str,
        absorbed: Sequence[str],
        *,
        undo_s: float = UNDO_S,
        actor: str | None = None,
    ) -> Merge:
        """See `Curation`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        kept = subject_records.find(db, target.id, key, now)
        subjects = {name: _found(db, target, name, now) for name in absorbed}
        ids = sorted({subject.id for subject in subjects.values() if subject})
        if not absorbed or kept.id in ids:
            raise InvalidError("expected other subjects than the one that is kept")
        if not ids and (repeated := _repeated(db, target, kept, absorbed, now)):
            return repeated
        for name, subject in subjects.items():
            if subject is None:
                raise NotFoundError(f"there is no subject {name!r}")
        ends = [subject.expires_at for subject in subjects.values() if subject and subject.expires_at is not None]
        new = Merge(0, secrets.token_hex(16), kept.key, (), 0, now, min([now + undo_s, *ends]))
        faces = merge_records.insert(db, target, kept.id, ids, new)
        audit.record(db, AuditEvent("merge_subjects", now, actor, target.id, [kept.id, *ids], faces, of=new.token))
        return _find(db, target, new.token, now)[0]

    @committing
    def undo_merge(self, db: apsw.Connection, collection: str, token: str, *, actor: str | None = None) -> Merge:
        """See `Curation`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        merge, kept = _find(db, target, token, now)
        if merge.undone_at is not None:
            return merge
        if not merge.subject:
            raise ConflictError("the subject was merged into another one since: undo that merge first")
        subject_records.find(db, target.id, merge.subject, now)  # raises NotFoundError if it has expired
        remove_expired_among(db, target.id, merge.absorbed, now)
        subjects, faces = merge_records.restore(db, target.id, merge, kept, now)
        audit.record(db, AuditEvent("undo_merge", now, actor, target.id, [kept, *subjects], faces, of=token))
        return _find(db, target, token, now)[0]

    def merges(self, collection: str, after: int = 0, limit: int = 100) -> list[Merge]:
        """See `Curation`."""
        with self.ledger.snapshot() as db:
            number = collection_records.find(db, collection).id
            return merge_records.page(db, number, after, limit, self.gallery.clock())

    @erasing
    def move_faces(
        self, db: apsw.Connection, collection: str, faces: Sequence[str], key: str, *, actor: str | None = None
    ) -> MovedFaces:
        """See `Curation`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        if not faces:
            raise InvalidError("expected at least one face")
        ids = face_records.ids_of_tokens(db, target.id, faces)
        remove_expired_among(db, target.id, [key], now)
        subject = _found(db, target, key, now) or subject_records.upsert(
            db, target.id, key, name=None, metadata={}, expires_at=None, now=now
        )
        moving = _of_other_subjects(db, ids, subject.id, now)
        if not moving:
            return MovedFaces(subject, ())
        subjects = face_records.subjects_of(db, list(moving))
        rejected = rejected_faces.of_faces(db, target, subject.id, list(moving))
        vector_records.reassign(db, target.id, list(moving), subject.id)
        merge_records.keep_at(db, moving)
        event = AuditEvent("move_faces", now, actor, target.id, [subject.id, *subjects], list(moving))
        audit.record(db, event)
        moved = MovedFaces(subject_records.find(db, target.id, key, now), tuple(moving.values()))
        if not rejected:
            return moved
        receipt = erasure_records.remove_faces(db, target.id, rejected, subjects=0, now=now)
        audit.record(db, AuditEvent("erase", now, actor, target.id, [subject.id], rejected, receipt.token))
        return MovedFaces(moved.subject, moved.faces, receipt)

    def face(self, collection: str, face: str) -> SubjectVectors:
        """See `Curation`."""
        now = self.gallery.clock()
        with self.ledger.snapshot() as db:
            target = collection_records.find(db, collection)
            ids = face_records.ids_of_tokens(db, target.id, [face])
            vectors, cipher = vector_records.of_faces(db, target, ids), cipher_of(db, target.id)
            (subject,) = subject_records.by_id(db, cipher, vectors.subjects.tolist()).values()
            if subject.expires_at is not None and subject.expires_at <= now:
                raise NotFoundError("there is no such face")
            return SubjectVectors(subject, (face,), vectors.vectors)

    def subject_vectors(self, collection: str, ids: Sequence[int], *, faces: int = 16) -> list[SubjectVectors]:
        """See `Curation`."""
        now = self.gallery.clock()
        with self.ledger.snapshot() as db:
            target = collection_records.find(db, collection)
            chosen: list[Row] = db.execute(_LIVE, (json.dumps(list(ids)), target.id, now)).fetchall()
            numbers = [row[0] for row in chosen]
            subjects = subject_records.by_id(db, cipher_of(db, target.id), numbers)
            rows: list[Row] = db.execute(_FIRST_FACES, (json.dumps(numbers), faces)).fetchall()
            vectors = vector_records.decoded(db, target, [row[:3] for row in rows])
        bounds = vectors.subjects.searchsorted(numbers), vectors.subjects.searchsorted(numbers, side="right")
        return [
            SubjectVectors(subjects[number], tuple(row[3] for row in rows[start:end]), vectors.vectors[start:end])
            for number, start, end in zip(numbers, *bounds, strict=True)
        ]


_LIVE = """
SELECT id FROM subjects WHERE id IN (SELECT value FROM json_each(?)) AND collection_id = ?
AND (expires_at IS NULL OR expires_at > ?) ORDER BY id
"""
_FIRST_FACES = """
SELECT numbered.id, subject_id, data, token FROM (
    SELECT id, subject_id, token, row_number() OVER (PARTITION BY subject_id ORDER BY id) AS place FROM faces
    WHERE subject_id IN (SELECT value FROM json_each(?))
) AS numbered JOIN vectors ON face_id = numbered.id WHERE place <= ? ORDER BY subject_id, numbered.id
"""


def _found(db: apsw.Connection, collection: Collection, key: str, now: float) -> CountedSubject | None:
    """Return the subject with this key, None where there is none or it has expired."""
    with suppress(NotFoundError):
        return subject_records.find(db, collection.id, key, now)
    return None


def _repeated(
    db: apsw.Connection, collection: Collection, kept: CountedSubject, absorbed: Sequence[str], now: float
) -> Merge | None:
    """Return the last merge in which the subject absorbed exactly these keys, if that can be undone."""
    keys = set(map(normalised, absorbed))
    merges = merge_records.of_subject(db, collection.id, kept.id, now)
    return next((merge for merge in merges if set(map(normalised, merge.absorbed)) == keys), None)


def _find(db: apsw.Connection, collection: Collection, token: str, now: float) -> tuple[Merge, int]:
    """Return the merge with this token, and the id of the subject that was kept.

    Raises:
        NotFoundError: there is none, or the time to undo it is over.
    """
    found = merge_records.find(db, collection.id, token, now)
    if found is None:
        raise NotFoundError("there is no such merge, or the time to undo it is over")
    return found


def _of_other_subjects(db: apsw.Connection, faces: Sequence[int], subject_id: int, now: float) -> dict[int, str]:
    """Return id and token of those of these faces that are not the subject's.

    Raises:
        NotFoundError: the subject of a face has expired.
    """
    rows: list[Row] = db.execute(
        "SELECT faces.id, token, expires_at FROM faces JOIN subjects ON subjects.id = subject_id"
        " WHERE faces.id IN (SELECT value FROM json_each(?)) AND subject_id != ? ORDER BY faces.id",
        (json.dumps(faces), subject_id),
    ).fetchall()
    if any(expires_at is not None and expires_at <= now for _, _, expires_at in rows):
        raise NotFoundError("there is no such face")
    return {number: token for number, token, _ in rows}


def forget_ended(db: apsw.Connection, now: float, limit: int = 1000) -> int:
    """Erase what undoing at most `limit` merges needs whose time is over, and return how many. Needs no key."""
    ended = merge_records.ended(db, now, limit)
    for merge_id, collection_id in ended:
        subjects, receipt = merge_records.forget(db, collection_id, merge_id, now)
        event = AuditEvent("forget_merge", now, RETENTION, collection_id, subjects, id=receipt.token)
        audit.record(db, event)
    return len(ended)
