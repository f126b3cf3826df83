"""Loads collections of files into the database, and opens snapshots of it for exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from psycopg import errors as sql_errors

from index.audit_chain import AuditEvent, LogHead
from index.errors import NotFoundError
from index.postgres.calibration import calibration_records
from index.postgres.gallery import GalleryComponent, remove_expired_among
from index.postgres.sightings import records as sighting_records
from index.postgres.store import (
    audit_records,
    collection_records,
    erasure_records,
    face_records,
    face_tables,
    subject_records,
)
from index.postgres.store.database import Connection
from index.postgres.transfer import import_records
from index.postgres.transfer.snapshot import DatabaseSnapshot
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


class PostgresTransfer(GalleryComponent):
    """See `index.protocol.Transfer`."""

    encrypts = False

    @property
    def gallery_id(self) -> str:
        """See `Transfer`."""
        return self.database.gallery_id

    def clock(self) -> float:
        """See `Transfer`."""
        return self.database.clock()

    def head(self) -> LogHead:
        """See `Transfer`."""
        return self.gallery.audit.head()

    @contextmanager
    def snapshot(self, now: float | None = None) -> Iterator[DatabaseSnapshot]:
        """See `Transfer`. PostgreSQL keeps all rows that are erased meanwhile until it is closed."""
        with ExitStack() as stack:
            while (snapshot := self._locked(stack, now)) is None:
                pass
            yield snapshot

    def _locked(self, stack: ExitStack, now: float | None) -> DatabaseSnapshot | None:
        """Enter a snapshot and return it; None where a collection was created or dropped meanwhile."""
        # The tables are locked before the first row is read, as in `PostgresGallery.reading`.
        numbers = sorted(collection.id for collection in self.gallery.collections(limit=-1))
        try:
            with ExitStack() as attempt:
                db = attempt.enter_context(self.database.snapshot())
                for number in numbers:
                    face_tables.lock(db, number)
                collections = collection_records.page(db, "", -1)
                if sorted(collection.id for collection in collections) == numbers:
                    stack.push(attempt.pop_all())
                    return DatabaseSnapshot(db, collections, self.database.now(db) if now is None else now)
        except sql_errors.UndefinedTable:
            pass
        return None

    def enrol(self, source: Collection, faces: Sequence[FaceRecord]) -> int:
        """See `Transfer`."""

        def write(db: Connection) -> int:
            now = self.database.now(db)
            target = _get_or_create(db, source, now)
            remove_expired_among(db, target, {face.subject for face in faces}, now)
            return _enrol(db, target, faces, now, create_subjects=True)

        return self.database.write(write)

    def begin_import(self, export: Export, collections: Mapping[int, ExportedCollection]) -> dict[str, int | None]:
        """See `Transfer`."""

        def write(db: Connection) -> dict[str, int | None]:
            import_records.lock(db)
            import_records.check_newest(db, export)
            begun, now = import_records.progress(db, export), self.database.now(db)
            if not begun:
                import_records.insert(db, ExportPart(export, "receipts"), None)
                audit_records.record(db, AuditEvent("import", now, id=export.id, of=export.head.hash))
            for number, source in collections.items():
                parts = [ExportPart(export, kind, number) for kind in KINDS]
                if parts[0].name not in begun:
                    target = _create_exported(db, source, now)
                    for part in parts:
                        import_records.insert(db, part, target.id)
            return import_records.progress(db, export)

        return self.database.write(write)

    def load_subjects(self, part: ExportPart, first: int, rows: Sequence[SubjectRecord]) -> int:
        """See `Transfer`."""

        def insert(db: Connection, target: Collection, rows: Sequence[SubjectRecord], now: float) -> int:
            subjects = {
                record.subject: record
                for record in map(validated_subject, rows)
                if record.expires_at is None or record.expires_at > now
            }
            new = subject_records.insert_missing(db, target.id, subjects)
            audit_records.record(db, AuditEvent("put_subject", now, None, target.id, sorted(new.values())))
            return len(new)

        return self._load(part, first, rows, insert)

    def load_faces(self, part: ExportPart, first: int, rows: Sequence[FaceRecord]) -> int:
        """See `Transfer`."""

        def insert(db: Connection, target: Collection, rows: Sequence[FaceRecord], now: float) -> int:
            return _enrol(db, target, rows, now, create_subjects=False)

        return self._load(part, first, rows, insert)

    def load_rejections(self, part: ExportPart, first: int, rows: Sequence[RejectionRecord]) -> int:
        """See `Transfer`."""

        def insert(db: Connection, target: Collection, rows: Sequence[RejectionRecord], now: float) -> int:
            faces = [validated_rejection(face, target.dimensions) for face in rows]
            subjects = subject_records.existing(db, target.id, {face.subject for face in faces})
            chosen = [(subjects[face.subject], face) for face in faces if face.subject in subjects]
            numbers = [-face.id for face in face_records.insert_rejections(db, target.id, chosen)]
            owners = sorted({owner for owner, _ in chosen})
            audit_records.record(db, AuditEvent("feedback", now, None, target.id, owners, numbers))
            return len(numbers)

        return self._load(part, first, rows, insert)

    def load_receipts(self, part: ExportPart, first: int, rows: Sequence[Receipt]) -> int:
        """See `Transfer`."""

        def write(db: Connection) -> int:
            _, done = import_records.find(db, part)
            import_records.put_rows(db, part, max(done, first + len(rows)))
            return erasure_records.insert_foreign_receipts(db, rows[max(done - first, 0) :])

        return self.database.write(write)

    def _load(
        self,
        part: ExportPart,
        first: int,
        rows: Sequence[R],
        insert: Callable[[Connection, Collection, Sequence[R], float], int],
    ) -> int:
        """Load the rows that were not loaded before, unless their collection was dropped since."""

        def write(db: Connection) -> int:
            number, done = import_records.find(db, part)
            target = collection_records.find_id(db, number or 0, "share")
            new = rows[max(done - first, 0) :]
            if target is None or not new:
                return 0
            count = insert(db, target, new, self.database.now(db))
            import_records.put_rows(db, part, first + len(rows))
            return count

        return self.database.write(write)


def _get_or_create(db: Connection, source: Collection, now: float) -> Collection:
    """Return the collection of the source's name, created like the source if it is missing.

    Raises:
        ConflictError: it has other properties than the source.
    """
    try:
        target = collection_records.find(db, source.name, "share")
    except NotFoundError:
        return _create(db, source, now)
    check_same_pipeline(source, target)
    return target


def _create(db: Connection, source: Collection, now: float) -> Collection:
    target = collection_records.insert(db, source)
    audit_records.record(db, AuditEvent("create_collection", now, None, target.id))
    return target


def _create_exported(db: Connection, source: ExportedCollection, now: float) -> Collection:
    target = _create(db, source.collection, now)
    for calibration in source.calibrations:
        calibration_records.insert_record(db, target.id, calibration)
    sighting_records.lock_settings(db, target.id)
    sighting_records.put_settings(db, target.id, source.sightings)
    return target


def _enrol(
    db: Connection, target: Collection, faces: Sequence[FaceRecord], now: float, *, create_subjects: bool
) -> int:
    """Enrol the faces that are not enrolled yet, and return their number."""
    ids, subjects = face_records.insert_records(db, target, faces, create_subjects=create_subjects)
    if ids:
        audit_records.record(db, AuditEvent("enrol", now, None, target.id, subjects, ids))
    return len(ids)
