"""Sightings of people in front of cameras; they expire, and are erased with their subject or their collection."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.gallery import RETENTION, EmbeddedGallery, GalleryComponent
from index.embedded.sightings import records
from index.embedded.store import collection_records, erasure_records, subject_records
from index.embedded.store.changes import committing
from index.embedded.store.ledger import Ledger
from index.embedded.store.tombstones import erasing
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
Observer = Callable[[apsw.Connection, Collection, Sighting], None]

# Expired sightings wait this many seconds, so that the ledger is not scrubbed for each of them.
ERASE_AFTER_S = 600.0
ERASE_BATCH = 1000  # sightings of one transaction


class Sightings(GalleryComponent):
    """The sightings of a gallery. `observers` write what depends on a new sighting, such as alerts."""

    def __init__(self, gallery: EmbeddedGallery, observers: Sequence[Observer] = ()):
        super().__init__(gallery)
        self._observers = tuple(observers)

    @committing
    def add(self, db: apsw.Connection, collection: str, sighting: NewSighting, *, actor: str | None = None) -> Sighting:
        """See `Sightings`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        check_sighting(sighting, now)
        settings = records.settings(db, target.id)
        subject_id = None
        if sighting.subject is not None:
            subject_id = subject_records.find(db, target.id, sighting.subject, now).id
        face, expires_at = face_to_recognise(sighting, settings, target), expiry(sighting, settings, now)
        recognised = records.recognise(db, target, face, now) if face else None
        token = records.insert(db, target.id, subject_id, sighting, recognised, now, expires_at)
        _, stored = records.find(db, token, now)
        audit.record(db, AuditEvent("add_sighting", now, actor, target.id, _listed(subject_id), [-stored.id]))
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
        with self.ledger.snapshot() as db:
            number, now = collection_records.find(db, collection).id, self.gallery.clock()
            return records.page(db, number, where, after, limit, now, newest_first=newest_first)

    def sighting(self, token: str) -> Sighting:
        """See `Sightings`."""
        with self.ledger.snapshot() as db:
            return records.find(db, token, self.gallery.clock())[1]

    def crop(self, token: str) -> bytes:
        """See `Sightings`."""
        with self.ledger.snapshot() as db:
            return records.crop(db, token, self.gallery.clock())

    @erasing
    def remove(self, db: apsw.Connection, token: str, *, actor: str | None = None) -> Receipt:
        """See `Sightings`."""
        collection_id, number, subject_id = records.ids_of_token(db, token)
        receipt = erasure_records.remove_sighting(db, collection_id, number, self.gallery.clock())
        event = AuditEvent(
            "erase", receipt.requested_at, actor, collection_id, _listed(subject_id), [-number], receipt.token
        )
        audit.record(db, event)
        return receipt

    def settings(self, collection: str) -> SightingSettings:
        """See `Sightings`."""
        with self.ledger.snapshot() as db:
            return records.settings(db, collection_records.find(db, collection).id)

    @committing
    def put_settings(
        self, db: apsw.Connection, collection: str, settings: SightingSettings, *, actor: str | None = None
    ) -> SightingSettings:
        """See `Sightings`."""
        check_settings(settings)
        number, now = collection_records.find(db, collection).id, self.gallery.clock()
        allowed = records.settings(db, number).pseudonyms
        records.put_settings(db, number, settings)
        audit.record(db, AuditEvent("put_sighting_settings", now, actor, number))
        if settings.pseudonyms and not allowed:
            audit.record(db, AuditEvent("allow_pseudonyms", now, actor, number))
        if allowed and not settings.pseudonyms:
            receipt = Receipt(secrets.token_hex(16), 0, records.forget_faces(db, number), now, None)
            erasure_records.insert_receipt(db, number, receipt, through=0)
            audit.record(db, AuditEvent("forbid_pseudonyms", now, actor, number, id=receipt.token))
        return settings


def erase_expired(ledger: Ledger, now: float) -> None:
    """Erase the expired sightings of each collection that has one that expired `ERASE_AFTER_S` ago or earlier.

    Needs no key. The actor is `RETENTION`. A backup that is restored does not bring them back: they expire in it, too.
    """
    for collection_id in records.expired_collections(ledger.reader(), now - ERASE_AFTER_S):
        while ledger.write(partial(_erase_batch, collection_id=collection_id, now=now)) == ERASE_BATCH:
            pass


def _erase_batch(db: apsw.Connection, collection_id: int, now: float) -> int:
    """Erase at most ERASE_BATCH expired sightings, and return their number."""
    ids = records.delete_expired(db, collection_id, now, ERASE_BATCH)
    if ids:
        receipt = Receipt(secrets.token_hex(16), 0, 0, now, None, len(ids))
        erasure_records.insert_receipt(db, collection_id, receipt, through=0)
        faces = [-number for number in ids]
        audit.record(db, AuditEvent("erase", now, RETENTION, collection_id, (), faces, receipt.token))
    return len(ids)


def _listed(subject_id: int | None) -> list[int]:
    return [] if subject_id is None else [subject_id]
