"""The searchers of a gallery's collections in this process, each updated from the ledger before it is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import collection_records, erasure_records, vector_records
from index.embedded.store.ledger import Ledger, Watcher
from index.embedded.store.vector_records import SegmentRecord
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.searcher import FaceBlock, VectorSearcher
from index.embedded.vectors.segment import Segment
from index.errors import ConflictError, CorruptError, LockedError
from index.types import Collection


@contextmanager
def collection_snapshot(ledger: Ledger, collection: Collection) -> Iterator[apsw.Connection]:
    """Read one commit of the ledger. The collection must not have been dropped or re-embedded since it was read.

    Raises:
        ConflictError: see `collection_records.check_current`.
    """
    with ledger.snapshot() as db:
        collection_records.check_current(db, collection)
        yield db


@dataclass
class _CachedSearcher:
    """The searcher of one generation of a collection. Hold `lock` to change it.

    `version`: the last commit that it contains. `files`: the files it was loaded from (None: not loaded).
    """

    searcher: VectorSearcher
    generation: int
    lock: threading.RLock = field(default_factory=threading.RLock)
    version: int = -1
    files: tuple[str, ...] | None = None


class SearcherCache:
    """Searchers by collection, loaded from the segments and inverted files in the folder `files`. Thread-safe."""

    def __init__(self, ledger: Ledger, files: Path, watcher: Watcher):
        self._ledger = ledger
        self._files = files
        self._watcher = watcher
        self._entries: dict[int, _CachedSearcher] = {}
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Drop all searchers, with the files that they map."""
        self._entries.clear()

    def get(self, collection: Collection) -> VectorSearcher:
        """Return the collection's searcher, up to date with the ledger.

        Raises:
            ConflictError: see `collection_records.check_current`.
        """
        with self._lock:
            version = self._watcher.version()
            entry = self._entries.get(collection.id)
            if entry is None or entry.generation < collection.generation:
                entry = _CachedSearcher(VectorSearcher(collection.dimensions), collection.generation)
                self._entries[collection.id] = entry
        if entry.generation != collection.generation:
            raise ConflictError(f"{collection.name!r} was re-embedded meanwhile")
        if entry.version != version:
            with entry.lock:
                if entry.version != version:
                    if entry.files is None:
                        self._load(collection, entry)
                    self._follow_ledger(collection, entry.searcher)
                    entry.version = version
        return entry.searcher

    def reload(self, collection: Collection) -> None:
        """Load files that were written since the searcher was loaded; searches use the old ones meanwhile.

        Drop a searcher of vectors that the collection no longer has.
        """
        with self._lock:
            entry = self._entries.get(collection.id)
            if entry is not None and entry.generation < collection.generation:
                entry = None
                del self._entries[collection.id]
        if entry is not None and entry.files is not None:
            with suppress(ConflictError, LockedError):  # the next round of maintenance tries again
                self._load(collection, entry)

    def add_recent(self, collection: Collection) -> None:
        """Add recent faces to the collection's inverted file in memory, if this process has searched it."""
        with self._lock:
            entry = self._entries.get(collection.id)
        if entry is not None:
            entry.searcher.add_recent()

    def _follow_ledger(self, collection: Collection, searcher: VectorSearcher) -> None:
        with collection_snapshot(self._ledger, collection) as db:
            removed, through = erasure_records.removed_faces(db, collection.id, searcher.applied_removal)
            added = vector_records.read(db, collection, searcher.applied_face)
            reassigned = vector_records.reassignments(db, collection.id, searcher.applied_reassignment)
            searcher.apply(added, removed, through, reassigned)

    def _load(self, collection: Collection, entry: _CachedSearcher) -> None:
        with collection_snapshot(self._ledger, collection) as db:
            segments, index = (
                vector_records.segments(db, collection.id),
                vector_records.inverted_file(db, collection.id),
            )
            files = (*(segment.file for segment in segments), index.file if index else "")
            if files == entry.files:
                return
            cipher = cipher_of(db, collection.id)
            blocks = [self._read_block(db, collection, segment, cipher) for segment in segments]
        # Without an inverted file, or with a damaged one, searches are exact until it is rebuilt.
        ivf = Ivf.read_undamaged(self._files / index.file, cipher) if index else None
        indexed = sum(segment.last_face <= index.last_face for segment in segments) if index else 0
        oldest = min((segment.removals_through for segment in segments), default=0)
        with entry.lock, collection_snapshot(self._ledger, collection) as db:
            # Read after the files, so that faces removed meanwhile are removed from the loaded files, too.
            removed, _ = erasure_records.removed_faces(db, collection.id, oldest)
            reassigned = vector_records.reassignments(db, collection.id)  # also those made before a file was written
            entry.searcher.replace_blocks(blocks, ivf, indexed, removed, reassigned)
            entry.files = files

    def _read_block(
        self, db: apsw.Connection, collection: Collection, segment: SegmentRecord, cipher: Cipher
    ) -> FaceBlock:
        """Return the segment, or the same rows of the ledger where its file is missing or damaged."""
        try:
            return Segment.open(self._files / segment.file, cipher).load()
        except CorruptError:
            return vector_records.read(db, collection, segment.first_face - 1, through=segment.last_face)
