"""Calibrations of collections in PostgreSQL; see `index.protocol.Calibrations`."""

from __future__ import annotations

from dataclasses import replace

from index.audit_chain import AuditEvent
from index.postgres.calibration import calibration_records
from index.postgres.gallery import GalleryComponent
from index.postgres.store import audit_records, collection_records
from index.postgres.store.database import Connection, committing
from index.types import Calibration
from index.validation import check_fingerprint


class PostgresCalibrations(GalleryComponent):
    """The `Calibrations` of a gallery in PostgreSQL."""

    @committing
    def add(
        self, db: Connection, collection: str, fingerprint: str, data: str, *, actor: str | None = None
    ) -> Calibration:
        """See `Calibrations`."""
        target, now = collection_records.find(db, collection, "update"), self.database.now(db)
        check_fingerprint(target, fingerprint)
        added = calibration_records.insert(db, target, data, now)
        calibration_records.use(db, target.id, added.id)
        audit_records.record(db, AuditEvent("calibrate", now, actor, target.id, of=added.token))
        return replace(added, in_use=True)

    @committing
    def use(
        self, db: Connection, collection: str, token: str | None, *, actor: str | None = None
    ) -> Calibration | None:
        """See `Calibrations`."""
        target, now = collection_records.find(db, collection, "update"), self.database.now(db)
        chosen = None if token is None else calibration_records.find(db, target.id, token)
        if chosen is not None:
            check_fingerprint(target, chosen.fingerprint)
        calibration_records.use(db, target.id, chosen.id if chosen else 0)
        audit_records.record(db, AuditEvent("use_calibration", now, actor, target.id, of=token))
        return chosen and replace(chosen, in_use=True)

    def in_use(self, collection: str) -> Calibration | None:
        """See `Calibrations`."""
        with self.database.snapshot() as db:
            return collection_records.calibration_in_use(db, collection_records.find(db, collection))

    def find(self, collection: str, token: str) -> Calibration:
        """See `Calibrations`."""
        with self.database.snapshot() as db:
            return calibration_records.find(db, collection_records.find(db, collection).id, token)

    def page(self, collection: str, after: int = 0, limit: int = 100) -> list[Calibration]:
        """See `Calibrations`."""
        with self.database.snapshot() as db:
            return calibration_records.page(db, collection_records.find(db, collection).id, after, limit)
