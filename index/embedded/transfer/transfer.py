"""Loads collections of files into the ledger, and opens snapshots of it for exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import apsw

from index.audit_chain import AuditEvent, LogHead
from index.embedded.audit import log as audit
from index.embedded.calibration import calibration_records
from index.embedded.gallery import GalleryComponent, remove_expired_among
from index.embedded.sightings import records as sighting_records
from index.embedded.store import collection_records, erasure_records, face_records, subject_records, vector_records
from index.embedded.transfer import import_records
from index.embedded.transfer.snapshot import LedgerSnapshot
from index.errors import NotFoundError
from index.records import (
    KINDS,
    Export,
    ExportedCollection,
    ExportPart,
    FaceRecord,
    RejectionRecord,
    SubjectRecord,
    check_same_pipeline,
    validated_rejection,
    validated_subject,
)
from index.types import Collection, Receipt

R = TypeVar("R")


class EmbeddedTransfer(GalleryComponent):
    """See `index.protocol.Transfer`."""

    encrypts = True

    @property
    def gallery_id(self) -> str:
        """See `Transfer`."""
        return collection_records.gallery_id(self.ledger.reader())

    def clock(self) -> float:
        """See `Transfer`."""
        return self.gallery.clock()

    def head(self) -> LogHead:
        """See `Transfer`."""
        return self.gallery.audit.head()

    @contextmanager
    def snapshot(self, now: float | None = None) -> Iterator[LedgerSnapshot]:
        """See `Transfer`. The write-ahead log keeps everything from the snapshot on until it is closed."""
        with self.ledger.snapshot() as db:
            yield LedgerSnapshot(db, self.gallery.clock() if now is None else now)

    def enrol(self, source: Collection, faces: Sequence[FaceRecord]) -> int:
        """See `Transfer`."""

        def write(db: apsw.Connection) -> int:
            now = self.gallery.clock()
            target = _get_or_create(db, source, now)
            remove_expired_among(db, target.id, {face.subject for face in faces}, now)
            return _enrol(db, target.id, faces, now, create_subjects=True)

        return self.ledger.write(write)

    def begin_import(self, export: Export, collections: Mapping[int, ExportedCollection]) -> dict[str, int | None]:
        """See `Transfer`."""

        def write(db: apsw.Connection) -> dict[str, int | None]:
            import_records.check_newest(db, export)
            begun = import_records.progress(db, export)
            now = self.gallery.clock()
            if not begun:
                import_records.insert(db, ExportPart(export, "receipts"), None)
                audit.record(db, AuditEvent("import", now, id=export.id, of=export.head.hash))
            for number, source in collections.items():
                parts = [ExportPart(export, kind, number) for kind in KINDS]
                if parts[0].name not in begun:
                    target = _create_exported(db, source, now)
                    for part in parts:
                        import_records.insert(db, part, target.id)
            return import_records.progress(db, export)

        return self.ledger.write(write)

    def load_subjects(self, part: ExportPart, first: int, rows: Sequence[SubjectRecord]) -> int:
        """See `Transfer`."""

        def insert(db: apsw.Connection, collection_id: int, rows: Sequence[SubjectRecord], now: float) -> int:
            subjects = {
                record.subject: record
                for record in map(validated_subject, rows)
                if record.expires_at is None or record.expires_at > now
            }
            present = subject_records.existing(db, collection_id, subjects)
            new = {key: record for key, record in subjects.items() if key not in present}
            ids = subject_records.insert_missing(db, collection_id, new)
            audit.record(db, AuditEvent("put_subject", now, None, collection_id, sorted(ids.values())))
            return len(new)

        return self._load(part, first, rows, insert)

    def load_faces(self, part: ExportPart, first: int, rows: Sequence[FaceRecord]) -> int:
        """See `Transfer`."""

        def insert(db: apsw.Connection, collection_id: int, rows: Sequence[FaceRecord], now: float) -> int:
            return _enrol(db, collection_id, rows, now, create_subjects=False)

        return self._load(part, first, rows, insert)

    def load_rejections(self, part: ExportPart, first: int, rows: Sequence[RejectionRecord]) -> int:
        """See `Transfer`."""

        def insert(db: apsw.Connection, collection_id: int, rows: Sequence[RejectionRecord], now: float) -> int:
            dimensions = collection_records.dimensions(db, collection_id)
            faces = [validated_rejection(face, dimensions) for face in rows]
            subjects = subject_records.existing(db, collection_id, {face.subject for face in faces})
            faces = [face for face in faces if face.subject in subjects]
            ids = vector_records.new_rejection_ids(len(faces))
            faces = [replace(face, id=number) for face, number in zip(faces, ids, strict=True)]
            vector_records.insert_rejected(db, collection_id, [(subjects[face.subject], face) for face in faces])
            owners = sorted({subjects[face.subject] for face in faces})
            audit.record(db, AuditEvent("feedback", now, None, collection_id, owners, [-number for number in ids]))
            return len(faces)

        return self._load(part, first, rows, insert)

    def load_receipts(self, part: ExportPart, first: int, rows: Sequence[Receipt]) -> int:
        """See `Transfer`."""

        def write(db: apsw.Connection) -> int:
            _, done = import_records.find(db, part)
            import_records.put_rows(db, part, max(done, first + len(rows)))
            return erasure_records.insert_foreign_receipts(db, rows[max(done - first, 0) :])

        return self.ledger.write(write)

    def _load(
        self,
        part: ExportPart,
        first: int,
        rows: Sequence[R],
        insert: Callable[[apsw.Connection, int, Sequence[R], float], int],
    ) -> int:
        """Load the rows that were not loaded before, unless their collection was dropped since."""

        def write(db: apsw.Connection) -> int:
            number, done = import_records.find(db, part)
            new = rows[max(done - first, 0) :]
            if number is None or not collection_records.exists(db, number) or not new:
                return 0
            count = insert(db, number, new, self.gallery.clock())
            import_records.put_rows(db, part, first + len(rows))
            return count

        return self.ledger.write(write)


def _get_or_create(db: apsw.Connection, source: Collection, now: float) -> Collection:
    """Return the collection of the source's name, created like the source if it is missing.

    Raises:
        ConflictError: it has other properties than the source.
    """
    try:
        target = collection_records.find(db, source.name)
    except NotFoundError:
        return _create(db, source, now)
    check_same_pipeline(source, target)
    return target


def _create(db: apsw.Connection, source: Collection, now: float) -> Collection:
    target = collection_records.insert(db, source)
    audit.record(db, AuditEvent("create_collection", now, None, target.id))
    return target


def _create_exported(db: apsw.Connection, source: ExportedCollection, now: float) -> Collection:
    target = _create(db, source.collection, now)
    for calibration in source.calibrations:
        calibration_records.insert_record(db, target.id, calibration)
    sighting_records.put_settings(db, target.id, source.sightings)
    return target


def _enrol(
    db: apsw.Connection, collection_id: int, faces: Sequence[FaceRecord], now: float, *, create_subjects: bool
) -> int:
    """Enrol the faces that are not enrolled yet, and return their number."""
    ids = face_records.insert_records(db, collection_id, faces, create_subjects=create_subjects)
    if ids:
        audit.record(db, AuditEvent("enrol", now, None, collection_id, face_records.subjects_of(db, ids), ids))
    return len(ids)
