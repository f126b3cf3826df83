"""Calibrations of collections; see `index.protocol.Calibrations`."""

from __future__ import annotations

from dataclasses import replace

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.calibration import calibration_records
from index.embedded.gallery import GalleryComponent
from index.embedded.store import collection_records
from index.embedded.store.changes import committing
from index.types import Calibration
from index.validation import check_fingerprint


class Calibrations(GalleryComponent):
    """The calibrations of a gallery; see `index.protocol.Calibrations`."""

    @committing
    def add(
        self, db: apsw.Connection, collection: str, fingerprint: str, data: str, *, actor: str | None = None
    ) -> Calibration:
        """See `Calibrations`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        check_fingerprint(target, fingerprint)
        added = calibration_records.insert(db, target, data, now)
        calibration_records.use(db, target.id, added.id)
        audit.record(db, AuditEvent("calibrate", now, actor, target.id, of=added.token))
        return replace(added, in_use=True)

    @committing
    def use(
        self, db: apsw.Connection, collection: str, token: str | None, *, actor: str | None = None
    ) -> Calibration | None:
        """See `Calibrations`."""
        target, now = collection_records.find(db, collection), self.gallery.clock()
        chosen = None if token is None else calibration_records.find(db, target.id, token)
        if chosen is not None:
            check_fingerprint(target, chosen.fingerprint)
        calibration_records.use(db, target.id, chosen.id if chosen else 0)
        audit.record(db, AuditEvent("use_calibration", now, actor, target.id, of=token))
        return chosen and replace(chosen, in_use=True)

    def in_use(self, collection: str) -> Calibration | None:
        """See `Calibrations`."""
        with self.ledger.snapshot() as db:
            return collection_records.calibration_in_use(db, collection_records.find(db, collection))

    def find(self, collection: str, token: str) -> Calibration:
        """See `Calibrations`."""
        with self.ledger.snapshot() as db:
            return calibration_records.find(db, collection_records.find(db, collection).id, token)

    def page(self, collection: str, after: int = 0, limit: int = 100) -> list[Calibration]:
        """See `Calibrations`."""
        with self.ledger.snapshot() as db:
            return calibration_records.page(db, collection_records.find(db, collection).id, after, limit)
