"""Sightings of people in front of cameras; they expire, and are erased with their subject or their collection.

A transaction that adds a sighting locks the collection, the subject, and the settings of the collection's sightings, in
this order. It keeps the last lock until it ends: one transaction at a time adds sightings to a collection, so that
their positions increase in the order of the commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from index.audit_chain import AuditEvent
from index.postgres.gallery import RETENTION, GalleryComponent, PostgresGallery
from index.postgres.sightings import records
from index.postgres.store import audit_records, collection_records, erasure_records, subject_records
from index.postgres.store.database import Connection, Database, committing
from index.sightings import (
    ALL_SIGHTINGS,
    NewSighting,
    Sighting,
    SightingFilter,
    SightingSettings,
    check_settings,
    check_sighting,
    expiry,
    face_to_recognise,
)
from index.types import Collection, Receipt

# Called with each new sighting of a collection, in the transaction that stores it.
Observer = Callable[[Connection, Collection, Sighting], None]

# Expired sightings wait this many seconds, so that pages are not overwritten for each of them.
ERASE_AFTER_S = 600.0
ERASE_BATCH = 1000  # sightings of one transaction


class PostgresSightings(GalleryComponent):
    """The `Sightings` of a gallery in PostgreSQL. `observers` write what depends on a new one, such as alerts."""

    def __init__(self, gallery: PostgresGallery, observers: Sequence[Observer] = ()):
        super().__init__(gallery)
        self._observers = tuple(observers)

    @committing
    def add(self, db: Connection, collection: str, sighting: NewSighting, *, actor: str | None = None) -> Sighting:
        """See `Sightings`."""
        target = collection_records.find(db, collection, "share")
        subject_id = None
        if sighting.subject is not None:
            subject_id = subject_records.find(db, target.id, sighting.subject, self.database.now(db), lock=True).id
        settings = records.lock_settings(db, target.id)
        now = self.database.now(db)
        check_sighting(sighting, now)
        face, expires_at = face_to_recognise(sighting, settings, target), expiry(sighting, settings, now)
        recognised = records.recognise(db, target, face, now) if face else None
        token = records.insert(db, target.id, subject_id, sighting, recognised, now, expires_at)
        stored = records.find(db, token, now)
        subjects = [] if subject_id is None else [subject_id]
        audit_records.record(db, AuditEvent("add_sighting", now, actor, target.id, subjects, [-stored.id]))
        for observe in self._observers:
            observe(db, target, stored)
        return stored

    def page(
        self,
        collection: str,
        where: SightingFilter = ALL_SIGHTINGS,
        after: int = 0,
        limit: int = 100,
        *,
        newest_first: bool = False,
    ) -> list[Sighting]:
        """See `Sightings`."""
        with self.database.snapshot() as db:
            number, now = collection_records.find(db, collection).id, self.database.now(db)
            return records.page(db, number, where, after, limit, now, newest_first=newest_first)

    def sighting(self, token: str) -> Sighting:
        """See `Sightings`."""
        with self.database.snapshot() as db:
            return records.find(db, token, self.database.now(db))

    def crop(self, token: str) -> bytes:
        """See `Sightings`."""
        with self.database.snapshot() as db:
            return records.crop(db, token, self.database.now(db))

    @committing
    def remove(self, db: Connection, token: str, *, actor: str | None = None) -> Receipt:
        """See `Sightings`."""
        (collection_id, number, subject_id), now = records.delete(db, token), self.database.now(db)
        receipt = erasure_records.insert_receipt(db, collection_id, 0, 0, now, sightings=1)
        subjects = [] if subject_id is None else [subject_id]
        audit_records.record(db, AuditEvent("erase", now, actor, collection_id, subjects, [-number], receipt.token))
        return receipt

    def settings(self, collection: str) -> SightingSettings:
        """See `Sightings`."""
        with self.database.snapshot() as db:
            return records.settings(db, collection_records.find(db, collection).id)

    @committing
    def put_settings(
        self, db: Connection, collection: str, settings: SightingSettings, *, actor: str | None = None
    ) -> SightingSettings:
        """See `Sightings`."""
        check_settings(settings)
        number = collection_records.find(db, collection, "share").id
        allowed, now = records.lock_settings(db, number).pseudonyms, self.database.now(db)
        records.put_settings(db, number, settings)
        audit_records.record(db, AuditEvent("put_sighting_settings", now, actor, number))
        if settings.pseudonyms and not allowed:
            audit_records.record(db, AuditEvent("allow_pseudonyms", now, actor, number))
        if allowed and not settings.pseudonyms:
            receipt = erasure_records.insert_receipt(db, number, 0, records.forget_faces(db, number), now)
            audit_records.record(db, AuditEvent("forbid_pseudonyms", now, actor, number, id=receipt.token))
        return settings


def erase_expired(database: Database) -> None:
    """Erase the expired sightings of each collection that has one that expired `ERASE_AFTER_S` ago or earlier.

    The actor is `RETENTION`.
    """
    with database.snapshot() as db:
        collections = records.expired_collections(db, database.now(db) - ERASE_AFTER_S)
    for collection_id in collections:
        while database.write(partial(_erase_batch, database=database, collection_id=collection_id)) == ERASE_BATCH:
            pass


def _erase_batch(db: Connection, database: Database, collection_id: int) -> int:
    """Erase at most ERASE_BATCH expired sightings, and return their number."""
    now = database.now(db)
    ids = records.delete_expired(db, collection_id, now, ERASE_BATCH)
    if ids:
        receipt = erasure_records.insert_receipt(db, collection_id, 0, 0, now, sightings=len(ids))
        faces = [-number for number in ids]
        audit_records.record(db, AuditEvent("erase", now, RETENTION, collection_id, (), faces, receipt.token))
    return len(ids)
