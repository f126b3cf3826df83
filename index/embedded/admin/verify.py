"""Whether a gallery is what was written: the ledger in itself, and all files against it.

Nothing is changed, but that the audit log is brought up to the ledger; others may use the gallery meanwhile. The
ledger's rows have no checksums of their own: a bit that flips in a vector that is in no segment yet is only noticed
where the vector's length shows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, pairwise

import apsw
import numpy as np

from index.embedded.encryption.data_keys import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import rejected_after
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    lease_records,
    subject_records,
    vector_records,
)
from index.embedded.store.vector_records import InvertedFileRecord, SegmentRecord
from index.embedded.tasks import reembedding
from index.embedded.tasks.compaction import LEASE, LEASE_S
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.segment import Segment
from index.errors import ConflictError, CorruptError, GalleryError, LockedError, TooNewError
from index.types import Collection, Ints
from index.validation import are_unit

# Vectors that are read at once.
AT_ONCE = 65_536
ROWS_AT_ONCE = 1000


def faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """What is wrong, in words, each as soon as it is found."""
    there = {path.name for path in gallery.files.iterdir()}
    try:
        yield from _ledger_faults(gallery)
        for collection in gallery.collections(limit=-1):
            yield from _told(collection, _current_faults(gallery, collection))
        yield from _tombstone_faults(gallery)
        yield from _audit_faults(gallery)
        yield from _strangers(gallery, there)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        yield f"ledger: {error}"


def _told(collection: Collection, found: Iterator[str]) -> Iterator[str]:
    """With whose they are; one that ends the search of a collection does not end that of the others."""
    try:
        yield from (f"{collection.name}: {what}" for what in found)
    except (LockedError, CorruptError) as error:
        yield f"{collection.name}: no more of it can be read: {error}"


def _ledger_faults(gallery: EmbeddedGallery) -> list[str]:
    with gallery.ledger.snapshot() as db:
        found = [verdict for (verdict,) in db.execute("PRAGMA integrity_check") if verdict != "ok"]
        for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
            found.append(f"row {row} of {table} belongs to nothing in {parent}")
        if count := face_records.count_misplaced(db):
            found.append(f"{count} faces are in another collection than their subject")
        if count := collection_records.count_miscounted(db):
            found.append(f"{count} collections have another number of subjects or faces than they say")
        for table, count in collection_records.count_invalid_json(db).items():
            found.append(f"{count} rows of {table} have something else where JSON should be")
        found += reembedding.faults(db)
    return [f"ledger: {what}" for what in found]


def _current_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    """Of the collection as it is now; nothing where it was dropped."""
    there: list[Collection] = [collection]
    while there:
        try:
            yield from _collection_faults(gallery, there[0])
            return
        except ConflictError:  # dropped, or embedded anew, meanwhile
            there = [one for one in gallery.collections(limit=-1) if one.id == collection.id]


def _collection_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    with gallery.snapshot_of(collection) as db:
        size = cipher_of(db, collection.id).encrypted_size(4 * collection.dimensions)
        wrong = vector_records.count_missing(db, collection.id, size)
        sealed, indexed = vector_records.segments(db, collection.id), vector_records.inverted_file(db, collection.id)
    if wrong:  # they cannot be compared with anything
        yield f"{wrong} faces have no vector of {collection.dimensions} numbers"
        return
    yield from _vector_faults(gallery, collection)
    yield from _feedback_faults(gallery, collection)
    if collection.encrypted:
        _unseal_all(gallery, collection)
    for earlier, later in pairwise(sealed):
        if later.first_face <= earlier.last_face:
            yield f"{earlier.file} and {later.file} are about the same faces"
    for one in sealed:
        yield from _segment_faults(gallery, collection, one)
    if indexed is not None:
        yield from _index_faults(gallery, collection, indexed)


def _unseal_all(gallery: EmbeddedGallery, collection: Collection) -> None:
    """Read whoever is in it, with crops, which fails where something sealed is not what was written."""
    key: str | None = ""
    while key is not None:
        with gallery.snapshot_of(collection) as db:
            people = subject_records.page(db, collection.id, key, ROWS_AT_ONCE)
        key = people[-1].key if people else None
    after: int | None = 0
    while after is not None:
        with gallery.snapshot_of(collection) as db:
            faces = face_records.read_records(db, collection.id, after, 2**63 - 1, ROWS_AT_ONCE, now=0.0)
        after = faces[-1].id if faces else None


def _vector_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    after, dimensions = 0, collection.dimensions
    while True:
        with gallery.snapshot_of(collection) as db:
            rows = vector_records.read(db, collection.id, dimensions, after, AT_ONCE)
        if not len(rows.faces):
            return
        after = int(rows.faces[-1])
        if len(wrong := rows.faces[~are_unit(rows.vectors)]):
            yield f"{len(wrong)} faces have no vector of length 1, the first is {wrong[0]}"


def _feedback_faults(gallery: EmbeddedGallery, collection: Collection) -> Iterator[str]:
    after = 0
    while True:
        with gallery.snapshot_of(collection) as db:
            numbers, vectors = rejected_after(db, collection, after, AT_ONCE)
        if not len(numbers):
            return
        after = int(numbers[-1])
        if wrong := np.count_nonzero(~are_unit(vectors)):
            yield f"{wrong} vectors of feedback do not have length 1"


def _segment_faults(gallery: EmbeddedGallery, collection: Collection, one: SegmentRecord) -> list[str]:
    """The segment's bytes, and its rows against the ledger's."""
    with gallery.snapshot_of(collection) as db:
        rows = vector_records.read(db, collection.id, collection.dimensions, one.first_face - 1, through=one.last_face)
        removed, _ = erasure_records.removed_faces(db, collection.id, one.removals_through)
        cipher = cipher_of(db, collection.id)
    try:
        segment = Segment.open(gallery.files / one.file, cipher)
        segment.verify()
    except (CorruptError, TooNewError) as error:
        return [str(error)] if _is_named(gallery, one.file) else []
    if segment.dimensions != collection.dimensions:
        return [f"{one.file} has vectors of {segment.dimensions} numbers"]
    found = _membership(one.file, segment.faces, rows.faces, removed)
    both, ours, theirs = np.intersect1d(segment.faces, rows.faces, return_indices=True)
    # Vectors by their bits: they are copies.
    differs = (segment.vectors[ours].view(np.uint32) != rows.vectors[theirs].view(np.uint32)).any(axis=1)
    differs |= segment.subjects[ours] != rows.subjects[theirs]
    if differs.any():
        found.append(f"{one.file} differs from the ledger in {differs.sum()} faces, the first is {both[differs][0]}")
    return found


def _index_faults(gallery: EmbeddedGallery, collection: Collection, indexed: InvertedFileRecord) -> list[str]:
    """The inverted file's bytes, and whom it holds against the ledger; segments are held against it, too."""
    with gallery.snapshot_of(collection) as db:
        faces = face_records.ids_through(db, collection.id, indexed.last_face)
        removed, _ = erasure_records.removed_faces(db, collection.id, indexed.removals_through)
        cipher = cipher_of(db, collection.id)
    try:
        ivf = Ivf.read(gallery.files / indexed.file, cipher)
    except CorruptError as error:
        return [str(error)] if _is_named(gallery, indexed.file) else []
    return _membership(indexed.file, np.sort(ivf.ids), faces, removed)


def _is_named(gallery: EmbeddedGallery, file: str) -> bool:
    """Whether the ledger still names it: another process may have written another in its place meanwhile."""
    with gallery.ledger.snapshot() as db:
        return file in vector_records.files(db)


def _membership(file: str, faces: Ints, ledger: Ints, removed: Ints) -> list[str]:
    """Ids in a file, ascending, against those in the ledger and those `removed` since the file was written."""
    found = []
    if (np.diff(faces) <= 0).any():
        found.append(f"{file} holds faces twice, or not in the order of their ids")
    if len(others := np.setdiff1d(faces, np.concatenate((ledger, removed)))):
        found.append(f"{file} holds {len(others)} faces that the ledger does not have, the first is {others[0]}")
    if len(missing := np.setdiff1d(ledger, faces)):
        found.append(f"{file} lacks {len(missing)} faces, the first is {missing[0]}")
    return found


def _tombstone_faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """What was written down of erasures against the ledger, which may know of more but not of less."""
    try:
        told, last = gallery.tombstones.read(), 0
        if told is None:
            yield f"{gallery.tombstones.path.name} is missing"
            return
        while page := list(islice(told[1], ROWS_AT_ONCE)):
            with gallery.ledger.snapshot() as db:
                known = set(erasure_records.removals(db, last, page[-1].seq))
                here = [removal for removal in page if erasure_records.target_exists(db, removal)]
                strange = [one for one in set(page) - known if collection_records.exists(db, one.collection_id)]
            last = page[-1].seq
            if here:
                yield f"{len(here)} erasures were not made in the ledger, the first is {here[0].seq}"
            if strange or known - set(page):
                yield f"{gallery.tombstones.path.name} differs from the ledger's removals up to {last}"
    except GalleryError as error:
        yield str(error)


def _audit_faults(gallery: EmbeddedGallery) -> Iterator[str]:
    """The first line of the audit log that is not what was written; those after it may be wrong, too."""
    try:
        if fault := gallery.audit.verify():
            yield f"{gallery.audit.path.name}: entry {fault.sequence}: {fault.reason}"
    except TooNewError as error:
        yield str(error)


def _strangers(gallery: EmbeddedGallery, there: set[str]) -> Iterator[str]:
    """Files that nobody names; but another process may be about to name the youngest ones."""
    with gallery.ledger.snapshot() as db:
        named, leased = vector_records.files(db), lease_records.is_held(db, LEASE, gallery.clock(), LEASE_S)
    for name in sorted(there - named):
        with suppress(FileNotFoundError):  # it was deleted meanwhile
            age = time.time() - (gallery.files / name).stat().st_mtime
            # A time far in the future says nothing about the file's age: a clock was wrong, or somebody set it.
            if not leased or abs(age) > LEASE_S:
                yield f"{name} is named by nobody"
