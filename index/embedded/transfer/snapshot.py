"""The ledger at one moment, for an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import apsw

from index.embedded.calibration import calibration_records
from index.embedded.sightings import records as sighting_records
from index.embedded.store import collection_records, erasure_records, face_records, subject_records, vector_records
from index.records import BATCH, ExportedCollection, FaceRecord, RejectionRecord, SubjectRecord, pages
from index.types import Collection, Receipt

MAX_CALIBRATIONS = 2**31 - 1

R = TypeVar("R", SubjectRecord, FaceRecord, RejectionRecord)


class LedgerSnapshot:
    """See `index.protocol.GallerySnapshot`. `db`: in a transaction; `now`: the time by which subjects expire."""

    def __init__(self, db: apsw.Connection, now: float):
        self._db = db
        self._now = now

    def collections(self) -> list[Collection]:
        """See `GallerySnapshot`."""
        return collection_records.page(self._db, "", -1)

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
        return self._pages(vector_records.rejection_records, collection)

    def receipts(self) -> Iterator[list[Receipt]]:
        """See `GallerySnapshot`."""
        return pages(lambda after: erasure_records.receipts(self._db, after, BATCH), "", lambda receipt: receipt.token)

    def left_behind(self) -> dict[str, int]:
        """See `GallerySnapshot`."""
        statements = {
            "sightings": "SELECT count(*) FROM sightings WHERE expires_at > ?",
            "alert rules": "SELECT count(*) FROM alert_rules WHERE ? > 0",
            "merges that can be undone": "SELECT count(*) FROM merges WHERE undone_at IS NULL AND undo_until > ?",
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
        self, read: Callable[[apsw.Connection, int, int, int, float], list[R]], collection: Collection
    ) -> Iterator[list[R]]:
        return pages(lambda after: read(self._db, collection.id, after, BATCH, self._now), 0, lambda row: row.id)
