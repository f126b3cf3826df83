"""The gallery in PostgreSQL.

Every change takes its locks in one order, so that no two transactions wait for each other: the collection's row, the
subjects by their lookups, the faces by their ids. The collection's row is locked FOR SHARE; dropping and re-embedding
lock it FOR UPDATE, and so wait for the changes that run. Two enrolments can still create the same two subjects in such
an order that PostgreSQL aborts one; `Database.write` repeats it.

A read holds a lock of the collection's table (`PostgresGallery.reading`): dropping and re-embedding wait for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from psycopg import errors as sql_errors

from index.audit_chain import AuditEvent
from index.postgres import hnsw
from index.postgres.audit import AuditLog
from index.postgres.store import (
    audit_records,
    collection_records,
    erasure_records,
    face_records,
    face_tables,
    subject_records,
)
from index.postgres.store.database import Connection, Database, committing
from index.types import Collection, CollectionUsage, CountedSubject, Face, NewFace, Receipt, Subject
from index.validation import check_fingerprint, check_future, normalised

RETENTION = "retention"  # the actor of expiry

Snapshot = Callable[[], AbstractContextManager[Connection]]


class PostgresGallery:
    """A `Gallery` in a database."""

    def __init__(self, database: Database):
        self.database = database
        self.audit = AuditLog(database)
        self._ids: dict[str, int] = {}  # of the collections that were read

    def clock(self) -> float:
        """See `Gallery`."""
        return self.database.clock()

    @contextmanager
    def reading(self, name: str, snapshot: Snapshot | None = None) -> Iterator[tuple[Connection, Collection]]:
        """Yield a snapshot and the collection in it, which is not dropped or re-embedded before the snapshot ends.

        `snapshot`: by default the database's.

        Raises:
            NotFoundError: no such collection. UnavailableError: see `Database.snapshot`.
        """
        with ExitStack() as stack:
            while (locked := self._locked(name, snapshot or self.database.snapshot, stack)) is None:
                pass
            yield locked

    def _locked(self, name: str, snapshot: Snapshot, stack: ExitStack) -> tuple[Connection, Collection] | None:
        """Enter a snapshot and return it with the collection; None where the id of the collection was not known."""
        # The table must be locked before the first row is read: the snapshot is of that moment, and a table that is
        # replaced later appears empty in it.
        number = self._ids.get(normalised(name))
        try:
            with ExitStack() as attempt:
                db = attempt.enter_context(snapshot())
                if number is not None:
                    face_tables.lock(db, number)
                collection = collection_records.find(db, name)
                if collection.id == number:
                    stack.push(attempt.pop_all())
                    return db, collection
            self._ids[collection.name] = collection.id
        except sql_errors.UndefinedTable:
            self._ids.pop(normalised(name), None)  # it was dropped
        return None

    @committing
    def create(
        self,
        db: Connection,
        /,  # a setting may be called `self`
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Collection:
        """See `Gallery`."""
        now = self.database.now(db)
        collection = Collection(0, name, embedder, fingerprint, dimensions, settings, now, encrypted=encrypted)
        inserted = collection_records.insert(db, collection)
        audit_records.record(db, AuditEvent("create_collection", now, actor, inserted.id))
        return inserted

    def collection(self, name: str) -> Collection:
        """See `Gallery`."""
        with self.database.snapshot() as db:
            return collection_records.find(db, name)

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """See `Gallery`."""
        with self.database.snapshot() as db:
            return collection_records.page(db, after, limit)

    @committing
    def drop(self, db: Connection, name: str, *, actor: str | None = None) -> Receipt:
        """See `Gallery`."""
        collection = collection_records.find(db, name, "update")
        receipt = erasure_records.remove_collection(db, collection, self.database.now(db))
        audit_records.record(db, AuditEvent("erase", receipt.requested_at, actor, collection.id, id=receipt.token))
        return receipt

    @committing
    def put_subject(
        self,
        db: Connection,
        collection: str,
        key: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        actor: str | None = None,
    ) -> CountedSubject:
        """See `Gallery`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        check_future(expires_at, now)
        remove_expired_among(db, target, [key], now)
        properties = {} if metadata is None else metadata
        subject = subject_records.upsert(
            db, target.id, key, name=name, metadata=properties, expires_at=expires_at, now=now
        )
        audit_records.record(db, AuditEvent("put_subject", now, actor, target.id, [subject.id]))
        return subject_records.counted(db, target.id, subject)

    def subject(self, collection: str, key: str) -> CountedSubject:
        """See `Gallery`."""
        with self.reading(collection) as (db, target):
            subject = subject_records.find(db, target.id, key, self.database.now(db))
            return subject_records.counted(db, target.id, subject)

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """See `Gallery`."""
        with self.reading(collection) as (db, target):
            return subject_records.page(db, target.id, after, limit, self.database.now(db))

    @committing
    def remove_subject(self, db: Connection, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """See `Gallery`."""
        target = collection_records.find(db, collection, "share")
        number = subject_records.lock_existing(db, target.id, key)
        return remove_subjects(db, target, [number], self.database.now(db), actor)

    @committing
    def enrol(
        self,
        db: Connection,
        collection: str,
        faces: Sequence[NewFace],
        fingerprint: str,
        *,
        actor: str | None = None,
    ) -> list[Face]:
        """See `Gallery`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        check_fingerprint(target, fingerprint)
        keys = dict.fromkeys(face.subject for face in faces)
        existing = remove_expired_among(db, target, keys, now)
        ids_of_keys = subject_records.put_all(db, target.id, keys, existing, now)
        enrolled, subjects = face_records.insert(db, target, faces, ids_of_keys, now)
        ids = [face.id for face in enrolled]
        audit_records.record(db, AuditEvent("enrol", now, actor, target.id, subjects, ids))
        return enrolled

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """See `Gallery`."""
        with self.reading(collection) as (db, target):
            subject = subject_records.find(db, target.id, key, self.database.now(db))
            return face_records.of_subject(db, target.id, subject, after, limit)

    def crop(self, collection: str, face: str) -> bytes:
        """See `Gallery`."""
        with self.reading(collection) as (db, target):
            return face_records.crop(db, target.id, face)

    @committing
    def remove_faces(
        self, db: Connection, collection: str, faces: Sequence[str], *, actor: str | None = None
    ) -> Receipt:
        """See `Gallery`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        owners = face_records.ids_of_tokens(db, target.id, faces)
        receipt = erasure_records.remove_faces(db, target, list(owners), subjects=0, now=now)
        subjects = sorted(set(owners.values()))
        audit_records.record(db, AuditEvent("erase", now, actor, target.id, subjects, list(owners), receipt.token))
        return receipt

    def receipt(self, token: str) -> Receipt:
        """See `Gallery`."""
        with self.database.snapshot() as db:
            return erasure_records.receipt(db, token)

    def size(self, collection: str) -> int:
        """See `Gallery`."""
        with self.database.snapshot() as db:
            return collection_records.counts(db, collection_records.find(db, collection).id)[1]

    def usage(self, collection: str) -> CollectionUsage:
        """See `Gallery`."""
        with self.reading(collection) as (db, target):
            return self.usage_of(db, target)

    def usage_of(self, db: Connection, collection: Collection) -> CollectionUsage:
        """Return the usage of a collection in `reading`."""
        exact = not hnsw.is_indexed(db, collection.id)
        return CollectionUsage(
            *collection_records.counts(db, collection.id), exact, face_tables.file_bytes(db, collection.id)
        )

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """See `Gallery`."""
        number = self._ids.get(normalised(collection)) or self.collection(collection).id
        self.audit.add(AuditEvent("search", self.clock(), actor, number, sorted({subject.id for subject in found})))


class GalleryComponent:
    """Base class of objects that work on the database of a gallery. `holder`: the id under which it holds leases."""

    def __init__(self, gallery: PostgresGallery):
        self.gallery = gallery
        self.database = gallery.database
        self.holder = secrets.token_hex(16)


def remove_subjects(
    db: Connection, collection: Collection, subject_ids: Sequence[int], now: float, actor: str | None = None
) -> Receipt:
    """Erase the subjects, which are locked, and all their faces, and return the receipt."""
    receipt, faces = erasure_records.remove_subjects(db, collection, subject_ids, now)
    audit_records.record(db, AuditEvent("erase", now, actor, collection.id, subject_ids, faces, receipt.token))
    return receipt


def remove_expired_among(db: Connection, collection: Collection, keys: Iterable[str], now: float) -> dict[bytes, int]:
    """Lock the subjects with these keys until the transaction ends, and erase those that have expired.

    So a new enrolment under the key starts a new subject. The actor is `RETENTION`. Return the others' ids by lookup.
    """
    existing, expired = subject_records.lock_all(db, collection.id, keys, now)
    if expired:
        remove_subjects(db, collection, expired, now, RETENTION)
    return existing
