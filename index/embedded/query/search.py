"""A search among chosen subjects, which names nobody of whom it is known that it is somebody else.

Both are seen to before the likest are taken, so that there are as many as were asked for. Few subjects are compared one
by one; of many, the gallery's own search is asked for more and more until enough are left.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import apsw
import numpy as np

from index.embedded.encryption.data_keys import cipher_of
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query import metadata_filter
from index.embedded.query.feedback import contradicted, without
from index.embedded.query.metadata_filter import Where
from index.embedded.store import collection_records, subject_records
from index.embedded.store.ledger import Row
from index.types import Collection, Floats, Fusion, Match
from index.validation import unit_vectors

# So many subjects are compared one by one; so many matches are asked for before all subjects are.
ONE_BY_ONE, MOST_WANTED = 4096, 65_536


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
    """For each query [N, D] the `k` likest subjects of those chosen, likest first.

    Raises:
        NotFoundError: no such collection. InvalidError: see `Gallery.search`. ConflictError: the queries are not of the
        collection's pipeline, or not any more.
    """
    found = gallery.collection(collection)
    collection_records.check_fingerprint(found, fingerprint)
    queries = unit_vectors(queries, found.dimensions)
    if where:
        with gallery.snapshot_of(found) as db:
            few = metadata_filter.subjects(db, found.id, where, ONE_BY_ONE + 1)
            if len(few) <= ONE_BY_ONE:
                return _compared(gallery, db, found, few, queries, k, fusion)
    return [_widened(gallery, found, query[None], k, fusion, where) for query in queries]


def compare(
    gallery: EmbeddedGallery,
    collection: str,
    key: str,
    query: Floats,
    *,
    fusion: Fusion = "best",
    fingerprint: str | None = None,
) -> tuple[Match | None, bool]:
    """How like the subject is to a face [D], None where it has none, and whether it is said to be somebody else.

    Raises:
        NotFoundError: also where the subject's time is over. InvalidError, ConflictError: see `search`.
    """
    found = gallery.collection(collection)
    collection_records.check_fingerprint(found, fingerprint)
    (query,) = unit_vectors(query[None], found.dimensions)
    with gallery.snapshot_of(found) as db:
        subject = subject_records.find(db, found.id, key, gallery.clock())
        (matches,) = _matches(gallery, db, found, [subject.id], query[None], fusion)
        return (matches[0] if matches else None), bool(contradicted(db, matches, query))


def _widened(
    gallery: EmbeddedGallery, found: Collection, query: Floats, k: int, fusion: Fusion, where: Where | None
) -> list[Match]:
    wanted = 4 * k if where else k
    while True:
        (matches,) = gallery.search(found.name, query, wanted, fusion, found.fingerprint)
        with gallery.snapshot_of(found) as db:
            kept = without(db, matches, query[0])
            if where:
                chosen = metadata_filter.among(db, found.id, where, [match.subject.id for match in kept])
                kept = [match for match in kept if match.subject.id in chosen]
            if len(kept) >= k or (len(matches) < wanted and not where):
                return kept[:k]
            if where and (len(matches) < wanted or wanted >= MOST_WANTED):
                # All that the inverted file finds, or too much of it.
                every = metadata_filter.subjects(db, found.id, where)
                return _compared(gallery, db, found, every, query, k, fusion)[0]
        wanted *= 4


def _compared(
    gallery: EmbeddedGallery,
    db: apsw.Connection,
    found: Collection,
    ids: Sequence[int],
    queries: Floats,
    k: int,
    fusion: Fusion,
) -> list[list[Match]]:
    best: list[list[Match]] = [[] for _ in queries]
    for first in range(0, len(ids), ONE_BY_ONE):
        matches = _matches(gallery, db, found, ids[first : first + ONE_BY_ONE], queries, fusion)
        for place, (query, more) in enumerate(zip(queries, matches, strict=True)):
            both = best[place] + without(db, more, query)
            best[place] = sorted(both, key=lambda match: (-match.similarity, match.subject.id))[:k]
    return best


def _matches(
    gallery: EmbeddedGallery,
    db: apsw.Connection,
    found: Collection,
    ids: Sequence[int],
    queries: Floats,
    fusion: Fusion,
) -> list[list[Match]]:
    """Of each query, one match for each of these subjects that has a face and time left."""
    now = gallery.clock()
    there = {
        number: subject
        for number, subject in subject_records.by_id(db, ids).items()
        if subject.expires_at is None or subject.expires_at > now
    }
    rows: list[Row] = db.execute(
        "SELECT subject_id, token, data, faces.id FROM faces JOIN vectors ON face_id = faces.id"
        " WHERE subject_id IN (SELECT value FROM json_each(?)) ORDER BY subject_id, faces.id",
        (json.dumps(list(there)),),
    ).fetchall()
    if not rows:
        return [[] for _ in queries]
    cipher = cipher_of(db, found.id)
    data = b"".join(cipher.decrypt(row[2], "vector", row[3]) for row in rows)
    vectors = np.frombuffer(data, "<f4").reshape(len(rows), found.dimensions)
    owners = np.array([row[0] for row in rows], np.int64)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    ends = np.append(starts[1:], len(rows))
    answers = []
    for similarities in queries.astype(np.float32) @ vectors.T:
        matches = []
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            nearest = start + int(similarities[start:end].argmax())
            value = similarities[nearest] if fusion == "best" else similarities[start:end].mean()
            matches.append(Match(there[rows[start][0]], float(value), rows[nearest][1]))
        answers.append(matches)
    return answers
