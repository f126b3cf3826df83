"""Background maintenance of a gallery in PostgreSQL: audit log, retention, approximate indexes, erasures.

One process at a time does it, the one that holds the lease by the database's time. Every step can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from index.engine.maintenance import LEASE, LEASE_S, MaintenanceRounds
from index.postgres import hnsw
from index.postgres.curation.curation import forget_ended
from index.postgres.gallery import RETENTION, GalleryComponent, PostgresGallery, remove_subjects
from index.postgres.sightings.sightings import erase_expired as erase_expired_sightings
from index.postgres.store import (
    collection_records,
    erasure_records,
    lease_records,
    scrubbing,
    subject_records,
    wal_files,
)
from index.postgres.store.database import Connection
from index.protocol import IDEMPOTENCY_S

RETENTION_BATCH = 1000  # expired subjects of one round


class PostgresMaintenance(GalleryComponent, MaintenanceRounds):
    """The `Maintenance` of a gallery in PostgreSQL. `standbys`: their addresses; erasures wait until these are clean.

    Erasures are finished on the database itself and on these standbys only.
    """

    def __init__(self, gallery: PostgresGallery, standbys: Sequence[str] = (), *, exact_below: int = hnsw.EXACT_BELOW):
        super().__init__(gallery)
        self._standbys = tuple(standbys)
        self._exact_below = exact_below

    def run(self) -> bool:
        """See `Maintenance`."""
        with self._round() as has_lease:
            return has_lease

    def _flush_audit(self) -> None:
        self.gallery.audit.flush()

    def _renew_lease(self) -> bool:
        return self.database.write(self._renew)

    def release(self) -> None:
        """See `Maintenance`."""
        self.database.write(lambda db: lease_records.release(db, LEASE, self.holder))

    def _renew(self, db: Connection) -> bool:
        return lease_records.take(db, LEASE, self.holder, self.database.now(db), LEASE_S)

    def _work(self) -> None:
        with self._step("counts"):
            self.database.write(collection_records.merge_counts)
        with self._step("retention"):
            self._erase_expired()
        with self._step("merges"):
            self.database.write(lambda db: forget_ended(db, self.database.now(db)))
        with self._step("sightings"):
            erase_expired_sightings(self.database)
        with self._step("idempotency keys"):
            self.database.write(self._delete_old_keys)
        with self._step("erasures"):
            self._finish_erasures()
        for collection in self.gallery.collections(limit=-1):
            with self._step(f"collection {collection.id}"):
                hnsw.update(self.database, collection, self._exact_below)

    def _erase_expired(self) -> None:
        with self.database.snapshot() as db:
            expired = subject_records.expired(db, self.database.now(db), RETENTION_BATCH)
        for collection_id, subjects in groupby(sorted(expired), key=lambda row: row[0]):
            with self._step(f"retention of collection {collection_id}"):
                ids = [number for _, number in subjects]
                self.database.write(partial(self._erase_expired_of, collection_id=collection_id, ids=ids))

    def _erase_expired_of(self, db: Connection, collection_id: int, ids: Sequence[int]) -> None:
        """Erase these subjects of a collection, each with a receipt, unless they were changed meanwhile."""
        collection, now = collection_records.find_id(db, collection_id, "share"), self.database.now(db)
        if collection is not None:
            for number in subject_records.lock_expired_ids(db, ids, now):
                remove_subjects(db, collection, [number], now, RETENTION)

    def _delete_old_keys(self, db: Connection) -> None:
        before = self.database.now(db) - IDEMPOTENCY_S
        db.execute("DELETE FROM idempotency_keys WHERE created_at < %s", (before,))

    def _finish_erasures(self) -> None:
        """Overwrite erased rows, then finish the receipts whose rows are in no file of the log either."""
        scrubbing.scrub(self.database)
        with self.database.snapshot() as db:
            overwritten = erasure_records.overwritten_receipts(db)
        with self.database.autocommit() as db:
            if overwritten:
                erasure_records.put_position(db, overwritten, wal_files.end_file(db))
            if last := erasure_records.last_position(db):
                clean = wal_files.clean_until(db, self._standbys, last)
                erasure_records.finish_receipts(db, clean, self.database.now(db))
