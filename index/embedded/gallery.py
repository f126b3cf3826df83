"""The embedded gallery: a SQLite ledger, which is the truth, and an in-memory searcher per collection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import AuditEvent
from index.embedded.audit.erasure import remove_expired_among, remove_subjects
from index.embedded.audit.id_normalisation import normalise_ids
from index.embedded.audit.log import AuditLog
from index.embedded.encryption.aead import OperatorKey
from index.embedded.encryption.data_keys import CollectionKeys
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    folder_lock,
    subject_records,
    vector_records,
)
from index.embedded.store.atomic_files import make_folder
from index.embedded.store.ledger import Change, Ledger, committing
from index.embedded.store.tombstones import Tombstones
from index.embedded.vectors.searcher import NearestFaces, VectorSearcher
from index.embedded.vectors.searcher_cache import SearcherCache, collection_snapshot
from index.errors import ConflictError, GalleryError
from index.types import (
    Collection,
    CollectionUsage,
    CountedSubject,
    Face,
    Floats,
    Fusion,
    Match,
    NewFace,
    Receipt,
    Subject,
)
from index.validation import check_future, unit_vectors

T = TypeVar("T")

LEDGER_FILE, FILES_FOLDER, TOMBSTONES_FILE, AUDIT_FILE = "ledger.db", "files", "tombstones", "audit.log"
RESTORING_FILE = f"{LEDGER_FILE}.restoring"  # the new ledger during a restore


@dataclass(frozen=True)
class SearchTuning:
    """Search effort with an inverted file: the lists to probe, and the faces to re-rank by their exact vectors.

    At a million faces, several of each subject, 64 lists find the nearest face for .90 of the queries, 256 for .99 and
    384 for .99 and more (docs/gallery-peers.md).
    """

    lists: int = 384
    shortlist: int = 128


class EmbeddedGallery:
    """The `Gallery` in a folder, which several processes may open. `key`: the operator's, for encrypted collections.

    An erasure raises OSError where its tombstone cannot be written. It is committed nevertheless, and the tombstone is
    written later.

    Raises:
        GalleryError: see `Ledger`; or a restore is running, or the ledger is missing. CorruptError: see `Tombstones`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tuning: SearchTuning | None = None,
        clock: Callable[[], float] = time.time,
        vfs: str | None = None,
        key: OperatorKey | None = None,
    ):
        self.files = folder / FILES_FOLDER
        make_folder(self.files)
        self.tombstones = Tombstones(folder / TOMBSTONES_FILE)
        with ExitStack() as resources:
            resources.enter_context(folder_lock.lock(folder, exclusive=False))
            for path in folder.glob(f"{RESTORING_FILE}*"):  # of a restore whose process died
                path.unlink(missing_ok=True)
            if self.tombstones.path.exists() and not (folder / LEDGER_FILE).exists():
                raise GalleryError(f"the ledger in {folder} is missing; restore a backup with `restore`")
            self.ledger = Ledger(folder / LEDGER_FILE, vfs=vfs, keys=CollectionKeys(key))
            resources.callback(self.ledger.close)
            self.write_tombstones()
            normalise_ids(self.ledger, clock())
            self.audit = AuditLog(folder / AUDIT_FILE, self.ledger, collection_records.gallery_id(self.ledger.reader()))
            self.audit.flush(recover=True)
            resources.callback(self.audit.flush)
            self._resources = resources.pop_all()
        self.clock = clock
        self._tuning = tuning or SearchTuning()
        self._watcher = self.ledger.watcher()
        self.searchers = SearcherCache(self.ledger, self.files, self._watcher)
        self._collection_cache: tuple[int, dict[str, Collection]] = (-1, {})  # of one version of the ledger

    def close(self) -> None:
        """Close all files. No other thread may use the gallery any more."""
        self._resources.close()
        self.searchers.clear()

    def write_tombstones(self) -> None:
        """Write the tombstones of all committed erasures durably, so that a restore repeats these erasures."""
        self.tombstones.append_new(self.ledger.reader())

    def change(self, write: Callable[[apsw.Connection], T]) -> Change[T]:
        """Return a change that erases nothing."""
        return Change(self.ledger, write)

    def erasure(self, write: Callable[[apsw.Connection], T]) -> Change[T]:
        """Return a change that erases data. Its tombstones are written before its result is returned."""
        return Change(self.ledger, write, self.tombstones.append_new)

    @committing
    def create(
        self,
        /,  # a setting may be called `self`
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Change[Collection]:
        """See `Gallery`."""
        collection = Collection(0, name, embedder, fingerprint, dimensions, settings, self.clock(), encrypted=encrypted)

        def write(db: apsw.Connection) -> Collection:
            inserted = collection_records.insert(db, collection)
            audit.record(db, AuditEvent("create_collection", inserted.created_at, actor, inserted.id))
            return inserted

        return self.change(write)

    def collection(self, name: str) -> Collection:
        """See `Gallery`."""
        return collection_records.find(self.ledger.reader(), name)

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """See `Gallery`."""
        return collection_records.page(self.ledger.reader(), after, limit)

    @committing
    def drop(self, name: str, *, actor: str | None = None) -> Change[Receipt]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> Receipt:
            collection = collection_records.find(db, name)
            receipt = erasure_records.remove_collection(db, collection, self.clock())
            audit.record(db, AuditEvent("erase", receipt.requested_at, actor, collection.id, id=receipt.token))
            return receipt

        return self.erasure(write)

    @committing
    def put_subject(
        self,
        collection: str,
        key: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        actor: str | None = None,
    ) -> Change[CountedSubject]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> CountedSubject:
            number, now = collection_records.find(db, collection).id, self.clock()
            check_future(expires_at, now)
            remove_expired_among(db, number, [key], now)
            properties = {} if metadata is None else metadata
            subject = subject_records.upsert(
                db, number, key, name=name, metadata=properties, expires_at=expires_at, now=now
            )
            audit.record(db, AuditEvent("put_subject", now, actor, number, [subject.id]))
            return subject

        return self.change(write)

    def subject(self, collection: str, key: str) -> CountedSubject:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return subject_records.find(db, collection_records.find(db, collection).id, key, self.clock())

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return subject_records.page(db, collection_records.find(db, collection).id, after, limit, self.clock())

    @committing
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Change[Receipt]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> Receipt:
            number = collection_records.find(db, collection).id
            return remove_subjects(db, number, subject_records.ids_of_key(db, number, key), self.clock(), actor)

        return self.erasure(write)

    @committing
    def enrol(
        self, collection: str, faces: Sequence[NewFace], fingerprint: str, *, actor: str | None = None
    ) -> Change[list[Face]]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> list[Face]:
            target, now = collection_records.find(db, collection), self.clock()
            collection_records.check_fingerprint(target, fingerprint)
            remove_expired_among(db, target.id, {face.subject for face in faces}, now)
            enrolled = face_records.insert(db, target.id, faces, now)
            ids = [face.id for face in enrolled]
            audit.record(db, AuditEvent("enrol", now, actor, target.id, audit.subjects_of(db, ids), ids))
            return enrolled

        return self.change(write)

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            number = collection_records.find(db, collection).id
            subject = subject_records.find(db, number, key, self.clock())
            return face_records.of_subject(db, subject.id, after, limit)

    def crop(self, collection: str, face: str) -> bytes:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return face_records.crop(db, collection_records.find(db, collection).id, face)

    @committing
    def remove_faces(self, collection: str, faces: Sequence[str], *, actor: str | None = None) -> Change[Receipt]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> Receipt:
            number = collection_records.find(db, collection).id
            ids = face_records.ids_of_tokens(db, number, faces)
            subjects = audit.subjects_of(db, ids)
            receipt = erasure_records.remove_faces(db, number, ids, subjects=0, now=self.clock())
            audit.record(db, AuditEvent("erase", receipt.requested_at, actor, number, subjects, ids, receipt.token))
            return receipt

        return self.erasure(write)

    def receipt(self, token: str) -> Receipt:
        """See `Gallery`."""
        return erasure_records.receipt(self.ledger.reader(), token)

    def size(self, collection: str) -> int:
        """See `Gallery`."""
        return self._read_current(collection, None, lambda current: len(self.searchers.get(current)))

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """See `Gallery`."""

        def read(current: Collection) -> list[list[Match]]:
            searcher, rows = self.searchers.get(current), unit_vectors(queries, current.dimensions)
            return [self._matches(current, searcher, query[None], k, fusion) for query in rows]

        return self._read_current(collection, fingerprint, read)

    def _read_current(self, name: str, fingerprint: str | None, read: Callable[[Collection], T]) -> T:
        """Return `read(collection)`; repeat it with the new collection where that was re-embedded meanwhile."""
        while True:
            collection = self._cached_collection(name)
            collection_records.check_fingerprint(collection, fingerprint)
            with suppress(ConflictError):
                return read(collection)

    def _cached_collection(self, name: str) -> Collection:
        """Return the current collection; read it from the ledger only after a commit."""
        version = self._watcher.version()  # asked for first, so that a cached collection is never older than it
        cached_version, collections = self._collection_cache
        if cached_version != version:
            collections = {}
            self._collection_cache = version, collections
        if name not in collections:
            collections[name] = self.collection(name)
        return collections[name]

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """See `Gallery`."""
        subjects = sorted({subject.id for subject in found})
        self.audit.add(AuditEvent("search", self.clock(), actor, self._cached_collection(collection).id, subjects))

    def _matches(
        self, collection: Collection, searcher: VectorSearcher, query: Floats, k: int, fusion: Fusion
    ) -> list[Match]:
        """Return the best `k` matches of a query [1, D]."""
        count = 2 * k + 8
        while True:
            nearest = searcher.search(query, count, self._tuning.lists, self._tuning.shortlist)
            best = _nearest_by_subject(nearest)
            exhausted = len(nearest.faces[0]) < count or nearest.faces[0][-1] < 0
            # By its mean any subject can be first. Otherwise the nearest k are enough, unless some were erased.
            first = list(best)[: None if fusion == "mean" else k]
            owners = self._owners(first)
            if len(owners) < k:
                owners |= self._owners(list(best)[len(first) :])
            if len(owners) >= k or exhausted:
                break
            count *= 4
        if fusion == "mean":
            ids = [subject.id for _, subject in owners.values()]
            with self.snapshot_of(collection) as db:
                vectors = vector_records.by_subject(db, ids, collection.dimensions)
            best = {
                face: float((vectors[subject.id] @ query[0]).mean())
                for face, (_, subject) in owners.items()
                if subject.id in vectors
            }
        matches = [Match(subject, best[face], token) for face, (token, subject) in owners.items() if face in best]
        return sorted(matches, key=lambda match: (-match.similarity, match.subject.id))[:k]

    def _owners(self, faces: Sequence[int]) -> dict[int, tuple[str, Subject]]:
        """Return the token and the subject of each face, without erased faces and expired subjects."""
        if not faces:
            return {}
        now = self.clock()
        owners = face_records.owners(self.ledger.reader(), faces)
        return {face: own for face, own in owners.items() if (until := own[1].expires_at) is None or until > now}

    def usage(self, collection: str) -> CollectionUsage:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return self.usage_of(db, collection_records.find(db, collection))

    def usage_of(self, db: apsw.Connection, collection: Collection) -> CollectionUsage:
        """Return the usage of a collection that was read in the snapshot `db`."""
        index = vector_records.inverted_file(db, collection.id)
        files = [segment.file for segment in vector_records.segments(db, collection.id)] + (
            [index.file] if index else []
        )
        subjects, faces = collection_records.counts(db, collection.id)
        paths = [path for file in files if (path := self.files / file).exists()]
        return CollectionUsage(subjects, faces, index is None, sum(path.stat().st_size for path in paths))

    def snapshot_of(self, collection: Collection) -> AbstractContextManager[apsw.Connection]:
        """See `collection_snapshot`."""
        return collection_snapshot(self.ledger, collection)


def _nearest_by_subject(nearest: NearestFaces) -> dict[int, float]:
    """Return the nearest face of each subject for the only query: similarities by face id, nearest first."""
    best: dict[int, tuple[int, float]] = {}
    columns = (nearest.subjects[0].tolist(), nearest.faces[0].tolist(), nearest.similarities[0].tolist())
    for subject, face, similarity in zip(*columns, strict=True):
        if subject >= 0:
            best.setdefault(subject, (face, similarity))
    return dict(best.values())
