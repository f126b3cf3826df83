"""Background maintenance of a gallery: write segments and inverted files, finish erasures, delete expired data.

One process at a time does it. Every step ends in one transaction that replaces old files by new ones in the ledger. If
a process dies, the next round deletes the files that the ledger does not reference.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import apsw
import numpy as np

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.curation.curation import forget_ended
from index.embedded.encryption import Cipher, cipher_of
from index.embedded.gallery import EmbeddedGallery, GalleryComponent, remove_expired
from index.embedded.sightings.sightings import erase_expired
from index.embedded.store import collection_records, erasure_records, idempotency_records, lease_records, vector_records
from index.embedded.store.vector_records import FaceVectors, InvertedFileRecord, SegmentRecord
from index.embedded.vectors import segment as segment_files
from index.embedded.vectors.ivf import SAMPLE_PER_CENTROID, Ivf
from index.engine.maintenance import LEASE, LEASE_S, MaintenanceRounds
from index.errors import ConflictError, CorruptError
from index.folders import sync_folder
from index.types import Collection, Floats, Ints
from index.validation import are_unit, unit_vectors

ReadVectors = Callable[[apsw.Connection, Collection, int, int], FaceVectors]
ReplaceVectors = Callable[[apsw.Connection, Collection, Mapping[int, Floats]], list[int]]

VECTORS_PER_CHECK = 65_536


@dataclass(frozen=True)
class MaintenanceLimits:
    """`segment`: faces per segment. `exact_below`: with fewer faces there is no inverted file and searches are exact.

    The inverted file is retrained when there are more than `growth` times as many faces as at its training.
    """

    segment: int = 65_536
    exact_below: int = 100_000
    growth: float = 4.0


class Maintenance(GalleryComponent, MaintenanceRounds):
    """The maintenance of one gallery. Call `run` periodically."""

    def __init__(self, gallery: EmbeddedGallery, limits: MaintenanceLimits | None = None):
        super().__init__(gallery)
        self._limits = limits or MaintenanceLimits()
        self._verified: set[str] = set()  # files that this process has read completely

    def run(self) -> bool:
        """Run one round. Return False where another process does maintenance; only its new files are loaded then.

        A step that fails, because of a damaged row for example, does not prevent the others.

        Raises:
            MaintenanceError: some steps failed.
        """
        with self._round() as has_lease:
            for collection in self.gallery.collections(limit=-1):
                with self._step(f"collection {collection.id}"):
                    self.gallery.searchers.reload(collection)
                    self.gallery.searchers.add_recent(collection)
        return has_lease

    def _flush_audit(self) -> None:
        self.gallery.audit.flush()

    def _renew_lease(self) -> bool:
        return self.ledger.write(self._renew)

    def rebuild(self, collections: Sequence[Collection]) -> bool:
        """Rebuild all files of the collections from the ledger, then run a round; False as in `run`.

        Raises:
            ConflictError: a collection was dropped or re-embedded meanwhile, or the lease was lost.
        """
        if not self._renew_lease():
            return False
        with self._heartbeat():
            for collection in map(self._scale_vectors, collections):
                with self.gallery.snapshot_of(collection) as db:
                    segments = vector_records.segments(db, collection.id)
                for segment in segments:
                    self._write_segment(collection, segment)
                self._swap(collection, partial(vector_records.drop_inverted_file, collection_id=collection.id))
        return self.run()

    def _work(self) -> None:
        with self._step("retention"):
            self.ledger.write(partial(remove_expired, now=self.gallery.clock()))
            self.ledger.write(partial(forget_ended, now=self.gallery.clock()))
            self.ledger.write(idempotency_records.delete_old)
            # Enrolments also delete expired subjects, without writing tombstones.
            self.tombstones.append_new(self.ledger.reader())
        with self._step("sightings"):
            erase_expired(self.ledger, self.gallery.clock())
        for collection in self.gallery.collections(limit=-1):
            with self._step(f"collection {collection.id}"):
                current = self._scale_vectors(collection)
                while self._write_segment(current):
                    pass
                self._scrub_segments(current)
                self._update_index(current)
        with self._step("erasures"):
            self._finish_erasures()

    def release(self) -> None:
        """Release the lease, so that another process can do maintenance."""
        self.ledger.write(lambda db: lease_records.release(db, LEASE, self.holder))

    def _renew(self, db: apsw.Connection) -> bool:
        return lease_records.take(db, LEASE, self.holder, self.gallery.clock(), LEASE_S)

    def _swap(self, collection: Collection, change: Callable[[apsw.Connection], None]) -> None:
        """Commit a change of the collection's files, if this process still has the lease and the vectors are the same.

        Raises:
            ConflictError: the lease was lost, or the collection was dropped or re-embedded.
        """

        def write(db: apsw.Connection) -> None:
            if not self._renew(db):
                raise ConflictError("the lease was lost")
            collection_records.check_current(db, collection)
            change(db)

        self.ledger.write(write)

    def _scale_vectors(self, collection: Collection) -> Collection:
        """Scale the vectors to length 1, once, which versions before 2.0 did not; return the updated collection.

        Zero and non-finite vectors stay; `vestibule gallery verify` reports them.
        """
        with self.ledger.snapshot() as db:
            if not collection_records.has_unscaled_vectors(db, collection.id):
                return collection
        collection = self._scale(collection, vector_records.read, vector_records.replace, 0)
        self._scale(collection, vector_records.read_rejected, vector_records.replace_rejected, -vector_records.MAX_ID)
        self._swap(collection, partial(collection_records.mark_scaled, collection_id=collection.id))
        return collection

    def _scale(self, collection: Collection, read: ReadVectors, replace: ReplaceVectors, after: int) -> Collection:
        """Scale the vectors with ids above `after`, and return the updated collection."""
        while True:
            with self.gallery.snapshot_of(collection) as db:
                rows = read(db, collection, after, VECTORS_PER_CHECK)
            if not len(rows.faces):
                return collection
            after = int(rows.faces[-1])
            if self._scale_page(collection, rows, replace):
                collection = self.gallery.collection(collection.name)

    def _scale_page(self, collection: Collection, rows: FaceVectors, replace: ReplaceVectors) -> bool:
        """Scale the vectors whose length is not 1; return whether there were any."""
        wrong = ~are_unit(rows.vectors) & np.isfinite(rows.vectors).all(1) & rows.vectors.any(1)
        if not wrong.any():
            return False
        scaled = unit_vectors(rows.vectors[wrong], collection.dimensions)
        vectors = dict(zip(rows.faces[wrong].tolist(), scaled, strict=True))
        owners = dict(zip(rows.faces.tolist(), rows.subjects.tolist(), strict=True))

        def write(db: apsw.Connection) -> None:
            faces = replace(db, collection, vectors)
            subjects = sorted({owners[face] for face in faces})
            event = AuditEvent("scale_vectors", self.gallery.clock(), None, collection.id, subjects, faces)
            audit.record(db, event)

        self._swap(collection, write)
        return True

    def _new_file(self, collection: Collection, suffix: str) -> str:
        return f"{collection.id}-{secrets.token_hex(8)}.{suffix}"

    def _write_segment(self, collection: Collection, old: SegmentRecord | None = None) -> bool:
        """Write the segment `old` again, or a new one of the faces behind the last segment.

        Return False where there are not enough faces for a full new segment.
        """
        with self.gallery.snapshot_of(collection) as db:
            if old is None:
                last = max((segment.last_face for segment in vector_records.segments(db, collection.id)), default=0)
                if not vector_records.has_more(db, collection.id, last, self._limits.segment):
                    return False
                rows = vector_records.read(db, collection, last, self._limits.segment)
                first, last = last + 1, int(rows.faces[-1])
            else:
                first, last = old.first_face, old.last_face
                rows = vector_records.read(db, collection, first - 1, through=last)
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
        new = SegmentRecord(self._new_file(collection, "seg"), first, last, through)
        segment_files.write(self.gallery.files / new.file, rows, through, cipher)
        self._swap(collection, lambda db: vector_records.put_segment(db, collection.id, new, old.file if old else None))
        return True

    def _scrub_segments(self, collection: Collection) -> None:
        """Rewrite each segment that contains a removed face or is damaged."""
        with self.gallery.snapshot_of(collection) as db:
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
            segments = vector_records.segments(db, collection.id)
            oldest = min((segment.removals_through for segment in segments), default=through)
            removed, _ = erasure_records.removed_faces(db, collection.id, oldest)
        clean = []
        for segment in segments:
            content = self._read_segment(segment, cipher)
            if content is not None and not np.isin(removed, content.faces).any():
                clean.append(segment.file)
            else:
                self._write_segment(collection, segment)
        self._swap(collection, lambda db: vector_records.mark_clean(db, collection.id, clean, through))

    def _read_segment(self, segment: SegmentRecord, cipher: Cipher) -> segment_files.Segment | None:
        """Return the segment, or None if it is damaged. Each process verifies a file once."""
        try:
            content = segment_files.Segment.open(self.gallery.files / segment.file, cipher)
            if segment.file not in self._verified:
                content.verify()
                self._verified.add(segment.file)
        except CorruptError:
            return None
        return content

    def _update_index(self, collection: Collection) -> None:
        """Update the inverted file to match the segments: train it, add new faces, remove erased faces."""
        with self.gallery.snapshot_of(collection) as db:
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
            sealed, old = vector_records.segments(db, collection.id), vector_records.inverted_file(db, collection.id)
            # Include faces removed since the oldest segment was written, which may still be in it.
            applied = [file.removals_through for file in vector_records.file_records(db, collection.id)]
            removed, _ = erasure_records.removed_faces(db, collection.id, min(applied, default=through))
        segments = [segment_files.Segment.open(self.gallery.files / segment.file, cipher) for segment in sealed]
        total = sum(len(segment.faces) for segment in segments)
        # Hysteresis: an existing inverted file is dropped only below half the threshold.
        if total < self._limits.exact_below // (1 if old is None else 2):
            self._swap(collection, lambda db: vector_records.drop_inverted_file(db, collection.id))
            return
        if old is not None and self._is_current(old, sealed[-1], removed, cipher):
            self._swap(collection, lambda db: vector_records.mark_clean(db, collection.id, [old.file], through))
            return
        ivf = self._read_index(old, total, cipher)
        if ivf is None or old is None:
            ivf, trained, after = Ivf.train(_sample(segments, total), total), total, 0
        else:
            trained, after = old.trained_rows, old.last_face
        for segment in segments:
            if len(segment.faces) and int(segment.faces[0]) > after:
                ivf.add(segment.faces, segment.vectors)
        ivf.remove(removed)
        new = InvertedFileRecord(self._new_file(collection, "ivf"), sealed[-1].last_face, through, trained)
        ivf.write(self.gallery.files / new.file, cipher)
        self._swap(collection, lambda db: vector_records.put_inverted_file(db, collection.id, new))

    def _is_current(self, old: InvertedFileRecord, last: SegmentRecord, removed: Ints, cipher: Cipher) -> bool:
        """Return whether the inverted file contains exactly the segments' faces and is not damaged.

        Each process reads a file once.
        """
        if old.last_face != last.last_face or (removed <= old.last_face).any():
            return False
        if old.file not in self._verified and self._read_index(old, 0, cipher) is not None:
            self._verified.add(old.file)
        return old.file in self._verified and (self.gallery.files / old.file).is_file()

    def _read_index(self, old: InvertedFileRecord | None, total: int, cipher: Cipher) -> Ivf | None:
        """Return the inverted file, or None if there is none, it is damaged, or must be retrained for `total` faces."""
        if old is None or total > self._limits.growth * old.trained_rows:
            return None
        return Ivf.read_undamaged(self.gallery.files / old.file, cipher)

    def _finish_erasures(self) -> None:
        """Delete unreferenced files, scrub the ledger, and complete the receipts of the erased data."""
        if not self._renew_lease():
            return  # another process may write files that the ledger does not reference yet
        with self.ledger.snapshot() as db:
            open_receipts, referenced = erasure_records.unfinished_receipts(db), vector_records.files(db)
            done = [
                token
                for token, collection_id, through in open_receipts
                if all(file.removals_through >= through for file in vector_records.file_records(db, collection_id))
            ]
        for path in self.gallery.files.iterdir():
            if path.name not in referenced:
                path.unlink(missing_ok=True)
        if done:
            sync_folder(self.gallery.files)  # a power cut must not bring back erased data
            self.ledger.scrub(lambda db: erasure_records.finish_receipts(db, done, self.gallery.clock()))


def _sample(segments: list[segment_files.Segment], total: int) -> Floats:
    """Return training vectors for k-means, evenly spaced over all segments."""
    wanted = SAMPLE_PER_CENTROID * 4 * int(np.sqrt(total))
    step = max(1, total // wanted)
    return np.ascontiguousarray(np.concatenate([segment.vectors[::step] for segment in segments]))
