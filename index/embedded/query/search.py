"""Search with a metadata filter, excluding matches that feedback rules out.

Both conditions apply before the best `k` subjects are taken, so that `k` are returned if there are that many. Few
filtered subjects are compared exhaustively; for many, the gallery's own search is repeated with a growing `k`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import apsw
import numpy as np

from index.embedded.encryption.data_keys import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query import metadata_filter
from index.embedded.query.feedback import drop_rejected, rejected_subjects
from index.embedded.query.metadata_filter import Where
from index.embedded.store import collection_records, subject_records
from index.embedded.store.ledger import Row
from index.types import Collection, CollectionUsage, Floats, Fusion, Match
from index.validation import unit_vectors

EXHAUSTIVE_SUBJECTS = 4096  # at most this many filtered subjects are compared exhaustively at once
MAX_MATCHES = 65_536  # a filtered search that would ask for more compares exhaustively


@dataclass(frozen=True)
class SearchScope:
    """A collection, its usage, and the numbers of subjects and faces that the filter selects (None: no filter)."""

    collection: Collection
    usage: CollectionUsage
    selected: tuple[int, int] | None


def search_scope(gallery: EmbeddedGallery, collection: str, where: Where | None = None) -> SearchScope:
    """Return what a search of the collection compares a face with, read in one snapshot.

    Raises:
        NotFoundError: no such collection. LockedError: the filter needs a key that is missing.
    """
    with gallery.ledger.snapshot() as db:
        current = collection_records.find(db, collection)
        selected = metadata_filter.counts(db, current.id, where) if where else None
        return SearchScope(current, gallery.usage_of(db, current), selected)


def search(
    gallery: EmbeddedGallery,
    collection: str,
    queries: Floats,
    k: int = 5,
    *,
    fusion: Fusion = "best",
    where: Where | None = None,
    fingerprint: str | None = None,
) -> list[list[Match]]:
    """Return for each query [N, D] the `k` most similar subjects that match the filter, most similar first.

    Raises:
        NotFoundError: no such collection. InvalidError: see `Gallery.search`. ConflictError: the queries are of another
        pipeline than the collection, which may have been re-embedded meanwhile.
    """
    current = gallery.collection(collection)
    collection_records.check_fingerprint(current, fingerprint)
    queries = unit_vectors(queries, current.dimensions)
    if where:
        with gallery.snapshot_of(current) as db:
            subjects = metadata_filter.subjects(db, current.id, where, EXHAUSTIVE_SUBJECTS + 1)
            if len(subjects) <= EXHAUSTIVE_SUBJECTS:
                return _search_exhaustively(gallery, db, current, subjects, queries, k, fusion)
    return [_search_widening(gallery, current, query[None], k, fusion, where) for query in queries]


def compare(
    gallery: EmbeddedGallery,
    collection: str,
    key: str,
    query: Floats,
    *,
    fusion: Fusion = "best",
    fingerprint: str | None = None,
) -> tuple[Match | None, bool]:
    """Compare a face [D] with one subject.

    Return the match, None where the subject has no face, and whether feedback rules it out.

    Raises:
        NotFoundError: no such collection or subject, or it has expired. InvalidError, ConflictError: see `search`.
    """
    current = gallery.collection(collection)
    collection_records.check_fingerprint(current, fingerprint)
    (query,) = unit_vectors(query[None], current.dimensions)
    with gallery.snapshot_of(current) as db:
        subject = subject_records.find(db, current.id, key, gallery.clock())
        (matches,) = _matches(gallery, db, current, [subject.id], query[None], fusion)
        return (matches[0] if matches else None), bool(rejected_subjects(db, matches, query))


def _search_widening(
    gallery: EmbeddedGallery, collection: Collection, query: Floats, k: int, fusion: Fusion, where: Where | None
) -> list[Match]:
    """Search for more and more matches of the query [1, D] until `k` of them pass the filter and the feedback."""
    count = 4 * k if where else k
    while True:
        (matches,) = gallery.search(collection.name, query, count, fusion, collection.fingerprint)
        with gallery.snapshot_of(collection) as db:
            kept = drop_rejected(db, matches, query[0])
            if where:
                selected = metadata_filter.among(db, collection.id, where, [match.subject.id for match in kept])
                kept = [match for match in kept if match.subject.id in selected]
            if len(kept) >= k or (len(matches) < count and not where):
                return kept[:k]
            if where and (len(matches) < count or count >= MAX_MATCHES):
                # The inverted file finds no more, or the next search would be too large.
                subjects = metadata_filter.subjects(db, collection.id, where)
                return _search_exhaustively(gallery, db, collection, subjects, query, k, fusion)[0]
        count *= 4


def _search_exhaustively(
    gallery: EmbeddedGallery,
    db: apsw.Connection,
    collection: Collection,
    subjects: Sequence[int],
    queries: Floats,
    k: int,
    fusion: Fusion,
) -> list[list[Match]]:
    """Return the best `k` of these subjects for each query [N, D]."""
    best: list[list[Match]] = [[] for _ in queries]
    for first in range(0, len(subjects), EXHAUSTIVE_SUBJECTS):
        batch = _matches(gallery, db, collection, subjects[first : first + EXHAUSTIVE_SUBJECTS], queries, fusion)
        for number, (query, matches) in enumerate(zip(queries, batch, strict=True)):
            candidates = best[number] + drop_rejected(db, matches, query)
            best[number] = sorted(candidates, key=lambda match: (-match.similarity, match.subject.id))[:k]
    return best


def _matches(
    gallery: EmbeddedGallery,
    db: apsw.Connection,
    collection: Collection,
    subject_ids: Sequence[int],
    queries: Floats,
    fusion: Fusion,
) -> list[list[Match]]:
    """Return for each query [N, D] a match of each subject that has a face and has not expired."""
    now = gallery.clock()
    subjects = {
        number: subject
        for number, subject in subject_records.by_id(db, subject_ids).items()
        if subject.expires_at is None or subject.expires_at > now
    }
    rows: list[Row] = db.execute(
        "SELECT subject_id, token, data, faces.id FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE subject_id IN (SELECT value FROM json_each(?)) ORDER BY subject_id, faces.id",
        (json.dumps(list(subjects)),),
    ).fetchall()
    if not rows:
        return [[] for _ in queries]
    cipher = cipher_of(db, collection.id)
    data = b"".join(cipher.decrypt(row[2], "vector", row[3]) for row in rows)
    vectors = np.frombuffer(data, "<f4").reshape(len(rows), collection.dimensions)
    owners = np.array([row[0] for row in rows], np.int64)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))  # the first row of each subject
    ends = np.append(starts[1:], len(rows))
    results = []
    for similarities in queries.astype(np.float32) @ vectors.T:
        matches = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            nearest = start + int(similarities[start:end].argmax())
            value = similarities[nearest] if fusion == "best" else similarities[start:end].mean()
            matches.append(Match(subjects[rows[start][0]], float(value), rows[nearest][1]))
        results.append(matches)
    return results
