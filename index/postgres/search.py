"""Search with metadata filters and feedback in PostgreSQL. Every search is of one snapshot.

A search is a sequence of attempts. An attempt finds candidates, the most similar `count` subjects or those of the
nearest `count` faces, and drops the ones that have expired, that feedback rules out or that the filter does not select.
The next attempt has more candidates, until `k` subjects remain or there are no more:

- Few subjects match the filter: all their faces are compared, found by the subjects' ids. Nothing is missed.
- The collection has approximate indexes (index/postgres/hnsw.py): these find the nearest faces, which are then ranked
  by their float32 vectors. The subject with the highest mean can be missed if none of its faces is near.
- Otherwise all faces are compared.

Comparing 100,000 x 192 in float32 takes 50 ms of a core; a shortlist of a float16 column took 42 ms and would need that
column, and a cast to float16 takes 110 ms. A whole search takes 68 ms, and 21 ms with approximate indexes
(benchmarks/gallery/postgres_scale.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from index.postgres import hnsw
from index.postgres.gallery import GalleryComponent, PostgresGallery
from index.postgres.readers import Readers
from index.postgres.store import collection_records, face_tables, subject_records
from index.postgres.store.database import Connection, Row, scalar
from index.types import Collection, Floats, Fusion, Match, SearchScope, Where
from index.validation import ROUNDING, check_fingerprint, normalised_where, unit_vectors

T = TypeVar("T")

EF_SEARCH = 200  # finds the nearest of 1,000,000 clustered vectors for .99 of the queries
# A filter that selects more subjects is applied to the faces that the approximate indexes find. Comparing the faces of
# one subject takes 5 microseconds, so that this many take less than 0.1 s; and all are compared in 0.7 per face.
COMPARED_SUBJECTS, SCAN_ADVANTAGE = 16_384, 8
MAX_SHORTLIST = 16_384  # below pgvector's hnsw.max_scan_tuples; a search that needs more faces compares all

# One search uses one core: further processes would take it from other searches. Compiling a statement takes longer than
# running it. A partition returns the nearest EF_SEARCH faces, and continues if the attempt needs more. Statistics of a
# growing table may be too old for the planner to see that its index is the faster way.
_BEGIN = f"""
SELECT subjects, is_indexed, set_config('jit', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
set_config('hnsw.ef_search', %(ef_search)s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
set_config('enable_seqscan', CASE WHEN is_indexed THEN 'off' ELSE 'on' END, true)
FROM (SELECT ({hnsw.IS_INDEXED}) AS is_indexed, sum(subjects)::bigint AS subjects FROM collection_counts
WHERE collection_id = %(collection)s) AS state
"""  # noqa: S608  constants

_ALL_FACES = "SELECT subject_id, {fused}(distance) AS distance FROM ({faces}) AS compared GROUP BY subject_id"
# OFFSET 0: else PostgreSQL reads the faces in the order of their subjects, which takes twice as long.
_SCAN = "SELECT subject_id, vector <#> %(query)s::vector AS distance FROM {table} {where} OFFSET 0"
_NEAREST = (
    "SELECT subject_id, vector <#> %(query)s::vector AS distance FROM"
    " (SELECT subject_id, vector FROM {table} ORDER BY {order} LIMIT %(count)s) AS nearest"
)
# A subquery for each subject: it reads just the partition of the subject.
_OF_SUBJECTS = """
SELECT chosen.subject_id, compared.distance FROM ({subjects}) AS chosen CROSS JOIN LATERAL
(SELECT {fused}(vector <#> %(query)s::vector) AS distance FROM {table} WHERE subject_id = chosen.subject_id) AS compared
WHERE compared.distance IS NOT NULL
"""
_MATCHES = """
WITH candidates AS MATERIALIZED ({candidates} ORDER BY distance, subject_id LIMIT %(count)s)
SELECT {columns}, -subjects.distance, nearest.token, subjects.is_rejected
FROM (
    SELECT {columns}, candidates.distance, {rejected} AS is_rejected
    FROM candidates JOIN subjects ON subjects.id = candidates.subject_id
    WHERE (expires_at IS NULL OR expires_at > %(now)s) AND {condition}
    ORDER BY candidates.distance, subjects.id LIMIT %(k)s
) AS subjects CROSS JOIN LATERAL (
    SELECT token FROM {table} WHERE subject_id = subjects.id ORDER BY vector <#> %(query)s::vector, id LIMIT 1
) AS nearest
ORDER BY subjects.distance, subjects.id
"""
_REJECTED = (
    "EXISTS (SELECT FROM rejections WHERE rejections.subject_id = candidates.subject_id"
    " AND rejections.suspended_by IS NULL"
    " AND rejections.vector <#> %(query)s::vector <= candidates.distance + %(rounding)s)"
)
_SELECTED = "SELECT DISTINCT subject_id FROM subject_values AS it WHERE {values} AND {others}"
_VALUES = "{alias}.collection_id = %(collection)s AND {alias}.lookup = ANY({lookups})"
_FURTHER = "EXISTS (SELECT FROM subject_values AS other WHERE {values} AND other.subject_id = {subject})"


class Filter:
    """The subjects of a collection that match `where`, as conditions of SQL with the parameters `values`."""

    def __init__(self, db: Connection, collection_id: int, where: Where):
        lookups = [
            [db.lookups.value(collection_id, key, value) for value in allowed]
            for key, allowed in normalised_where(where).items()
        ]
        self.values: dict[str, Any] = {f"lookups_{number}": found for number, found in enumerate(lookups)}
        self.values["collection"] = collection_id

    @property
    def subjects(self) -> sql.Composed:
        """A SELECT of the ids of all matching subjects."""
        others = self.condition("it.subject_id", first=1)
        return sql.SQL(_SELECTED).format(values=self._has_value(0, "it"), others=others)

    def condition(self, subject: str, first: int = 0) -> sql.Composed:
        """Return the condition that the subject of this column has the values of all keys but the `first` ones."""
        conditions = [
            sql.SQL(_FURTHER).format(
                values=self._has_value(number, "other"), subject=sql.Identifier(*subject.split("."))
            )
            for number in range(first, len(self.values) - 1)
        ]
        return sql.SQL(" AND ").join([*conditions, sql.SQL("true")])

    def _has_value(self, number: int, alias: str) -> sql.Composed:
        parameter = sql.Placeholder(f"lookups_{number}") + sql.SQL("::bytea[]")
        return sql.SQL(_VALUES).format(alias=sql.Identifier(alias), lookups=parameter)


@dataclass(frozen=True)
class Search:
    """A search in a snapshot `db` of the collection. `is_indexed`: it has approximate indexes.

    `few`: so few subjects match the filter that all their faces are compared.
    """

    db: Connection
    collection: Collection
    k: int
    fusion: Fusion
    where: Filter | None
    is_indexed: bool
    few: bool
    subjects: int
    now: float

    def run(self, query: Floats) -> list[Match]:
        """Return the best `k` matches of the query [D]."""
        matches: list[Match] = []
        for candidates, count in self._attempts():
            statement = self._statement(candidates)
            matches = [read_match(row) for row in self.db.execute(statement, self._values(query, count), prepare=False)]
            if len(matches) == self.k:
                break
        return matches

    def _attempts(self) -> Iterator[tuple[sql.Composed, int]]:
        """Yield SELECTs of candidates with the number of candidates."""
        count = 2 * self.k + 8
        if not self.few:
            if self.is_indexed:
                while count <= MAX_SHORTLIST:
                    yield self._nearest(hnsw.distance(self.collection.dimensions)), count
                    count *= 4
            elif self.fusion == "best":
                # Without grouping 100,000 faces by their subjects, which takes 20 ms.
                yield self._nearest(sql.SQL("vector <#> %(query)s::vector, subject_id")), count
                count *= 4
        while True:
            yield self._exhaustive(), count
            if count >= self.subjects:
                break
            count *= 4

    def _nearest(self, order: sql.Composable) -> sql.Composed:
        faces = sql.SQL(_NEAREST).format(table=self._table, order=order)
        if self.fusion == "best":
            return sql.SQL(_ALL_FACES).format(fused=sql.SQL("min"), faces=faces)
        return self._of_subjects(sql.SQL("SELECT DISTINCT subject_id FROM ({}) AS faces").format(faces))

    def _exhaustive(self) -> sql.Composed:
        if self.where and (self.few or self.is_indexed):
            return self._of_subjects(self.where.subjects)
        where = sql.SQL("WHERE subject_id IN ({})").format(self.where.subjects) if self.where else sql.SQL("")
        faces = sql.SQL(_SCAN).format(table=self._table, where=where)
        return sql.SQL(_ALL_FACES).format(fused=self._fused, faces=faces)

    def _of_subjects(self, subjects: sql.Composed) -> sql.Composed:
        return sql.SQL(_OF_SUBJECTS).format(subjects=subjects, fused=self._fused, table=self._table)

    def _statement(self, candidates: sql.Composed) -> sql.Composed:
        condition = sql.SQL("NOT {}").format(sql.SQL(_REJECTED))
        if self.where:
            condition += sql.SQL(" AND ") + self.where.condition("candidates.subject_id")
        return matches_statement(self.collection, candidates, condition)

    def _values(self, query: Floats, count: int) -> Mapping[str, Any]:
        values = self.where.values if self.where else {}
        return {**values, "query": query, "count": count, "k": self.k, "now": self.now, "rounding": ROUNDING}

    @property
    def _table(self) -> sql.Identifier:
        return face_tables.faces(self.collection.id)

    @property
    def _fused(self) -> sql.SQL:
        return sql.SQL("min" if self.fusion == "best" else "avg")


class PostgresSearches(GalleryComponent):
    """The `Searches` of a gallery in PostgreSQL. `readers`: standbys that may answer them."""

    def __init__(self, gallery: PostgresGallery, readers: Readers | None = None):
        super().__init__(gallery)
        self._readers = readers or Readers(gallery.database)

    def _read(self, collection: str, read: Callable[[Connection, Collection], T]) -> T:
        """Return `read` of a snapshot and the collection, on a reader if one has replayed all acknowledged changes."""
        for reader in self._readers.current():
            # What a reader cannot do, because it ends or replays a conflicting change, the next server can.
            with suppress(psycopg.Error), self.gallery.reading(collection, reader.snapshot) as (db, current):
                return read(db, current)
        with self.gallery.reading(collection) as (db, current):
            return read(db, current)

    def scope(self, collection: str, where: Where | None = None) -> SearchScope:
        """See `Searches`."""

        def read(db: Connection, current: Collection) -> SearchScope:
            selected = selected_counts(db, current, where) if where else None
            calibration = collection_records.calibration_in_use(db, current)
            return SearchScope(current, self.gallery.usage_of(db, current), selected, calibration)

        return self._read(collection, read)

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
        """See `Searches`."""
        now = self.database.clock()

        def read(db: Connection, current: Collection) -> list[list[Match]]:
            check_fingerprint(current, fingerprint)
            scaled = unit_vectors(queries, current.dimensions)
            subjects, is_indexed = begin(db, current)
            matching = Filter(db, current.id, where) if where else None
            limit = COMPARED_SUBJECTS if is_indexed else subjects // SCAN_ADVANTAGE
            few = matching is not None and _is_few(db, matching, limit)
            search = Search(db, current, k, fusion, matching, is_indexed, few, subjects, now)
            return [search.run(query) for query in scaled]

        return self._read(collection, read)

    def compare(
        self,
        collection: str,
        key: str,
        query: Floats,
        *,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> tuple[Match | None, bool]:
        """See `Searches`."""
        now = self.database.clock()

        def read(db: Connection, current: Collection) -> tuple[Match | None, bool]:
            check_fingerprint(current, fingerprint)
            (scaled,) = unit_vectors(query[None], current.dimensions)
            subject = subject_records.find(db, current.id, key, now)
            candidates = sql.SQL(_OF_SUBJECTS).format(
                subjects=sql.SQL("SELECT %(subject)s::bigint AS subject_id"),
                fused=sql.SQL("min" if fusion == "best" else "avg"),
                table=face_tables.faces(current.id),
            )
            statement = matches_statement(current, candidates, sql.SQL("true"))
            values = {"subject": subject.id, "query": scaled, "count": 1, "k": 1, "now": now, "rounding": ROUNDING}
            row = db.execute(statement, values, prepare=False).fetchone()
            return (read_match(row), row[-1]) if row else (None, False)

        return self._read(collection, read)


def begin(db: Connection, collection: Collection) -> tuple[int, bool]:
    """Set how PostgreSQL searches in this snapshot; return the number of subjects and whether there are indexes."""
    values = {"ef_search": str(EF_SEARCH), "collection": collection.id, "table": face_tables.name(collection.id)}
    row = db.execute(sql.SQL(_BEGIN), values).fetchone()
    assert row is not None  # noqa: S101  an aggregate has one row
    return row[0] or 0, row[1]


def matches_statement(collection: Collection, candidates: sql.Composed, condition: sql.Composable) -> sql.Composed:
    """Return the statement for the best of the `candidates` that meet the condition; see `read_match`."""
    return sql.SQL(_MATCHES).format(
        candidates=candidates,
        columns=sql.SQL(subject_records.COLUMNS),
        rejected=sql.SQL(_REJECTED),
        condition=condition,
        table=face_tables.faces(collection.id),
    )


def read_match(row: Row) -> Match:
    """Return the match of a row of `matches_statement`, whose last column is whether feedback rules it out."""
    *subject, similarity, token, _ = row
    return Match(subject_records.read(tuple(subject)), similarity, token)


def _is_few(db: Connection, matching: Filter, limit: int) -> bool:
    """Return whether at most `limit` subjects match."""
    statement = sql.SQL("SELECT count(*) FROM ({} LIMIT %(limit)s) AS selected").format(matching.subjects)
    return int(scalar(db, statement, {**matching.values, "limit": limit + 1})) <= limit


def selected_counts(db: Connection, collection: Collection, where: Where) -> tuple[int, int]:
    """Return the number of matching subjects of the collection, and the number of their faces."""
    matching = Filter(db, collection.id, where)
    statement = sql.SQL(
        "WITH selected AS MATERIALIZED ({}) SELECT (SELECT count(*) FROM selected),"
        " (SELECT count(*) FROM {} WHERE subject_id IN (SELECT subject_id FROM selected))"
    ).format(matching.subjects, face_tables.faces(collection.id))
    row = db.execute(statement, matching.values).fetchone()
    return (row[0], row[1]) if row else (0, 0)
