"""What a gallery does in the background, by one process at a time: seal, build, scrub, expire.

Every step ends in one transaction, that names new files and no longer names old ones. A process that dies before leaves
files that nobody names, which the next round deletes; one that dies after leaves old files, likewise.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import apsw
import numpy as np

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.aead import Cipher
from index.embedded.encryption.data_keys import cipher_of
from index.embedded.gallery import EmbeddedGallery, remove_expired
from index.embedded.query import feedback
from index.embedded.store import collection_records, erasure_records, lease_records, vector_records
from index.embedded.store.atomic_files import sync_folder
from index.embedded.store.vector_records import InvertedFileRecord, SegmentRecord
from index.embedded.vectors import segment as segments
from index.embedded.vectors.ivf import SAMPLE, Ivf
from index.embedded.vectors.segment import Segment
from index.errors import ConflictError, CorruptError, GalleryError, LockedError
from index.types import Collection, Floats, Ints
from index.validation import are_unit, unit_vectors

LEASE, LEASE_S = "maintenance", 60.0
VECTORS = 65_536  # that are checked at once


@dataclass(frozen=True)
class Limits:
    """`segment`: faces of a segment. `exact_below`: sealed faces from which on there is an inverted file.

    It is trained anew when there are `growth` times as many faces as it was trained for.
    """

    segment: int = 65_536
    exact_below: int = 100_000
    growth: float = 4.0


def _scaled(ids: Ints, vectors: Floats) -> dict[int, Floats]:
    """Those of the vectors [N, D] scaled to length 1 that have a direction and another length, by their ids [N]."""
    wrong = np.flatnonzero(~are_unit(vectors) & np.isfinite(vectors).all(1) & vectors.any(1))
    return dict(zip(ids[wrong].tolist(), unit_vectors(vectors[wrong], vectors.shape[1]), strict=True))


class RoundError(GalleryError):
    """Some steps of a round failed; all others were done. `failures`: what each raised, by the step."""

    def __init__(self, failures: Mapping[str, Exception]):
        super().__init__("; ".join(f"{step}: {error}" for step, error in failures.items()))
        self.failures = failures


class Maintenance:
    """The background work on one gallery. `run` is one round; whoever calls it does so again and again."""

    def __init__(self, gallery: EmbeddedGallery, limits: Limits | None = None):
        self._gallery = gallery
        self._limits = limits or Limits()
        self._holder = secrets.token_hex(8)
        self._verified: set[str] = set()
        self._failures: dict[str, Exception] = {}

    def run(self) -> bool:
        """One round; False where another process does the work, whose files are then taken up.

        A step that fails (of a collection with a damaged row, say) keeps no other from being done.

        Raises:
            RoundError: some steps failed.
        """
        self._failures = {}
        with self._step("audit log"):
            self._gallery.audit.flush()
        mine = self._gallery.ledger.write(self._renew)
        if mine:
            with self._heartbeat():
                self._work()
        for collection in self._collections():
            with self._step(f"collection {collection.id}"):
                self._gallery.reload(collection)
                self._gallery.graft(collection)
        if self._failures:
            raise RoundError(self._failures)
        return mine

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Note what a step raises, the first of each name, and go on."""
        try:
            yield
        except (ConflictError, LockedError):
            pass  # dropped, embedded anew, locked, or another process has the lease: a later round begins anew
        except Exception as error:  # noqa: BLE001  whatever a damaged row or a full disk leads to; told by `run`
            self._failures.setdefault(name, error)

    def rebuild(self, collections: Sequence[Collection]) -> bool:
        """Make every file of these anew from the ledger, one after the other, then a round; False as `run`.

        Raises:
            ConflictError: a collection was dropped or embedded anew meanwhile, or the lease was lost.
        """
        if not self._gallery.ledger.write(self._renew):
            return False
        with self._heartbeat():
            for collection in map(self._scale_vectors, collections):
                with self._gallery.snapshot_of(collection) as db:
                    sealed = vector_records.segments(db, collection.id)
                for one in sealed:
                    self._rewrite(collection, one)
                self._swap(collection, partial(vector_records.drop_inverted_file, collection_id=collection.id))
        return self.run()

    def _work(self) -> None:
        with self._step("retention"):
            self._expire()
        for collection in self._collections():
            with self._step(f"collection {collection.id}"):
                current = self._scale_vectors(collection)
                self._seal(current)
                self._scrub_segments(current)
                self._index(current)
        with self._step("erasures"):
            self._finish_erasures()

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Keep the lease while a step takes longer than it lasts."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(LEASE_S / 4):
                with self._step("lease"):
                    self._gallery.ledger.write(self._renew)

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def release(self) -> None:
        """Let another process do it."""
        self._gallery.ledger.write(lambda db: lease_records.release(db, LEASE, self._holder))

    def _renew(self, db: apsw.Connection) -> bool:
        return lease_records.take(db, LEASE, self._holder, self._gallery.clock(), LEASE_S)

    def _swap(self, collection: Collection, change: Callable[[apsw.Connection], None]) -> None:
        """Name new files in place of old ones, if the lease is still ours and the collection's vectors still those.

        Raises:
            ConflictError: one of them is not so.
        """

        def write(db: apsw.Connection) -> None:
            if not self._renew(db):
                raise ConflictError("the lease is gone")
            collection_records.check_current(db, collection)
            change(db)

        self._gallery.ledger.write(write)

    def _collections(self) -> list[Collection]:
        found: list[Collection] = []
        while page := self._gallery.collections(after=found[-1].name if found else ""):
            found += page
        return found

    def _expire(self) -> None:
        self._gallery.ledger.write(partial(remove_expired, now=self._gallery.clock()))
        # Also of those who expired and whose keys were used again before this.
        self._gallery.remember_erasures()

    def _scale_vectors(self, collection: Collection) -> Collection:
        """Scale to length 1, once, what versions before 2.0 stored otherwise; the collection as it is then.

        Vectors without a direction stay; `vestibule gallery verify` reports them.
        """
        with self._gallery.ledger.snapshot() as db:
            if not collection_records.has_unscaled_vectors(db, collection.id):
                return collection
        after = 0
        while True:
            with self._gallery.snapshot_of(collection) as db:
                rows = vector_records.read(db, collection.id, collection.dimensions, after, VECTORS)
            if not len(rows.faces):
                break
            after = int(rows.faces[-1])
            if made := _scaled(rows.faces, rows.vectors):
                self._swap(collection, partial(self._replace_vectors, collection=collection, made=made))
                collection = self._gallery.collection(collection.name)
        self._scale_feedback(collection)
        self._swap(collection, partial(collection_records.mark_scaled, collection_id=collection.id))
        return collection

    def _scale_feedback(self, collection: Collection) -> None:
        after = 0
        while True:
            with self._gallery.snapshot_of(collection) as db:
                numbers, vectors = feedback.rejected_after(db, collection, after, VECTORS)
            if not len(numbers):
                return
            after = int(numbers[-1])
            if made := _scaled(numbers, vectors):
                self._swap(collection, partial(self._replace_rejected, collection=collection, made=made))

    def _replace_rejected(self, db: apsw.Connection, collection: Collection, made: Mapping[int, Floats]) -> None:
        subjects = feedback.replace_rejected(db, collection, made)
        numbers, owners = [-number for number in subjects], sorted(set(subjects.values()))
        audit.note(db, Act("scale_vectors", self._gallery.clock(), None, collection.id, owners, numbers))

    def _replace_vectors(self, db: apsw.Connection, collection: Collection, made: Mapping[int, Floats]) -> None:
        """Put these vectors in place of those that the faces have; files with the old ones are made anew."""
        faces = vector_records.replace(db, collection, made)
        act = Act("scale_vectors", self._gallery.clock(), None, collection.id, audit.subjects_of(db, faces), faces)
        audit.note(db, act)

    def _new_file(self, collection: Collection, suffix: str) -> str:
        return f"{collection.id}-{secrets.token_hex(8)}.{suffix}"

    def _seal(self, collection: Collection) -> None:
        """Segments of what has gathered behind the last one."""
        while True:
            with self._gallery.snapshot_of(collection) as db:
                last = max((one.last_face for one in vector_records.segments(db, collection.id)), default=0)
                if not vector_records.has_more(db, collection.id, last, self._limits.segment):
                    return
                cipher = cipher_of(db, collection.id)
                rows = vector_records.read(db, collection.id, collection.dimensions, last, self._limits.segment)
                through = erasure_records.last_removal(db)
            new = SegmentRecord(self._new_file(collection, "seg"), last + 1, int(rows.faces[-1]), through)
            segments.write(self._gallery.files / new.file, rows, through, cipher)
            self._swap(collection, partial(vector_records.put_segment, collection_id=collection.id, new=new))

    def _scrub_segments(self, collection: Collection) -> None:
        """Write anew each segment that holds what was removed, or that is not what was written."""
        with self._gallery.snapshot_of(collection) as db:
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
            sealed = vector_records.segments(db, collection.id)
            oldest = min((one.removals_through for one in sealed), default=through)
            removed, _ = erasure_records.removed_faces(db, collection.id, oldest)
        clean = []
        for one in sealed:
            segment = self._whole(one, cipher)
            if segment is not None and not np.isin(removed, segment.faces).any():
                clean.append(one.file)
            else:
                self._rewrite(collection, one)
        self._swap(collection, lambda db: vector_records.mark_clean(db, collection.id, clean, through))

    def _rewrite(self, collection: Collection, old: SegmentRecord) -> None:
        with self._gallery.snapshot_of(collection) as db:
            dimensions, before = collection.dimensions, old.first_face - 1
            rows = vector_records.read(db, collection.id, dimensions, before, through=old.last_face)
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
        new = SegmentRecord(self._new_file(collection, "seg"), old.first_face, old.last_face, through)
        segments.write(self._gallery.files / new.file, rows, through, cipher)
        self._swap(collection, lambda db: vector_records.put_segment(db, collection.id, new, old.file))

    def _whole(self, one: SegmentRecord, cipher: Cipher) -> Segment | None:
        """The segment if it is what was written; read to the end once in this process's life."""
        try:
            segment = Segment.open(self._gallery.files / one.file, cipher)
            if one.file not in self._verified:
                segment.verify()
                self._verified.add(one.file)
        except CorruptError:
            return None
        return segment

    def _index(self, collection: Collection) -> None:
        """Bring the inverted file up to the segments: train it, add what is new, take out what was removed."""
        with self._gallery.snapshot_of(collection) as db:
            cipher, through = cipher_of(db, collection.id), erasure_records.last_removal(db)
            sealed, old = vector_records.segments(db, collection.id), vector_records.inverted_file(db, collection.id)
            # Since the oldest segment was looked at, too: what it holds of it still must not get into the index.
            seen = [one.removals_through for one in sealed] + ([old.removals_through] if old else [])
            removed, _ = erasure_records.removed_faces(db, collection.id, min(seen, default=through))
        parts = [Segment.open(self._gallery.files / one.file, cipher) for one in sealed]
        total = sum(len(part.faces) for part in parts)
        # Half of it for one that is there: it must not come and go with a single face.
        if total < self._limits.exact_below // (1 if old is None else 2):
            self._swap(collection, lambda db: vector_records.drop_inverted_file(db, collection.id))
            return
        if old is not None and self._is_current(old, sealed[-1], removed, cipher):
            self._swap(collection, lambda db: vector_records.mark_clean(db, collection.id, [old.file], through))
            return
        ivf = self._kept(old, total, cipher)
        if ivf is None or old is None:
            ivf, trained, after = Ivf.train(_sample(parts, total), total), total, 0
        else:
            trained, after = old.trained_rows, old.last_face
        for part in parts:
            if len(part.faces) and int(part.faces[0]) > after:
                ivf.add(part.faces, part.vectors)
        ivf.remove(removed)
        new = InvertedFileRecord(self._new_file(collection, "ivf"), sealed[-1].last_face, through, trained)
        ivf.write(self._gallery.files / new.file, cipher)
        self._swap(collection, lambda db: vector_records.put_inverted_file(db, collection.id, new))

    def _is_current(self, old: InvertedFileRecord, last: SegmentRecord, removed: Ints, cipher: Cipher) -> bool:
        """Whether nothing came, nothing went and the file, read once in this process's life, is what was written."""
        if old.last_face != last.last_face or (removed <= old.last_face).any():
            return False
        if old.file not in self._verified and self._kept(old, 0, cipher) is not None:
            self._verified.add(old.file)
        return old.file in self._verified and (self._gallery.files / old.file).is_file()

    def _kept(self, old: InvertedFileRecord | None, total: int, cipher: Cipher) -> Ivf | None:
        """The inverted file that there is, unless it is too small or damaged."""
        if old is None or total > self._limits.growth * old.trained_rows:
            return None
        try:
            return Ivf.read(self._gallery.files / old.file, cipher)
        except CorruptError:
            return None

    def _finish_erasures(self) -> None:
        """Delete files that nobody names, scrub the ledger, and say so in the receipts."""
        ledger = self._gallery.ledger
        if not ledger.write(self._renew):
            return  # another process writes files now, that are not named yet
        with ledger.snapshot() as db:
            waiting, named = erasure_records.unfinished_receipts(db), vector_records.files(db)
            done = [name for name, collection_id, through in waiting if _is_scrubbed(db, collection_id, through)]
        for path in self._gallery.files.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
        if done:
            sync_folder(self._gallery.files)  # a power cut must not bring back what a receipt says is erased
            ledger.scrub(lambda db: erasure_records.finish_receipts(db, done, self._gallery.clock()))


def _is_scrubbed(db: apsw.Connection, collection_id: int, through: int) -> bool:
    """Whether every file of the collection was written since that removal."""
    sealed, indexed = vector_records.segments(db, collection_id), vector_records.inverted_file(db, collection_id)
    return all(one.removals_through >= through for one in (*sealed, *((indexed,) if indexed else ())))


def _sample(parts: list[Segment], total: int) -> Floats:
    """What k-means sees: evenly from all, and no more than it needs."""
    wanted = SAMPLE * 4 * int(np.sqrt(total))
    step = max(1, total // wanted)
    return np.ascontiguousarray(np.concatenate([part.vectors[::step] for part in parts]))
