"""The gallery in this process's files: the ledger, and for each collection a view that is kept up with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.audit.log import Audit
from index.embedded.encryption.aead import Cipher, OperatorKey
from index.embedded.encryption.data_keys import CollectionKeys, cipher_of
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    folder_lock,
    subject_records,
    vector_records,
)
from index.embedded.store.atomic_files import make_folder
from index.embedded.store.id_normalisation import normalise_ids
from index.embedded.store.ledger import Change, Ledger, committing
from index.embedded.store.tombstones import Tombstones
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.searcher import Found, Part, View
from index.embedded.vectors.segment import Segment
from index.errors import ConflictError, CorruptError, GalleryError, LockedError
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
RETENTION = "retention"  # the actor where a subject's time was over
# Of a restore that is under way, or was when its process died.
RESTORING_FILE = f"{LEDGER_FILE}.restoring"


@dataclass(frozen=True)
class Tuning:
    """How far a search goes where there is an inverted file: lists looked into, faces ranked again.

    At a million faces, several of each subject, 64 lists find the nearest one for .90 of the queries, 256 for .99 and
    384 for .99 and more (docs/gallery-peers.md).
    """

    lists: int = 384
    shortlist: int = 128


@dataclass
class _Entry:
    """A view, the files it was made of (None: not made yet), and the commit up to which it has followed the ledger.

    It has the vectors of one generation of the collection, and no others. Who changes the view holds the lock.
    """

    view: View
    generation: int
    lock: threading.RLock = field(default_factory=threading.RLock)
    version: int = -1
    files: tuple[str, ...] | None = None


class EmbeddedGallery:
    """The `Gallery` in a folder, which several processes may have open. `key`: the operator's, for what is encrypted.

    An erasure has failed where writing it down beside the ledger raises OSError; it is written down later all the same.

    Raises:
        GalleryError: see `Ledger`; or a restore is under way, or the ledger is lost. CorruptError: see `Tombstones`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tuning: Tuning | None = None,
        clock: Callable[[], float] = time.time,
        vfs: str | None = None,
        key: OperatorKey | None = None,
    ):
        self.files = folder / FILES_FOLDER
        make_folder(self.files)
        self.tombstones = Tombstones(folder / TOMBSTONES_FILE)
        with ExitStack() as opened:
            opened.enter_context(folder_lock.lock(folder, exclusive=False))
            for path in folder.glob(f"{RESTORING_FILE}*"):
                path.unlink(missing_ok=True)
            if self.tombstones.path.exists() and not (folder / LEDGER_FILE).exists():
                raise GalleryError(f"the ledger in {folder} is lost; put a backup back by `restore`")
            self.ledger = Ledger(folder / LEDGER_FILE, vfs=vfs, keys=CollectionKeys(key))
            opened.callback(self.ledger.close)
            self.remember_erasures()
            normalise_ids(self.ledger, partial(_note_renamed, now=clock()))
            self.audit = Audit(folder / AUDIT_FILE, self.ledger, collection_records.gallery_id(self.ledger.reader()))
            self.audit.flush(recover=True)
            opened.callback(self.audit.flush)
            self._opened = opened.pop_all()
        self.clock = clock
        self._tuning = tuning or Tuning()
        self._entries: dict[int, _Entry] = {}
        self._known: tuple[int, dict[str, Collection]] = (-1, {})
        self._lock = threading.Lock()
        self._watcher = self.ledger.watcher()

    def close(self) -> None:
        """Let go of the files. Other threads must have stopped using it."""
        self._opened.close()
        self._entries.clear()

    def remember_erasures(self) -> None:
        """Write down beside the ledger, durably, what has been erased, so that a restore erases it again."""
        self.tombstones.append_new(self.ledger.reader())

    def change(self, write: Callable[[apsw.Connection], T]) -> Change[T]:
        """A change that erases nothing."""
        return Change(self.ledger, write)

    def erasure(self, write: Callable[[apsw.Connection], T]) -> Change[T]:
        """A change that erases something, which is also written down beside the ledger before its result is there."""
        return Change(self.ledger, write, self.tombstones.append_new)

    @committing
    def create(
        self,
        /,  # else a setting could have its name
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
            made = collection_records.insert(db, collection)
            audit.note(db, Act("create_collection", made.created_at, actor, made.id))
            return made

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
            found = collection_records.find(db, name)
            made = erasure_records.remove_collection(db, found, self.clock())
            audit.note(db, Act("erase", made.requested_at, actor, found.id, id=made.token))
            return made

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
            found, now = collection_records.find(db, collection), self.clock()
            check_future(expires_at, now)
            remove_lapsed(db, found.id, [key], now)
            made = subject_records.upsert(
                db,
                found.id,
                key,
                name=name,
                metadata={} if metadata is None else metadata,
                expires_at=expires_at,
                now=now,
            )
            audit.note(db, Act("put_subject", now, actor, found.id, [made.id]))
            return made

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
            found = collection_records.find(db, collection)
            return remove_subjects(db, found.id, subject_records.ids_of_key(db, found.id, key), self.clock(), actor)

        return self.erasure(write)

    @committing
    def enrol(
        self, collection: str, faces: Sequence[NewFace], fingerprint: str, *, actor: str | None = None
    ) -> Change[list[Face]]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> list[Face]:
            found, now = collection_records.find(db, collection), self.clock()
            collection_records.check_fingerprint(found, fingerprint)
            remove_lapsed(db, found.id, {face.subject for face in faces}, now)
            made = face_records.insert(db, found.id, faces, now)
            ids = [face.id for face in made]
            audit.note(db, Act("enrol", now, actor, found.id, audit.subjects_of(db, ids), ids))
            return made

        return self.change(write)

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            found = collection_records.find(db, collection)
            return face_records.of_subject(db, subject_records.find(db, found.id, key, self.clock()).id, after, limit)

    def crop(self, collection: str, face: str) -> bytes:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            return face_records.crop(db, collection_records.find(db, collection).id, face)

    @committing
    def remove_faces(self, collection: str, faces: Sequence[str], *, actor: str | None = None) -> Change[Receipt]:
        """See `Gallery`."""

        def write(db: apsw.Connection) -> Receipt:
            found = collection_records.find(db, collection)
            ids = face_records.ids_of_tokens(db, found.id, faces)
            subjects = audit.subjects_of(db, ids)
            made = erasure_records.remove_faces(db, found.id, ids, subjects=0, now=self.clock())
            audit.note(db, Act("erase", made.requested_at, actor, found.id, subjects, ids, made.token))
            return made

        return self.erasure(write)

    def receipt(self, token: str) -> Receipt:
        """See `Gallery`."""
        return erasure_records.receipt(self.ledger.reader(), token)

    def size(self, collection: str) -> int:
        """See `Gallery`."""
        return self._current(collection, None, lambda found: len(self.view(found)))

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """See `Gallery`."""

        def answer(found: Collection) -> list[list[Match]]:
            view, rows = self.view(found), unit_vectors(queries, found.dimensions)
            return [self._matches(found, view, query[None], k, fusion) for query in rows]

        return self._current(collection, fingerprint, answer)

    def _current(self, name: str, fingerprint: str | None, answer: Callable[[Collection], T]) -> T:
        """What is answered for the collection as it is; asked again where it was embedded anew meanwhile."""
        while True:
            found = self._read_once(name)
            collection_records.check_fingerprint(found, fingerprint)
            with suppress(ConflictError):
                return answer(found)

    def _read_once(self, name: str) -> Collection:
        """The collection as the ledger has it now, read again only after a commit."""
        version = self._watcher.version()
        known, collections = self._known
        if known != version:
            collections = {}
            self._known = version, collections
        if name not in collections:
            collections[name] = self.collection(name)  # not older than the version, which was asked for before
        return collections[name]

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """See `Gallery`."""
        subjects = sorted({subject.id for subject in found})
        self.audit.add(Act("search", self.clock(), actor, self.collection(collection).id, subjects))

    def _matches(self, collection: Collection, view: View, query: Floats, k: int, fusion: Fusion) -> list[Match]:
        wanted = 2 * k + 8
        while True:
            found = view.search(query, wanted, self._tuning.lists, self._tuning.shortlist)
            best = _by_subject(found)
            exhausted = len(found.faces[0]) < wanted or found.faces[0][-1] < 0
            # A mean may put any of them first; else the nearest are enough, unless some of them are gone.
            likeliest = list(best)[: None if fusion == "mean" else k]
            owners = self._owners(likeliest)
            if len(owners) < k:
                owners |= self._owners(list(best)[len(likeliest) :])
            if len(owners) >= k or exhausted:
                break
            wanted *= 4
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
        """Token and subject of those of the faces that there are and whose subjects' time is not over."""
        if not faces:
            return {}
        now = self.clock()
        there = face_records.owners(self.ledger.reader(), faces)
        return {face: own for face, own in there.items() if (until := own[1].expires_at) is None or until > now}

    def usage(self, collection: str) -> CollectionUsage:
        """See `Gallery`."""
        with self.ledger.snapshot() as db:
            found = collection_records.find(db, collection)
            indexed = vector_records.inverted_file(db, found.id)
            names = [one.file for one in vector_records.segments(db, found.id)] + ([indexed.file] if indexed else [])
            subjects, faces = collection_records.counts(db, found.id)
        paths = [path for name in names if (path := self.files / name).exists()]
        return CollectionUsage(subjects, faces, indexed is None, sum(path.stat().st_size for path in paths))

    @contextmanager
    def snapshot_of(self, collection: Collection) -> Iterator[apsw.Connection]:
        """Several reads that see one commit, in which the collection has the vectors it had when it was read.

        Raises:
            ConflictError: see `collection_records.check_current`.
        """
        with self.ledger.snapshot() as db:
            collection_records.check_current(db, collection)
            yield db

    def view(self, collection: Collection) -> View:
        """The collection's vectors as the ledger has them now.

        Raises:
            ConflictError: see `collection_records.check_current`.
        """
        with self._lock:
            version = self._watcher.version()
            entry = self._entries.get(collection.id)
            if entry is None or entry.generation < collection.generation:
                entry = self._entries[collection.id] = _Entry(View(collection.dimensions), collection.generation)
        if entry.generation != collection.generation:
            raise ConflictError(f"{collection.name!r} was embedded anew meanwhile")
        if entry.version != version:
            with entry.lock:
                if entry.version != version:
                    if entry.files is None:
                        self._load(collection, entry)
                    self._follow(collection, entry.view)
                    entry.version = version
        return entry.view

    def reload(self, collection: Collection) -> None:
        """Take up files that were written since the view was made. Searches go on with the old ones meanwhile.

        A view of vectors that the collection has no more is let go, with the files that it was made of.
        """
        with self._lock:
            entry = self._entries.get(collection.id)
            if entry is not None and entry.generation < collection.generation:
                entry = None
                del self._entries[collection.id]
        if entry is not None and entry.files is not None:
            with suppress(ConflictError, LockedError):  # a later round takes them up
                self._load(collection, entry)

    def graft(self, collection: Collection) -> None:
        """Let the inverted file find what was enrolled since it was written, if this process has searched it at all."""
        with self._lock:
            entry = self._entries.get(collection.id)
        if entry is not None:
            entry.view.graft()

    def _follow(self, collection: Collection, view: View) -> None:
        with self.snapshot_of(collection) as db:
            removed, through = erasure_records.removed_faces(db, collection.id, view.applied_removal)
            added = vector_records.read(db, collection.id, collection.dimensions, view.applied_face)
            view.apply(added, removed, through)

    def _load(self, collection: Collection, entry: _Entry) -> None:
        with self.snapshot_of(collection) as db:
            sealed, indexed = (
                vector_records.segments(db, collection.id),
                vector_records.inverted_file(db, collection.id),
            )
            names = (*(one.file for one in sealed), indexed.file if indexed else "")
            if names == entry.files:
                return
            cipher = cipher_of(db, collection.id)
            parts: list[Part] = [self._part(db, collection, one, cipher) for one in sealed]
        ivf = self._read(indexed, cipher)
        count = sum(one.last_face <= indexed.last_face for one in sealed) if indexed else 0
        oldest = min((one.removals_through for one in sealed), default=0)
        with entry.lock, self.snapshot_of(collection) as db:
            # Read after the files, so that whatever the view has forgotten since is forgotten in them, too.
            removed, _ = erasure_records.removed_faces(db, collection.id, oldest)
            entry.view.install(parts, ivf, count, removed)
            entry.files = names

    def _read(self, indexed: vector_records.InvertedFileRecord | None, cipher: Cipher) -> Ivf | None:
        """The inverted file; without one that is what was written, every face is compared until it is built anew."""
        try:
            return Ivf.read(self.files / indexed.file, cipher) if indexed else None
        except CorruptError:
            return None

    def _part(
        self, db: apsw.Connection, collection: Collection, one: vector_records.SegmentRecord, cipher: Cipher
    ) -> Part:
        """The segment, or where its file is not what was written the same rows from the ledger."""
        try:
            return Segment.open(self.files / one.file, cipher).unsealed()
        except CorruptError:
            return vector_records.read(
                db, collection.id, collection.dimensions, one.first_face - 1, through=one.last_face
            )


def _note_renamed(db: apsw.Connection, collection_id: int, subjects: Sequence[int], now: float) -> None:
    audit.note(db, Act("normalise_id", now, collection=collection_id, subjects=subjects))


def remove_subjects(
    db: apsw.Connection, collection_id: int, subject_ids: Sequence[int], now: float, actor: str | None = None
) -> Receipt:
    """Delete the subjects and all their faces, and note it for the audit log."""
    faces = [face for subject_id in subject_ids for face in face_records.ids_of_subject(db, subject_id)]
    made = erasure_records.remove_subjects(db, collection_id, subject_ids, now)
    audit.note(db, Act("erase", now, actor, collection_id, subject_ids, faces, made.token))
    return made


def remove_expired(db: apsw.Connection, now: float, limit: int = 1000) -> int:
    """Delete at most `limit` of the subjects whose time is over, and their faces; how many. `RETENTION` did it.

    That needs no key of an encrypted collection's.
    """
    over = subject_records.expired(db, now, limit)
    for collection_id, subject_id in over:
        remove_subjects(db, collection_id, [subject_id], now, RETENTION)
    return len(over)


def remove_lapsed(db: apsw.Connection, collection_id: int, keys: Iterable[str], now: float) -> None:
    """Delete those of the subjects whose time is over: what is stored under their keys now is somebody else's."""
    if ids := subject_records.expired_among(db, collection_id, keys, now):
        remove_subjects(db, collection_id, ids, now, RETENTION)


def _by_subject(found: Found) -> dict[int, float]:
    """Of the only query, each subject's nearest face: its id and its similarity, likest first."""
    best: dict[int, tuple[int, float]] = {}
    columns = (found.subjects[0].tolist(), found.faces[0].tolist(), found.similarities[0].tolist())
    for subject, face, similarity in zip(*columns, strict=True):
        if subject >= 0:
            best.setdefault(subject, (face, similarity))
    return dict(best.values())
