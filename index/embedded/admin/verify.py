"""Check a gallery for damage: the ledger itself, and all files against the ledger.

The check changes nothing, except that it flushes the audit log. Other processes may use the gallery meanwhile. The
ledger's rows have no checksums: a flipped bit in a vector that is in no segment yet is detected only if it changes the
vector's length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, pairwise

import apsw
import numpy as np

from index.embedded.encryption import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    lease_records,
    subject_records,
    vector_records,
)
from index.embedded.tasks.maintenance import VECTORS_PER_CHECK, ReadVectors
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.engine.maintenance import LEASE, LEASE_S
from index.errors import ConflictError, CorruptError, GalleryError, LockedError, TooNewError
from index.operator_key import OVERHEAD
from index.types import Collection, Ints
from index.validation import EARLIEST, are_unit

ROWS_PER_READ = 1000

# Statements that count the rows with a fault.
_ROW_FAULTS = {
    "faces are in another collection than their subject": "SELECT count(*) FROM faces"
    " JOIN subjects ON subjects.id = subject_id WHERE faces.collection_id != subjects.collection_id",
    "collections have a wrong count of subjects or faces": "SELECT count(*) FROM collections AS it"
    " WHERE subjects != (SELECT count(*) FROM subjects WHERE collection_id = it.id)"
    " OR faces != (SELECT count(*) FROM faces WHERE collection_id = it.id)",
    "rows of collections contain invalid JSON": "SELECT count(*) FROM collections WHERE NOT json_valid(settings)",
    "rows of subjects contain invalid JSON": "SELECT count(*) FROM subjects WHERE NOT json_valid(metadata)",
    "rows of faces contain invalid JSON": "SELECT count(*) FROM faces WHERE NOT json_valid(details)",
    "new vectors of faces do not fit their collection": "SELECT count(*) FROM reembedded"  # noqa: S608  of constants
    " JOIN reembeddings USING (collection_id) JOIN faces ON faces.id = face_id"
    " JOIN collections ON collections.id = reembedded.collection_id"
    f" WHERE length(data) != 4 * reembeddings.dimensions + {OVERHEAD} * encrypted"
    " OR faces.collection_id != reembedded.collection_id",
    "sightings are in another collection than their subject": "SELECT count(*) FROM sightings"
    " JOIN subjects ON subjects.id = subject_id WHERE sightings.collection_id != subjects.collection_id",
    "vectors of sightings do not fit their collection": "SELECT count(*) FROM sighting_faces"  # noqa: S608  constants
    " JOIN sightings ON sightings.id = sighting_id JOIN collections ON collections.id = sightings.collection_id"
    f" WHERE length(vector) != 4 * dimensions + {OVERHEAD} * encrypted"
    " OR sighting_faces.collection_id != sightings.collection_id",
    "vectors of feedback do not fit their collection": "SELECT count(*) FROM rejections"  # noqa: S608  of constants
    " JOIN subjects ON subjects.id = subject_id JOIN collections ON collections.id = subjects.collection_id"
    " LEFT JOIN reembeddings ON reembeddings.collection_id = collections.id"
    f" WHERE length(data) != 4 * collections.dimensions + {OVERHEAD} * encrypted"
    f" OR reembedded IS NOT NULL AND length(reembedded) IS NOT 4 * reembeddings.dimensions + {OVERHEAD} * encrypted",
}


def find_faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """Yield a message for each fault as soon as it is found."""
    files = {path.name for path in gallery.files.iterdir()}
    try:
        yield from _ledger_faults(gallery)
        for collection in gallery.collections(limit=-1):
            yield from _current_faults(gallery, collection)
        yield from _tombstone_faults(gallery)
        yield from _audit_faults(gallery)
        yield from _unreferenced_files(gallery, files)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        yield f"ledger: {error}"


def _ledger_faults(gallery: EmbeddedGallery) -> list[str]:
    with gallery.ledger.snapshot() as db:
        faults = [verdict for (verdict,) in db.execute("PRAGMA integrity_check") if verdict != "ok"]
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
            faults.append(f"row {row} of {table} refers to a missing row of {parent}")
        for fault, statement in _ROW_FAULTS.items():
            if count := db.execute(statement).get:
                faults.append(f"{count} {fault}")
    return [f"ledger: {fault}" for fault in faults]


def _current_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    """Check the collection as it is now; start over if it was re-embedded meanwhile, stop if it was dropped.

    Another error ends the check of this collection only.
    """
    current: Collection | None = collection
    while current:
        try:
            yield from (f"{collection.name}: {fault}" for fault in _collection_faults(gallery, current))
            return
        except (LockedError, CorruptError) as error:
            yield f"{collection.name}: the rest cannot be read: {error}"
            return
        except ConflictError:
            current = next((other for other in gallery.collections(limit=-1) if other.id == collection.id), None)


def _collection_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    with gallery.snapshot_of(collection) as db:
        size = cipher_of(db, collection.id).overhead + 4 * collection.dimensions
        wrong = vector_records.count_missing(db, collection.id, size)
        segments, index = vector_records.segments(db, collection.id), vector_records.inverted_file(db, collection.id)
    if wrong:  # the checks below need vectors of this size
        yield f"{wrong} faces have no vector of {collection.dimensions} numbers"
        return
    yield from _vector_faults(gallery, collection)
    if collection.encrypted:
        _decrypt_all(gallery, collection)
    for earlier, later in pairwise(segments):
        if later.first_face <= earlier.last_face:
            yield f"{earlier.file} and {later.file} overlap"
    for segment in segments:
        yield from _segment_faults(gallery, collection, segment)
    if index is not None:
        yield from _index_faults(gallery, collection, index)


def _decrypt_all(gallery: EmbeddedGallery, collection: Collection) -> None:
    """Read all subjects and faces, with crops; raises CorruptError where encrypted data was modified."""
    key: str | None = ""
    while key is not None:
        with gallery.snapshot_of(collection) as db:
            subjects = subject_records.page(db, collection.id, key, ROWS_PER_READ)
        key = subjects[-1].key if subjects else None
    after = 0
    while True:  # each page from its own snapshot: a long one would keep erased data in the write-ahead log
        with gallery.snapshot_of(collection) as db:
            faces = face_records.read_records(db, collection.id, after, ROWS_PER_READ, EARLIEST)
        if not faces:
            return
        after = faces[-1].id


def _vector_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    for rows in _pages(gallery, collection, vector_records.read, 0):
        if len(wrong := rows.faces[~are_unit(rows.vectors)]):
            yield f"{len(wrong)} faces have no vector of length 1, the first is {wrong[0]}"
    for rows in _pages(gallery, collection, vector_records.read_rejected, -vector_records.MAX_ID):
        if count := np.count_nonzero(~are_unit(rows.vectors)):
            yield f"{count} vectors of feedback do not have length 1"


def _pages(
    gallery: EmbeddedGallery, collection: Collection, read: ReadVectors, after: int
) -> Iterator[vector_records.FaceVectors]:
    """Yield all vectors with ids above `after`, page by page."""
    while True:
        with gallery.snapshot_of(collection) as db:
            rows = read(db, collection, after, VECTORS_PER_CHECK)
        if not len(rows.faces):
            return
        yield rows
        after = int(rows.faces[-1])


def _segment_faults(
    gallery: EmbeddedGallery, collection: Collection, segment: vector_records.SegmentRecord
) -> list[str]:
    """Check the segment's bytes, and its rows against the ledger's."""
    with gallery.snapshot_of(collection) as db:
        rows = vector_records.read(db, collection, segment.first_face - 1, through=segment.last_face)
        removed, _ = erasure_records.removed_faces(db, collection.id, segment.removals_through)
        reassigned = vector_records.reassignments(db, collection.id).faces
        cipher = cipher_of(db, collection.id)
    try:
        content = Segment.open(gallery.files / segment.file, cipher)
        content.verify()
    except (CorruptError, TooNewError) as error:
        return [str(error)] if _is_referenced(gallery, segment.file) else []
    if content.dimensions != collection.dimensions:
        return [f"{segment.file} has vectors of {content.dimensions} numbers"]
    faults = _membership_faults(segment.file, content.faces, rows.faces, removed)
    both, ours, theirs = np.intersect1d(content.faces, rows.faces, return_indices=True)
    # Vectors are copies, so their bits are equal.
    differs = (content.vectors[ours].view(np.uint32) != rows.vectors[theirs].view(np.uint32)).any(axis=1)
    # A segment keeps the earlier subjects of its faces; searchers read the changes from the ledger.
    differs |= (content.subjects[ours] != rows.subjects[theirs]) & ~np.isin(both, reassigned)
    if differs.any():
        first = both[differs][0]
        faults.append(f"{segment.file} differs from the ledger in {differs.sum()} faces, the first is {first}")
    return faults


def _index_faults(
    gallery: EmbeddedGallery, collection: Collection, index: vector_records.InvertedFileRecord
) -> list[str]:
    """Check the inverted file's bytes, and its ids against the ledger's."""
    with gallery.snapshot_of(collection) as db:
        faces = face_records.ids_through(db, collection.id, index.last_face)
        removed, _ = erasure_records.removed_faces(db, collection.id, index.removals_through)
        cipher = cipher_of(db, collection.id)
    try:
        ivf = Ivf.read(gallery.files / index.file, cipher)
    except CorruptError as error:
        return [str(error)] if _is_referenced(gallery, index.file) else []
    return _membership_faults(index.file, np.sort(ivf.ids), faces, removed)


def _is_referenced(gallery: EmbeddedGallery, file: str) -> bool:
    """Return whether the ledger still refers to the file: another process may have replaced it meanwhile."""
    with gallery.ledger.snapshot() as db:
        return file in vector_records.files(db)


def _membership_faults(file: str, faces: Ints, ledger: Ints, removed: Ints) -> list[str]:
    """Compare the ids in a file with those in the ledger and those `removed` since the file was written."""
    faults = []
    if (np.diff(faces) <= 0).any():
        faults.append(f"{file} contains faces twice, or not in ascending order of their ids")
    if len(extra := np.setdiff1d(faces, np.concatenate((ledger, removed)))):
        faults.append(f"{file} contains {len(extra)} faces that the ledger does not have, the first is {extra[0]}")
    if len(missing := np.setdiff1d(ledger, faces)):
        faults.append(f"{file} lacks {len(missing)} faces, the first is {missing[0]}")
    return faults


def _tombstone_faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """Check that the ledger has every removal of the tombstones. It may have more."""
    try:
        tombstones, last = gallery.tombstones.read(), 0
        if tombstones is None:
            yield f"{gallery.tombstones.path.name} is missing"
            return
        while page := list(islice(tombstones[1], ROWS_PER_READ)):
            with gallery.ledger.snapshot() as db:
                in_ledger = set(erasure_records.removals(db, last, page[-1].seq))
                not_erased = [removal for removal in page if erasure_records.target_exists(db, removal)]
                extra = [
                    removal for removal in set(page) - in_ledger if collection_records.exists(db, removal.collection_id)
                ]
            last = page[-1].seq
            if not_erased:
                yield f"{len(not_erased)} erasures were not made in the ledger, the first is {not_erased[0].seq}"
            if extra or in_ledger - set(page):
                yield f"{gallery.tombstones.path.name} differs from the ledger's removals up to {last}"
    except GalleryError as error:
        yield str(error)


def _audit_faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """Yield the first fault of the audit log. Lines after it are not checked."""
    try:
        if fault := gallery.audit.verify():
            yield f"{gallery.audit.path.name}: entry {fault.sequence}: {fault.reason}"
    except TooNewError as error:
        yield str(error)


def _unreferenced_files(gallery: EmbeddedGallery, files: set[str]) -> Iterator[str]:
    """Yield a fault for each file that the ledger does not refer to, except new ones of a running maintenance."""
    with gallery.ledger.snapshot() as db:
        referenced, leased = vector_records.files(db), lease_records.is_held(db, LEASE, gallery.clock(), LEASE_S)
    for name in sorted(files - referenced):
        with suppress(FileNotFoundError):  # deleted meanwhile
            age = time.time() - (gallery.files / name).stat().st_mtime
            # A time far in the future is caused by a wrong clock, and says nothing about the age.
            if not leased or abs(age) > LEASE_S:
                yield f"{name} is not referenced by the ledger"
