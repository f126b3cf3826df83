"""The embedded gallery: a SQLite ledger, the only source of truth, and an in-memory searcher per collection."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import apsw
import numpy as np

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.audit.id_normalisation import normalise_ids
from index.embedded.encryption import PLAINTEXT, CollectionKeys, cipher_of
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    subject_records,
    vector_records,
)
from index.embedded.store.atomic_files import lock_folder
from index.embedded.store.changes import committing
from index.embedded.store.ledger import Ledger
from index.embedded.store.tombstones import Tombstones, erasing
from index.embedded.vectors.searcher import VectorSearcher
from index.embedded.vectors.searcher_cache import SearcherCache, collection_snapshot
from index.errors import ConflictError, GalleryError
from index.folders import make_folder
from index.operator_key import OperatorKey
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
from index.validation import check_fingerprint, check_future, unit_vectors

T = TypeVar("T")

LEDGER_FILE, FILES_FOLDER, TOMBSTONES_FILE, AUDIT_FILE = "ledger.db", "files", "tombstones", "audit.log"
RESTORING_FILE = f"{LEDGER_FILE}.restoring"  # the new ledger during a restore


RETENTION = "retention"  # the actor of expiry


@dataclass(frozen=True)
class SearchTuning:
    """Search effort with an inverted file: the lists to probe, and the faces to re-rank by their exact vectors.

    At a million faces, several of each subject, 64 lists find the nearest face for .90 of the queries, 256 for .99 and
    384 for .99 and more (docs/gallery-peers.md).
    """

    lists: int = 384
    shortlist: int = 128


class EmbeddedGallery:
    """A `Gallery` in a folder, which several processes may open. `key`: the operator's, for encrypted collections.

    An erasure raises DiskFullError or OSError if its tombstone cannot be written. The erasure is committed
    nevertheless, and the tombstone is written later.

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
            resources.enter_context(lock_folder(folder, exclusive=False))
            for path in folder.glob(f"{RESTORING_FILE}*"):  # left by a restore whose process died
                path.unlink(missing_ok=True)
            if self.tombstones.path.exists() and not (folder / LEDGER_FILE).exists():
                raise GalleryError(f"the ledger in {folder} is missing; restore a backup with `restore`")
            self.ledger = Ledger(folder / LEDGER_FILE, vfs=vfs, keys=CollectionKeys(key))
            resources.callback(self.ledger.close)
            self.tombstones.append_new(self.ledger.reader())  # erasures whose process died before it appended them
            normalise_ids(self.ledger, clock())
            self.audit = audit.AuditLog(
                folder / AUDIT_FILE, self.ledger, collection_records.gallery_id(self.ledger.reader())
            )
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

    @committing
    def create(
        self,
        db: apsw.Connection,
        /,  # a setting may be called `self`
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Collection:
        """See `Gallery`."""
        collection = Collection(0, name, embedder, fingerprint, dimensions, settings, self.clock(), encrypted=encrypted)
        inserted = collection_records.insert(db, collection)
        audit.record(db, AuditEvent("create_collection", inserted.created_at, actor, inserted.id))
        return inserted

    def collection(self, name: str) -> Collection:
        """See `Gallery`."""
        return collection_records.find(self.ledger.reader(), name)

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """See `Gallery`."""
        return collection_records.page(self.ledger.reader(), after, limit)

    @erasing
    def drop(self, db: apsw.Connection, name: str, *, actor: str | None = None) -> Receipt:
        """See `Gallery`."""
        collection = collection_records.find(db, name)
        receipt = erasure_records.remove_collection(db, collection, self.clock())
        audit.record(db, AuditEvent("erase", receipt.requested_at, actor, collection.id, id=receipt.token))
        return receipt

    @committing
    def put_subject(
        self,
        db: apsw.Connection,
        collection: str,
        key: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        actor: str | None = None,
    ) -> CountedSubject:
        """See `Gallery`."""
        number, now = collection_records.find(db, collection).id, self.clock()
        check_future(expires_at, now)
        remove_expired_among(db, number, [key], now)
        properties = {} if metadata is None else metadata
        subject = subject_records.upsert(
            db, number, key, name=name, metadata=properties, expires_at=expires_at, now=now
        )
        audit.record(db, AuditEvent("put_subject", now, actor, number, [subject.id]))
        return subject

    def subject(self, collection: str, key: str) -> CountedSubject:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return subject_records.find(db, collection_records.find(db, collection).id, key, self.clock())

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return subject_records.page(db, collection_records.find(db, collection).id, after, limit, self.clock())

    @erasing
    def remove_subject(self, db: apsw.Connection, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """See `Gallery`."""
        number = collection_records.find(db, collection).id
        return remove_subjects(db, number, subject_records.ids_of_key(db, number, key), self.clock(), actor)

    @committing
    def enrol(
        self,
        db: apsw.Connection,
        collection: str,
        faces: Sequence[NewFace],
        fingerprint: str,
        *,
        actor: str | None = None,
    ) -> list[Face]:
        """See `Gallery`."""
        target, now = collection_records.find(db, collection), self.clock()
        check_fingerprint(target, fingerprint)
        remove_expired_among(db, target.id, {face.subject for face in faces}, now)
        enrolled = face_records.insert(db, target.id, faces, now)
        ids = [face.id for face in enrolled]
        audit.record(db, AuditEvent("enrol", now, actor, target.id, face_records.subjects_of(db, ids), ids))
        return enrolled

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            number = collection_records.find(db, collection).id
            subject = subject_records.find(db, number, key, self.clock())
            return face_records.of_subject(db, number, subject, after, limit)

    def crop(self, collection: str, face: str) -> bytes:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return face_records.crop(db, collection_records.find(db, collection).id, face)

    @erasing
    def remove_faces(
        self, db: apsw.Connection, collection: str, faces: Sequence[str], *, actor: str | None = None
    ) -> Receipt:
        """See `Gallery`."""
        number = collection_records.find(db, collection).id
        ids = face_records.ids_of_tokens(db, number, faces)
        subjects = face_records.subjects_of(db, ids)
        receipt = erasure_records.remove_faces(db, number, ids, subjects=0, now=self.clock())
        audit.record(db, AuditEvent("erase", receipt.requested_at, actor, number, subjects, ids, receipt.token))
        return receipt

    def receipt(self, token: str) -> Receipt:
        """See `Gallery`."""
        return erasure_records.receipt(self.ledger.reader(), token)

    def size(self, collection: str) -> int:
        """See `Gallery`."""
        return self._read_current(collection, None, lambda current: len(self.searchers.get(current)))

    def nearest_subjects(
        self, collection: str, queries: Floats, k: int = 5, fusion: Fusion = "best", fingerprint: str | None = None
    ) -> list[list[Match]]:
        """Return for each query [N, D] the `k` most similar subjects, most similar first; no feedback is applied.

        Raises:
            NotFoundError, LockedError, InvalidError, ConflictError: see `index.protocol.Searches`.
        """

        def read(current: Collection) -> list[list[Match]]:
            searcher, rows = self.searchers.get(current), unit_vectors(queries, current.dimensions)
            return [self._matches(current, searcher, query[None], k, fusion) for query in rows]

        return self._read_current(collection, fingerprint, read)

    def _read_current(self, name: str, fingerprint: str | None, read: Callable[[Collection], T]) -> T:
        """Return `read(collection)`; retry with the updated collection if it was re-embedded meanwhile."""
        while True:
            collection = self.current_collection(name)
            check_fingerprint(collection, fingerprint)
            with suppress(ConflictError):
                return read(collection)

    def current_collection(self, name: str) -> Collection:
        """Return the current collection; read it from the ledger only after a commit."""
        version = self._watcher.version()  # read first: a collection cached under it is never older
        if self._collection_cache[0] != version:
            self._collection_cache = version, {}
        collections = self._collection_cache[1]
        if name not in collections:
            collections[name] = self.collection(name)
        return collections[name]

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """See `Gallery`."""
        subjects = sorted({subject.id for subject in found})
        self.audit.add(AuditEvent("search", self.clock(), actor, self.current_collection(collection).id, subjects))

    def _matches(
        self, collection: Collection, searcher: VectorSearcher, query: Floats, k: int, fusion: Fusion
    ) -> list[Match]:
        """Return the best `k` matches of a query [1, D]."""
        count = 2 * k + 8
        while True:
            nearest = searcher.search(query, count, self._tuning.lists, self._tuning.shortlist)
            best = nearest.nearest_by_subject()
            exhausted = len(nearest.faces[0]) < count or nearest.faces[0][-1] < 0
            # The mean of any subject may be the highest. Otherwise the nearest k are enough, unless some were erased.
            first = list(best)[: None if fusion == "mean" else k]
            owners = self._owners(collection, first)
            if len(owners) < k:
                owners |= self._owners(collection, list(best)[len(first) :])
            if len(owners) >= k or exhausted:
                break
            count *= 4
        matches = [Match(subject, best[face], token) for face, (token, subject) in owners.items()]
        if fusion == "mean":
            ids = [match.subject.id for match in matches]
            with self.snapshot_of(collection) as db:
                (matches,) = self.compare_subjects(db, collection, ids, query, fusion)
        best_of: dict[int, Match] = {}  # a subject can come twice if it absorbed another since `searcher` was updated
        for match in sorted(matches, key=lambda match: (-match.similarity, match.subject.id)):
            best_of.setdefault(match.subject.id, match)
        return list(best_of.values())[:k]

    def _owners(self, collection: Collection, faces: Sequence[int]) -> dict[int, tuple[str, Subject]]:
        """Return the token and the subject of each face, without erased faces and expired subjects."""
        db, now = self.ledger.reader(), self.clock()
        cipher = cipher_of(db, collection.id) if collection.encrypted else PLAINTEXT
        owners = face_records.owners(db, cipher, faces)
        return {face: own for face, own in owners.items() if (until := own[1].expires_at) is None or until > now}

    def compare_subjects(
        self, db: apsw.Connection, collection: Collection, subject_ids: Sequence[int], queries: Floats, fusion: Fusion
    ) -> list[list[Match]]:
        """Return for each query [N, D] a match of each subject that has a face and has not expired."""
        now = self.clock()
        subjects = {
            number: subject
            for number, subject in subject_records.by_id(db, cipher_of(db, collection.id), subject_ids).items()
            if subject.expires_at is None or subject.expires_at > now
        }
        rows, tokens = vector_records.of_subjects(db, collection, subjects)
        bounds = np.flatnonzero(np.diff(rows.subjects, prepend=-1, append=-1))  # each subject's first row, and the end
        results = []
        for similarities in queries @ rows.vectors.T:
            matches = []
            for start, end in pairwise(bounds.tolist()):
                nearest = start + int(similarities[start:end].argmax())
                value = similarities[nearest] if fusion == "best" else similarities[start:end].mean()
                matches.append(Match(subjects[int(rows.subjects[start])], float(value), tokens[nearest]))
            results.append(matches)
        return results

    def usage(self, collection: str) -> CollectionUsage:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return self.usage_of(db, collection_records.find(db, collection))

    def usage_of(self, db: apsw.Connection, collection: Collection) -> CollectionUsage:
        """Return the usage of a collection that was read in the snapshot `db`."""
        records = vector_records.file_records(db, collection.id)
        exact = not any(isinstance(record, vector_records.InvertedFileRecord) for record in records)
        size = sum(path.stat().st_size for record in records if (path := self.files / record.file).exists())
        return CollectionUsage(*collection_records.counts(db, collection.id), exact, size)

    def snapshot_of(self, collection: Collection) -> AbstractContextManager[apsw.Connection]:
        """See `collection_snapshot`."""
        return collection_snapshot(self.ledger, collection)


class GalleryComponent:
    """Base class of objects that work on the ledger of a gallery. `holder`: the id under which it holds leases."""

    def __init__(self, gallery: EmbeddedGallery):
        self.gallery = gallery
        self.ledger = gallery.ledger
        self.tombstones = gallery.tombstones
        self.holder = secrets.token_hex(16)


def remove_subjects(
    db: apsw.Connection, collection_id: int, subject_ids: Sequence[int], now: float, actor: str | None = None
) -> Receipt:
    """Delete the subjects and all their faces, and return the receipt."""
    receipt, faces = erasure_records.remove_subjects(db, collection_id, subject_ids, now)
    audit.record(db, AuditEvent("erase", now, actor, collection_id, subject_ids, faces, receipt.token))
    return receipt


def remove_expired(db: apsw.Connection, now: float, limit: int = 1000) -> int:
    """Delete at most `limit` expired subjects with their faces, and return how many.

    Needs no key, also for encrypted collections. The actor is `RETENTION`.
    """
    expired = subject_records.expired(db, now, limit)
    for collection_id, subject_id in expired:
        remove_subjects(db, collection_id, [subject_id], now, RETENTION)
    return len(expired)


def remove_expired_among(db: apsw.Connection, collection_id: int, keys: Iterable[str], now: float) -> None:
    """Delete those of the subjects that have expired, so that a new enrolment under the key starts a new subject."""
    if ids := subject_records.expired_among(db, collection_id, keys, now):
        remove_subjects(db, collection_id, ids, now, RETENTION)
