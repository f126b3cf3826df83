"""The database at one moment, for an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from index.postgres.calibration import calibration_records
from index.postgres.sightings import records as sighting_records
from index.postgres.store import collection_records, erasure_records, face_records, subject_records
from index.postgres.store.database import Connection
from index.records import BATCH, ExportedCollection, FaceRecord, RejectionRecord, SubjectRecord, pages
from index.types import Collection, Receipt

MAX_CALIBRATIONS = 2**31 - 1

R = TypeVar("R", SubjectRecord, FaceRecord, RejectionRecord)


class DatabaseSnapshot:
    """See `index.protocol.GallerySnapshot`. `db`: in a transaction that has locked the tables of all faces."""

    def __init__(self, db: Connection, collections: list[Collection], now: float):
        self._db = db
        self._collections = collections
        self._now = now

    def collections(self) -> list[Collection]:
        """See `GallerySnapshot`."""
        return self._collections

    def describe(self, collection: Collection) -> ExportedCollection:
        """See `GallerySnapshot`."""
        return ExportedCollection(
            replace(collection, id=0, generation=0),
            tuple(replace(it, id=0) for it in calibration_records.page(self._db, collection.id, 0, MAX_CALIBRATIONS)),
            sighting_records.settings(self._db, collection.id),
        )

    def subjects(self, collection: Collection) -> Iterator[list[SubjectRecord]]:
        """See `GallerySnapshot`."""
        return self._pages(subject_records.read_records, collection)

    def faces(self, collection: Collection) -> Iterator[list[FaceRecord]]:
        """See `GallerySnapshot`."""
        return self._pages(face_records.read_records, collection)

    def rejections(self, collection: Collection) -> Iterator[list[RejectionRecord]]:
        """See `GallerySnapshot`."""
        return self._pages(face_records.read_rejections, collection)

    def receipts(self) -> Iterator[list[Receipt]]:
        """See `GallerySnapshot`."""
        return pages(lambda after: erasure_records.receipts(self._db, after, BATCH), "", lambda receipt: receipt.token)

    def counts(self, collection: Collection) -> tuple[int, int]:
        """Return the numbers of subjects and faces that the gallery has counted."""
        return collection_records.counts(self._db, collection.id)

    def left_behind(self) -> dict[str, int]:
        """See `GallerySnapshot`."""
        statements = {
            "sightings": "SELECT count(*) FROM sightings WHERE expires_at > %s",
            "alert rules": "SELECT count(*) FROM alert_rules WHERE %s > 0",
            "merges that can be undone": "SELECT count(*) FROM merges WHERE undone_at IS NULL AND undo_until > %s",
        }
        counts = {name: list(self._db.execute(statement, (self._now,))) for name, statement in statements.items()}
        return {name: count for name, ((count,),) in counts.items() if count}

    def unfinished(self) -> list[str]:
        """See `GallerySnapshot`; uploads that were not completed are left out."""
        rows = self._db.execute(
            "SELECT name FROM collections WHERE id IN (SELECT collection_id FROM reembeddings UNION"
            " SELECT collection_id FROM jobs WHERE finished_at IS NULL AND state != 'receiving') ORDER BY name"
        )
        return [row[0] for row in rows]

    def _pages(
        self, read: Callable[[Connection, int, int, int, float], list[R]], collection: Collection
    ) -> Iterator[list[R]]:
        return pages(lambda after: read(self._db, collection.id, after, BATCH, self._now), 0, lambda row: row.id)
