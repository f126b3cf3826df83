"""Reading a gallery as a whole, and loading it into another one, of any storage engine.

The files of exports, and the order in which they are loaded, are those of index/transfer/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from index.audit_chain import LogHead
from index.records import Export, ExportedCollection, ExportPart, FaceRecord, RejectionRecord, SubjectRecord
from index.types import Collection, Receipt


class GallerySnapshot(Protocol):
    """A gallery at one moment, without the subjects that had expired.

    The methods yield rows in batches of at most `index.records.BATCH`, in the order in which they were stored. They
    raise LockedError as `Gallery` does, and CorruptError where a row cannot be decrypted.
    """

    def collections(self) -> list[Collection]:
        """Return all collections, sorted by name."""
        ...

    def describe(self, collection: Collection) -> ExportedCollection:
        """Return the collection with its calibrations and settings, all with the id 0."""
        ...

    def subjects(self, collection: Collection) -> Iterator[list[SubjectRecord]]:
        """Yield the subjects of the collection."""
        ...

    def faces(self, collection: Collection) -> Iterator[list[FaceRecord]]:
        """Yield the faces of the collection."""
        ...

    def rejections(self, collection: Collection) -> Iterator[list[RejectionRecord]]:
        """Yield the rejected faces of the collection."""
        ...

    def receipts(self) -> Iterator[list[Receipt]]:
        """Yield the receipts of all erasures."""
        ...

    def left_behind(self) -> dict[str, int]:
        """Return the numbers of what an export leaves out: sightings, alert rules and merges that can be undone."""
        ...

    def unfinished(self) -> list[str]:
        """Return the names of the collections with a bulk job or a re-embedding that has not ended."""
        ...


class Transfer(Protocol):
    """Reads and loads whole collections. Every load is one transaction, with lines in the audit log.

    All methods raise UnavailableError and DiskFullError as every change does.
    """

    @property
    def encrypts(self) -> bool:
        """Whether the engine can have encrypted collections."""
        ...

    @property
    def gallery_id(self) -> str:
        """The gallery's own random id."""
        ...

    def clock(self) -> float:
        """Return the time by which subjects expire; see `Gallery.clock`."""
        ...

    def head(self) -> LogHead:
        """Return number and hash of the last line of the audit log, after all events that were recorded so far."""
        ...

    def snapshot(self, now: float | None = None) -> AbstractContextManager[GallerySnapshot]:
        """Open the gallery as it is now. `now`: the time by which subjects have expired, by default the current time.

        Erasures cannot be finished, and pipelines may not be switched, before the snapshot is closed.
        """
        ...

    def enrol(self, source: Collection, faces: Sequence[FaceRecord]) -> int:
        """Enrol those of the faces that are not enrolled yet, with their tokens, and return their number.

        The collection, `source.name`, is created like the source if it is missing. Subjects that do not exist are
        created; existing ones are kept, unless they have expired.

        Raises:
            ConflictError: the collection has another pipeline, or is not encrypted although `source` is, or another
            face has one of the tokens. InvalidError: see `index.records.validated_face`. LockedError.
        """
        ...

    def begin_import(self, export: Export, collections: Mapping[int, ExportedCollection]) -> dict[str, int | None]:
        """Create those of the collections that this export has not created before, all or none.

        `collections`: by their numbers in the export. Return for each part the number of its rows that were loaded
        before, by its name; None if the collection that the export created was dropped since.

        Raises:
            ConflictError: a collection of that name exists, or a later export of the same gallery was imported before.
            InvalidError, LockedError: see `Gallery.create`.
        """
        ...

    def load_subjects(self, part: ExportPart, first: int, rows: Sequence[SubjectRecord]) -> int:
        """Load the subjects, and return the number of new ones.

        `first`: the number of the first of the rows in the part, from 0. Rows that were loaded before are skipped: so
        what was erased since does not come back.

        Raises:
            InvalidError: see `index.records.validated_subject`.
        """
        ...

    def load_faces(self, part: ExportPart, first: int, rows: Sequence[FaceRecord]) -> int:
        """Load the faces whose subjects exist, and return the number of new ones; see `load_subjects`.

        Raises:
            InvalidError: see `index.records.validated_face`. ConflictError: another face has one of the tokens.
        """
        ...

    def load_rejections(self, part: ExportPart, first: int, rows: Sequence[RejectionRecord]) -> int:
        """Load the rejected faces whose subjects exist, and return the number of new ones; see `load_subjects`.

        Raises:
            InvalidError: see `index.records.validated_rejection`.
        """
        ...

    def load_receipts(self, part: ExportPart, first: int, rows: Sequence[Receipt]) -> int:
        """Load the receipts that do not exist, and return their number; see `load_subjects`.

        Maintenance finishes those that were not finished, once no file of this gallery contains erased data.
        """
        ...
