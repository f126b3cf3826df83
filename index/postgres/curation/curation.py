"""Merges of subjects with undo, moves of faces, and enrolled vectors in PostgreSQL; see `index.protocol.Curation`.

A transaction locks the subjects in the order of their lookups, then the faces. A re-embedding goes on: the faces that
have a new vector change their subject in both tables.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence, Set
from itertools import groupby

import numpy as np
from psycopg import sql

from index.audit_chain import AuditEvent
from index.errors import ConflictError, InvalidError, NotFoundError
from index.postgres.curation import merge_records
from index.postgres.gallery import RETENTION, GalleryComponent, remove_expired_among
from index.postgres.store import (
    audit_records,
    collection_records,
    erasure_records,
    face_records,
    face_tables,
    subject_records,
)
from index.postgres.store.database import Connection, Row, committing
from index.protocol import UNDO_S
from index.types import Collection, Merge, MovedFaces, Receipt, SubjectVectors

_FACE = f"""
SELECT {subject_records.COLUMNS}, faces.token, faces.vector FROM {{faces}} AS faces
JOIN subjects ON subjects.id = faces.subject_id
WHERE faces.token = %s AND (expires_at IS NULL OR expires_at > %s)
"""  # noqa: S608  constants
_FIRST_FACES = f"""
WITH chosen AS MATERIALIZED (
    SELECT {subject_records.COLUMNS} FROM subjects WHERE collection_id = %(collection)s AND id = ANY(%(ids)s)
    AND (expires_at IS NULL OR expires_at > %(now)s)
) SELECT subjects.*, own.token, own.vector FROM chosen AS subjects LEFT JOIN LATERAL (
    SELECT id AS face_id, token, vector FROM {{faces}} WHERE subject_id = subjects.id ORDER BY id LIMIT %(faces)s
) AS own ON true ORDER BY subjects.id, face_id
"""  # noqa: S608  constants


class PostgresCuration(GalleryComponent):
    """The `Curation` of a gallery in PostgreSQL."""

    @committing
    def merge(
        self,
        db: Connection,
        collection: str,
        key: str,
        absorbed: Sequence[str],
        *,
        undo_s: float = UNDO_S,
        actor: str | None = None,
    ) -> Merge:
        """See `Curation`."""
        target = collection_records.find(db, collection, "share")
        wanted = {subject_records.lookup(db, target.id, name): name for name in (*reversed(absorbed), key)}
        subjects, now = self._lock(db, target, list(wanted))
        kept = subject_records.lookup(db, target.id, key)
        if kept not in subjects:
            raise NotFoundError(f"there is no subject {key!r}")
        others = {lookup: row for lookup, row in subjects.items() if lookup != kept}
        if not absorbed or kept in {subject_records.lookup(db, target.id, name) for name in absorbed}:
            raise InvalidError("expected other subjects than the one that is kept")
        if not others and (repeated := _repeated(db, target, subjects[kept][1], wanted.keys() - {kept}, now)):
            return repeated
        for lookup, name in wanted.items():
            if lookup not in subjects:
                raise NotFoundError(f"there is no subject {name!r}")
        number, ids = subjects[kept][1], sorted(row[1] for row in others.values())
        ends = [row[2] for row in others.values() if row[2] is not None]
        new = Merge(0, secrets.token_hex(16), key, (), 0, now, min([now + undo_s, *ends]))
        faces = merge_records.insert(db, target, number, ids, new)
        event = AuditEvent("merge_subjects", now, actor, target.id, [number, *ids], faces, of=new.token)
        audit_records.record(db, event)
        return _find(db, target, new.token, now)[0]

    @committing
    def undo_merge(self, db: Connection, collection: str, token: str, *, actor: str | None = None) -> Merge:
        """See `Curation`."""
        target = collection_records.find(db, collection, "share")
        merge, kept = _find(db, target, token, self.database.now(db))
        subjects, now = self._lock(db, target, _lookups(db, target, merge))
        merge, kept = _find(db, target, token, now, lock=True)
        if merge.undone_at is not None:
            return merge
        if not merge.subject:
            raise ConflictError("the subject was merged into another one since: undo that merge first")
        if subject_records.lookup(db, target.id, merge.subject) not in subjects:
            raise NotFoundError(f"there is no subject {merge.subject!r}")  # it has expired
        remove_expired_among(db, target, merge.absorbed, now)
        ids, faces = merge_records.restore(db, target, merge, kept, now)
        audit_records.record(db, AuditEvent("undo_merge", now, actor, target.id, [kept, *ids], faces, of=token))
        return _find(db, target, token, now)[0]

    def merges(self, collection: str, after: int = 0, limit: int = 100) -> list[Merge]:
        """See `Curation`."""
        with self.gallery.reading(collection) as (db, target):
            return merge_records.page(db, target.id, after, limit, self.database.now(db))

    @committing
    def move_faces(
        self, db: Connection, collection: str, faces: Sequence[str], key: str, *, actor: str | None = None
    ) -> MovedFaces:
        """See `Curation`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        if not faces:
            raise InvalidError("expected at least one face")
        existing = remove_expired_among(db, target, [key], now)
        (number,) = subject_records.put_all(db, target.id, {key: None}, existing, now).values()
        owners = face_records.ids_of_tokens(db, target.id, faces)
        moving = [face for face, owner in owners.items() if owner != number]
        sources = subject_records.by_id(db, {owners[face] for face in moving})
        if any(source.expires_at is not None and source.expires_at <= now for source in sources.values()):
            raise NotFoundError("there is no such face")
        tokens = _tokens(db, target, moving)
        receipt = None
        if moving:
            rejected = merge_records.rejections_of_faces(db, target.id, number, moving)
            merge_records.give(db, target.id, moving, number)
            merge_records.keep_at(db, moving)
            subjects = [number, *sorted(sources)]
            audit_records.record(db, AuditEvent("move_faces", now, actor, target.id, subjects, moving))
            receipt = _erase_rejections(db, target, number, rejected, now, actor)
        subject = subject_records.by_id(db, [number])[number]
        return MovedFaces(subject_records.counted(db, target.id, subject), tokens, receipt)

    def face(self, collection: str, face: str) -> SubjectVectors:
        """See `Curation`."""
        with self.gallery.reading(collection) as (db, target):
            statement = sql.SQL(_FACE).format(faces=face_tables.faces(target.id))
            rows = db.execute(statement, (face, self.database.now(db))).fetchall()
            if not rows:
                raise NotFoundError(f"there is no face {face!r}")
            return _subject_vectors(rows, target)

    def subject_vectors(self, collection: str, ids: Sequence[int], *, faces: int = 16) -> list[SubjectVectors]:
        """See `Curation`."""
        with self.gallery.reading(collection) as (db, target):
            statement = sql.SQL(_FIRST_FACES).format(faces=face_tables.faces(target.id))
            values = {"collection": target.id, "ids": list(ids), "now": self.database.now(db), "faces": faces}
            rows = db.execute(statement, values).fetchall()
            return [_subject_vectors(list(own), target) for _, own in groupby(rows, key=lambda row: row[0])]

    def _lock(self, db: Connection, collection: Collection, lookups: Sequence[bytes]) -> tuple[dict[bytes, Row], float]:
        """Lock the subjects; return lookup, id and expiry of those that have not expired, and the time."""
        rows, now = subject_records.lock(db, collection.id, lookups), self.database.now(db)
        return {row[0]: row for row in rows if row[2] is None or row[2] > now}, now


def _repeated(db: Connection, collection: Collection, kept: int, absorbed: Set[bytes], now: float) -> Merge | None:
    """Return the last merge in which the subject absorbed exactly those with these lookups, if that can be undone."""
    for merge in merge_records.of_subject(db, kept, now):
        if {subject_records.lookup(db, collection.id, key) for key in merge.absorbed} == absorbed:
            return merge
    return None


def _find(db: Connection, collection: Collection, token: str, now: float, *, lock: bool = False) -> tuple[Merge, int]:
    """Return the merge with this token, and the id of the subject that was kept. `lock`: until the transaction ends.

    Raises:
        NotFoundError: there is none, or the time to undo it is over.
    """
    found = merge_records.find(db, collection.id, token, now, lock=lock)
    if found is None:
        raise NotFoundError("there is no such merge, or the time to undo it is over")
    return found


def _lookups(db: Connection, collection: Collection, merge: Merge) -> list[bytes]:
    return [subject_records.lookup(db, collection.id, key) for key in (merge.subject, *merge.absorbed)]


def _tokens(db: Connection, collection: Collection, faces: Sequence[int]) -> tuple[str, ...]:
    statement = sql.SQL("SELECT token FROM {} WHERE id = ANY(%s) ORDER BY id").format(face_tables.faces(collection.id))
    return tuple(row[0] for row in db.execute(statement, (list(faces),)))


def _erase_rejections(
    db: Connection, collection: Collection, subject_id: int, rejected: Sequence[int], now: float, actor: str | None
) -> Receipt | None:
    """Erase these rejected faces of the subject; return the receipt, None where there are none."""
    if not rejected:
        return None
    erasure_records.remove_rejections(db, rejected)
    receipt = erasure_records.insert_receipt(db, collection.id, 0, len(rejected), now)
    faces = [-number for number in rejected]
    audit_records.record(db, AuditEvent("erase", now, actor, collection.id, [subject_id], faces, receipt.token))
    return receipt


def _subject_vectors(rows: Sequence[Row], collection: Collection) -> SubjectVectors:
    """Return the subject of rows of its columns, a face's token and a vector, or two NULLs instead."""
    faces = [row[-2:] for row in rows if row[-1] is not None]
    vectors = [vector.to_numpy() for _, vector in faces]
    return SubjectVectors(
        subject_records.read(rows[0][:-2]),
        tuple(token for token, _ in faces),
        np.array(vectors, np.float32).reshape(len(faces), collection.dimensions),
    )


def forget_ended(db: Connection, now: float, limit: int = 1000) -> int:
    """Erase what undoing at most `limit` merges needs whose time is over, and return how many."""
    ended = merge_records.take_ended(db, now, limit)
    for merge_id, collection_id, token in ended:
        subjects, receipt = merge_records.forget(db, collection_id, merge_id, token, now)
        event = AuditEvent("forget_merge", now, RETENTION, collection_id, subjects, id=receipt.token)
        audit_records.record(db, event)
    return len(ended)
