"""Search with a metadata filter, excluding matches that feedback rules out.

Both conditions apply before the best `k` subjects are taken, so that `k` are returned if there are that many. Few
filtered subjects are compared exhaustively; for many, the gallery's search for the nearest subjects is repeated with a
growing `k`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import apsw

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.gallery import GalleryComponent
from index.embedded.store import collection_records, subject_records, vector_records
from index.embedded.store.ledger import Row
from index.metadata import is_match
from index.types import Collection, Floats, Fusion, Match, SearchScope, Where
from index.validation import ROUNDING, check_fingerprint, normalised_where, unit_vectors

_VALUES = (
    "SELECT CASE type WHEN 'text' THEN 'text' WHEN 'true' THEN 'boolean' WHEN 'false' THEN 'boolean' ELSE 'number' END,"
    " value FROM json_each(?)"
)
_FIRST = f"FROM subject_values AS it WHERE collection_id = ? AND key = ? AND (kind, value) IN ({_VALUES})"
_FURTHER = (
    " AND EXISTS (SELECT 1 FROM subject_values AS other WHERE other.collection_id = ? AND other.key = ?"  # noqa: S608
    f" AND (other.kind, other.value) IN ({_VALUES}) AND other.subject_id = it.subject_id)"
)
_AMONG = "subject_id IN (SELECT value FROM json_each(?))"


EXHAUSTIVE_SUBJECTS = 4096  # at most this many filtered subjects are compared exhaustively at once
MAX_MATCHES = 65_536  # a filtered search that needs more matches compares exhaustively


class Searches(GalleryComponent):
    """The searches of a gallery; see `index.protocol.Searches`."""

    def scope(self, collection: str, where: Where | None = None) -> SearchScope:
        """Return the collection, its usage and the numbers that the filter selects, read in one snapshot."""
        with self.ledger.snapshot() as db:
            current = collection_records.find(db, collection)
            selected = selected_counts(db, current.id, where) if where else None
            calibration = collection_records.calibration_in_use(db, current)
            return SearchScope(current, self.gallery.usage_of(db, current), selected, calibration)

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        *,
        fusion: Fusion = "best",
        where: Where | None = None,
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """See `index.protocol.Searches`."""
        current = self.gallery.current_collection(collection)
        check_fingerprint(current, fingerprint)
        queries = unit_vectors(queries, current.dimensions)
        if where:
            with self.gallery.snapshot_of(current) as db:
                subjects = selected_subjects(db, current.id, where, EXHAUSTIVE_SUBJECTS + 1)
                if len(subjects) <= EXHAUSTIVE_SUBJECTS:
                    return self._search_exhaustively(db, current, subjects, queries, k, fusion)
        return [self._search_widening(current, query[None], k, fusion, where) for query in queries]

    def compare(
        self,
        collection: str,
        key: str,
        query: Floats,
        *,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> tuple[Match | None, bool]:
        """See `index.protocol.Searches`."""
        current = self.gallery.current_collection(collection)
        check_fingerprint(current, fingerprint)
        (query,) = unit_vectors(query[None], current.dimensions)
        with self.gallery.snapshot_of(current) as db:
            subject = subject_records.find(db, current.id, key, self.gallery.clock())
            (matches,) = self.gallery.compare_subjects(db, current, [subject.id], query[None], fusion)
            return (matches[0] if matches else None), bool(_rejected_subjects(db, current, matches, query))

    def _search_widening(
        self, collection: Collection, query: Floats, k: int, fusion: Fusion, where: Where | None
    ) -> list[Match]:
        """Search for an increasing number of matches of the query [1, D] until `k` pass the filter and the feedback."""
        count = 4 * k if where else k
        while True:
            (matches,) = self.gallery.nearest_subjects(collection.name, query, count, fusion, collection.fingerprint)
            with self.gallery.snapshot_of(collection) as db:
                kept = _drop_rejected(db, collection, matches, query[0])
                if where:
                    among = [match.subject.id for match in kept]
                    selected = set(selected_subjects(db, collection.id, where, among=among))
                    kept = [match for match in kept if match.subject.id in selected]
                if len(kept) >= k or (len(matches) < count and not where):
                    return kept[:k]
                if where and (len(matches) < count or count >= MAX_MATCHES):
                    # The inverted file has no further matches, or the next search would be too large.
                    subjects = selected_subjects(db, collection.id, where)
                    return self._search_exhaustively(db, collection, subjects, query, k, fusion)[0]
            count *= 4

    def _search_exhaustively(
        self,
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
            chosen = subjects[first : first + EXHAUSTIVE_SUBJECTS]
            batch = self.gallery.compare_subjects(db, collection, chosen, queries, fusion)
            for number, (query, matches) in enumerate(zip(queries, batch, strict=True)):
                candidates = best[number] + _drop_rejected(db, collection, matches, query)
                best[number] = sorted(candidates, key=lambda match: (-match.similarity, match.subject.id))[:k]
        return best


def _rejected_subjects(
    db: apsw.Connection, collection: Collection, matches: Iterable[Match], query: Floats
) -> set[int]:
    """Return the ids of the matched subjects that feedback rules out for the face [D]."""
    similarities = {match.subject.id: match.similarity for match in matches}
    rows: list[Row] = db.execute(
        "SELECT -id, subject_id, data FROM rejections"
        " WHERE suspended_by IS NULL AND subject_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(similarities)),),
    ).fetchall()
    if not rows:
        return set()
    rejected = vector_records.decoded(db, collection, rows)
    pairs = zip(rejected.subjects.tolist(), (rejected.vectors @ query).tolist(), strict=True)
    return {subject for subject, similarity in pairs if similarity >= similarities[subject] - ROUNDING}


def _drop_rejected(db: apsw.Connection, collection: Collection, matches: Sequence[Match], query: Floats) -> list[Match]:
    """Return the matches that feedback does not rule out for the face [D]."""
    rejected = _rejected_subjects(db, collection, matches, query)
    return [match for match in matches if match.subject.id not in rejected]


def selected_counts(db: apsw.Connection, collection_id: int, where: Where) -> tuple[int, int]:
    """Return the number of matching subjects of the collection, and the number of their faces."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        subject_ids = _decrypted_matches(db, cipher, collection_id, where)
        faces = db.execute(
            f"SELECT count(*) FROM faces WHERE {_AMONG}",  # noqa: S608  of constants
            (json.dumps(subject_ids),),
        ).get
        return len(subject_ids), faces
    condition, values = _condition(collection_id, where)
    chosen = f"SELECT DISTINCT subject_id {condition}"
    subjects, faces = db.execute(
        f"WITH chosen AS MATERIALIZED ({chosen}) SELECT (SELECT count(*) FROM chosen),"  # noqa: S608
        " (SELECT count(*) FROM chosen JOIN faces USING (subject_id))",
        values,
    ).get
    return subjects, faces


def selected_subjects(
    db: apsw.Connection, collection_id: int, where: Where, limit: int = -1, among: Sequence[int] | None = None
) -> list[int]:
    """Return the ids of at most `limit` matching subjects (-1: all) of those in `among` (None: of all), ascending."""
    if (cipher := cipher_of(db, collection_id)).encrypted:
        return _decrypted_matches(db, cipher, collection_id, where, among)[: None if limit < 0 else limit]
    condition, values = _condition(collection_id, where)
    if among is not None:
        condition, values = f"{condition} AND {_AMONG}", (*values, json.dumps(among))
    rows = db.execute("SELECT DISTINCT subject_id " + condition + " LIMIT ?", (*values, limit))
    return sorted(row[0] for row in rows)


def _decrypted_matches(
    db: apsw.Connection, cipher: Cipher, collection_id: int, where: Where, ids: Iterable[int] | None = None
) -> list[int]:
    """Return the matching ids of an encrypted collection, ascending. Decrypts all metadata, or that of `ids`."""
    subjects, where = subject_records.metadata(db, cipher, collection_id, ids), normalised_where(where)
    return [number for number, metadata in subjects if is_match(metadata, where)]


def _condition(collection_id: int, where: Where) -> tuple[str, Row]:
    """Return the FROM and WHERE clauses of a filter with at least one key, and their parameters."""
    where = normalised_where(where)
    values = [value for key, allowed in where.items() for value in (collection_id, key, json.dumps(list(allowed)))]
    return _FIRST + _FURTHER * (len(where) - 1), tuple(values)
