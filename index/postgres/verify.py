"""Check a gallery in a database for damage that PostgreSQL itself does not look for.

The check changes nothing, except that it flushes the audit log. Files and indexes are PostgreSQL's: check them with
`pg_amcheck`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from index.errors import CorruptError
from index.postgres.gallery import PostgresGallery
from index.postgres.transfer.transfer import PostgresTransfer
from index.records import FaceRecord, RejectionRecord
from index.types import Collection
from index.validation import EARLIEST, are_unit


def find_faults(gallery: PostgresGallery, transfer: PostgresTransfer) -> Iterator[str]:
    """Yield a message for each fault as soon as it is found: rows that cannot be read, wrong counts, the audit log."""
    # One snapshot for each collection, so that erasures can be finished in between.
    for collection in gallery.collections(limit=-1):
        yield from (f"{collection.name}: {fault}" for fault in _collection_faults(transfer, collection))
    if fault := gallery.audit.verify():
        yield f"audit log: entry {fault.sequence}: {fault.reason}"


def _collection_faults(transfer: PostgresTransfer, collection: Collection) -> Iterator[str]:
    """Read all rows of the collection; an unreadable one ends its check."""
    with transfer.snapshot(EARLIEST) as snapshot:  # with expired subjects, which are counted
        if collection not in snapshot.collections():
            return  # dropped or re-embedded meanwhile
        expected = snapshot.counts(collection)
        try:
            subjects = sum(map(len, snapshot.subjects(collection)))
            faces = 0
            for page in snapshot.faces(collection):
                faces += len(page)
                yield from _vector_faults(page, "faces")
            for rejected in snapshot.rejections(collection):
                yield from _vector_faults(rejected, "rejected faces")
        except CorruptError as error:
            yield f"the rest cannot be read: {error}"
            return
    if (subjects, faces) != expected:
        yield f"there are {subjects} subjects and {faces} faces, and the counts are {expected[0]} and {expected[1]}"


def _vector_faults(page: Sequence[FaceRecord | RejectionRecord], kind: str) -> Iterator[str]:
    vectors = np.frombuffer(b"".join(face.vector for face in page), "<f4").reshape(len(page), -1)
    wrong = np.flatnonzero(~are_unit(vectors))
    if len(wrong):
        yield f"{len(wrong)} {kind} have no vector of length 1, the first is {page[wrong[0]].id}"
