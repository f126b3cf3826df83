"""Re-embedding in PostgreSQL: replace a collection's vectors by those of another pipeline, from the stored crops.

The faces that have a new vector are copied, with it, into a second table, while searches use the first. Erasing a face
erases it in both tables, in one transaction. When every face has a new vector, one transaction drops the first table,
whose files PostgreSQL deletes with the old vectors, and renames the second. That takes the same time for any number of
faces; searches wait meanwhile, and then see the new pipeline.

A copy locks the face that it copies: an erasure that runs at the same time waits, and then finds the copy, too.

Rejected faces (index/postgres/feedback.py) with a crop have the new vector beside the old one. Those without a crop are
discarded by the switch; the progress reports their number from the start.

The process that holds a collection's lease, by the database's time, works on it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from psycopg import sql

from index.audit_chain import AuditEvent
from index.errors import ConflictError, NotFoundError
from index.postgres import hnsw
from index.postgres.gallery import GalleryComponent, PostgresGallery
from index.postgres.store import audit_records, collection_records, erasure_records, face_tables, lease_records
from index.postgres.store.database import MAX_INT, Connection, Row, committing, scalar
from index.postgres.store.sealing import unseal
from index.protocol import LEASE_S
from index.types import Collection, Floats, PendingCrop, Reembedding, ReembeddingProgress, ReembeddingState
from index.validation import unit_vectors

# Searches that start behind a switch wait with it for those that run, or for the build of an index. After this time
# the switch is given up, so that they go on; the worker tries again.
LOCK_TIMEOUT = "2s"

_REEMBEDDING = (
    "SELECT name, collection_id, token, reembeddings.embedder, reembeddings.fingerprint, reembeddings.dimensions,"
    " actor, requested_at, problem FROM reembeddings JOIN collections ON collections.id = collection_id"
)
# Crops without a new vector: of rejected faces, whose ids are negative, and of enrolled ones.
_PENDING_REJECTIONS = """
SELECT -id, seal, crop FROM rejections
WHERE collection_id = %(collection)s AND id < -%(after)s AND seal IS NOT NULL AND reembedded IS NULL
ORDER BY id DESC LIMIT %(limit)s
"""
_PENDING_FACES = """
SELECT id, seal, crop FROM {faces} AS old WHERE id > %(after)s AND seal IS NOT NULL
AND NOT EXISTS (SELECT FROM {reembedded} AS new WHERE new.subject_id = old.subject_id AND new.id = old.id)
ORDER BY id LIMIT %(limit)s
"""
_STAGE = """
INSERT INTO {reembedded} (id, subject_id, token, details, created_at, seal, crop, vector)
SELECT id, subject_id, token, details, created_at, seal, crop, %s::vector FROM {faces} WHERE id = %s FOR UPDATE
ON CONFLICT DO NOTHING
"""
# Of one snapshot, so that an erasure at the same time changes all numbers or none.
_COUNTS = """
SELECT (SELECT coalesce(sum(faces), 0) FROM collection_counts WHERE collection_id = %(collection)s)::bigint,
(SELECT count(*) FROM {reembedded}), count(*), count(seal), count(reembedded)
FROM rejections WHERE collection_id = %(collection)s
"""


class PostgresReembeddings(GalleryComponent):
    """The `Reembeddings` of a gallery in PostgreSQL."""

    @committing
    def begin(
        self,
        db: Connection,
        collection: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        actor: str | None = None,
    ) -> ReembeddingProgress:
        """See `Reembeddings`."""
        target = collection_records.find(db, collection, "update")
        now = self.database.now(db)
        if target.fingerprint == fingerprint:
            raise ConflictError(f"{collection!r} has vectors of {fingerprint} already")
        inserted = db.execute(
            "INSERT INTO reembeddings VALUES (%s, %s, %s, %s, %s, %s, %s, NULL) ON CONFLICT DO NOTHING",
            (target.id, secrets.token_hex(16), embedder, fingerprint, dimensions, actor, now),
        ).rowcount
        if not inserted:
            raise ConflictError(f"{collection!r} is being re-embedded already; cancel that first")
        _check_crops(db, target, embedder)
        face_tables.create_reembedded(db, target.id, dimensions)
        reembedding = find(db, target)
        audit_records.record(db, AuditEvent("begin_reembed", now, actor, target.id, of=reembedding.token))
        return _progress(db, reembedding, now)

    def progress(self, collection: str) -> ReembeddingProgress:
        """See `Reembeddings`."""
        with self.gallery.reading(collection) as (db, target):
            return _progress(db, find(db, target), self.database.now(db))

    @committing
    def cancel(self, db: Connection, collection: str, *, actor: str | None = None) -> ReembeddingProgress:
        """See `Reembeddings`."""
        target = collection_records.find(db, collection, "update")
        reembedding, now = find(db, target), self.database.now(db)
        progress = _progress(db, reembedding, now)
        face_tables.drop_reembedded(db, target.id)
        db.execute("UPDATE rejections SET reembedded = NULL WHERE collection_id = %s", (target.id,))
        _end(db, reembedding)
        audit_records.record(db, AuditEvent("cancel_reembed", now, actor, target.id, of=reembedding.token))
        return progress


class PostgresReembeddingWorker(GalleryComponent):
    """A `ReembeddingWorker` of a gallery in PostgreSQL. `exact_below`: see `hnsw.update`."""

    def __init__(self, gallery: PostgresGallery, *, exact_below: int = hnsw.EXACT_BELOW):
        super().__init__(gallery)
        self._exact_below = exact_below

    def waiting(self) -> list[Reembedding]:
        """See `ReembeddingWorker`."""
        with self.database.snapshot() as db:
            now = self.database.now(db)
            rows = db.execute(f"{_REEMBEDDING} ORDER BY requested_at, collection_id")
            reembeddings = [Reembedding(*row) for row in rows]
            return [item for item in reembeddings if not lease_records.is_held(db, _lease(item), now)]

    @committing
    def claim(self, db: Connection, reembedding: Reembedding) -> bool:
        """See `ReembeddingWorker`."""
        exists = self._lock(db, reembedding)
        return exists and lease_records.take(db, _lease(reembedding), self.holder, self.database.now(db), LEASE_S)

    @committing
    def keep(self, db: Connection, reembedding: Reembedding) -> bool:
        """See `ReembeddingWorker`."""
        return self._renew(db, reembedding)

    @committing
    def release(self, db: Connection, reembedding: Reembedding) -> None:
        """See `ReembeddingWorker`."""
        lease_records.release(db, _lease(reembedding), self.holder)

    def pending(self, reembedding: Reembedding, after: int, limit: int) -> list[PendingCrop]:
        """See `ReembeddingWorker`; empty where the re-embedding has ended."""
        try:
            with self.gallery.reading(reembedding.collection) as (db, target):
                if find(db, target).token != reembedding.token:
                    return []
                return _pending(db, target.id, after, limit)
        except NotFoundError:
            return []

    @committing
    def stage(self, db: Connection, reembedding: Reembedding, vectors: Mapping[int, Floats]) -> bool:
        """See `ReembeddingWorker`."""
        scaled = {
            number: unit_vectors(np.asarray(vector)[None], reembedding.dimensions)[0]
            for number, vector in vectors.items()
        }
        if not self._lock(db, reembedding) or not self._renew(db, reembedding):
            return False
        # In the order in which erasures lock the same faces.
        faces = [(vector, number) for number, vector in sorted(scaled.items()) if number > 0]
        db.cursor().executemany(_of_tables(_STAGE, reembedding.collection_id), faces)
        db.cursor().executemany(
            "UPDATE rejections SET reembedded = %s WHERE id = %s AND collection_id = %s",
            [(vector, -number, reembedding.collection_id) for number, vector in sorted(scaled.items()) if number < 0],
        )
        db.execute("UPDATE reembeddings SET problem = NULL WHERE token = %s", (reembedding.token,))
        return True

    def prepare(self, reembedding: Reembedding) -> None:
        """See `ReembeddingWorker`."""
        hnsw.build_reembedded(self.database, reembedding, self._exact_below)

    @committing
    def switch(self, db: Connection, reembedding: Reembedding) -> int | None:
        """See `ReembeddingWorker`.

        Raises:
            UnavailableError: searches or the build of an index took too long; try again.
        """
        # No enrolment runs from here on: each shares a lock of the collection's row.
        row = db.execute("SELECT 1 FROM collections WHERE id = %s FOR UPDATE", (reembedding.collection_id,)).fetchone()
        if row is None or not self._renew(db, reembedding):
            return None
        faces, done, _, crops, reembedded = _counts(db, reembedding.collection_id)
        missing = int(faces - done + crops - reembedded)
        if not missing:
            _switch(db, reembedding, self.database.now(db))
        return missing

    @committing
    def block(self, db: Connection, reembedding: Reembedding, problem: str) -> None:
        """See `ReembeddingWorker`."""
        if self._renew(db, reembedding):
            db.execute("UPDATE reembeddings SET problem = %s WHERE token = %s", (problem, reembedding.token))

    def _lock(self, db: Connection, reembedding: Reembedding) -> bool:
        """Return whether the re-embedding exists; if so, it does not end before the transaction does."""
        statement = "SELECT 1 FROM collections JOIN reembeddings ON collection_id = collections.id WHERE token = %s"
        return db.execute(f"{statement} FOR SHARE OF collections", (reembedding.token,)).fetchone() is not None

    def _renew(self, db: Connection, reembedding: Reembedding) -> bool:
        return lease_records.renew(db, _lease(reembedding), self.holder, self.database.now(db), LEASE_S)


def find(db: Connection, collection: Collection) -> Reembedding:
    """Return the collection's re-embedding.

    Raises:
        NotFoundError: the collection is not being re-embedded.
    """
    row = db.execute(f"{_REEMBEDDING} WHERE collection_id = %s", (collection.id,)).fetchone()
    if row is None:
        raise NotFoundError(f"{collection.name!r} is not being re-embedded")
    return Reembedding(*row)


def _lease(reembedding: Reembedding) -> str:
    return f"reembed:{reembedding.token}"


def _of_tables(statement: str, collection_id: int) -> sql.Composed:
    tables = {"faces": face_tables.faces(collection_id), "reembedded": face_tables.reembedded(collection_id)}
    return sql.SQL(statement).format(**tables)


def _pending(db: Connection, collection_id: int, after: int, limit: int) -> list[PendingCrop]:
    # The least id is -MAX_INT: the number of `FIRST` has no opposite in 64 bits.
    values = {"collection": collection_id, "after": max(after, -MAX_INT)}
    rows = db.execute(_PENDING_REJECTIONS, {**values, "limit": limit}).fetchall()
    rows += db.execute(_of_tables(_PENDING_FACES, collection_id), {**values, "limit": limit - len(rows)}).fetchall()
    return [PendingCrop(number, unseal(seal, crop)) for number, seal, crop in rows]


def _check_crops(db: Connection, collection: Collection, embedder: str) -> None:
    """Raise ConflictError if a face has no crop."""
    statement = sql.SQL("SELECT count(*) FROM {} WHERE seal IS NULL").format(face_tables.faces(collection.id))
    if missing := scalar(db, statement):
        faces = collection_records.counts(db, collection.id)[1]
        raise ConflictError(
            f"{missing} of {faces} faces of {collection.name!r} have no crop to re-embed: enrol their images again, in"
            f" a new collection of {embedder}, or erase them first"
        )


def _counts(db: Connection, collection_id: int) -> Row:
    """Return the numbers of faces, faces with a new vector, rejected faces, and rejected faces with crop or vector."""
    row = db.execute(_of_tables(_COUNTS, collection_id), {"collection": collection_id}).fetchone()
    assert row is not None  # noqa: S101  an aggregate has one row
    return row


def _progress(db: Connection, reembedding: Reembedding, now: float) -> ReembeddingProgress:
    faces, done, feedback, crops, _ = _counts(db, reembedding.collection_id)
    running = lease_records.is_held(db, _lease(reembedding), now)
    state: ReembeddingState = "blocked" if reembedding.problem else "running" if running else "queued"
    return ReembeddingProgress(reembedding, state, faces, done, feedback, feedback - crops)


def _switch(db: Connection, reembedding: Reembedding, now: float) -> None:
    number = reembedding.collection_id
    db.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
    face_tables.switch(db, number)
    rows = db.execute("SELECT id FROM rejections WHERE collection_id = %s AND seal IS NULL", (number,)).fetchall()
    discarded = [row[0] for row in rows]
    erasure_records.remove_rejections(db, discarded)
    db.execute("UPDATE rejections SET vector = reembedded, reembedded = NULL WHERE collection_id = %s", (number,))
    db.execute(
        "UPDATE collections SET embedder = %s, fingerprint = %s, dimensions = %s, generation = generation + 1"
        " WHERE id = %s",
        (reembedding.embedder, reembedding.fingerprint, reembedding.dimensions, number),
    )
    # Without their vectors, nobody can be given the pseudonyms of sightings any more.
    db.execute("DELETE FROM sighting_faces WHERE collection_id = %s", (number,))
    erasure_records.insert_receipt(db, number, 0, len(discarded), now, reembedding.token)
    faces = [-rejection for rejection in discarded]
    event = AuditEvent("reembed", now, reembedding.actor, number, faces=faces, id=reembedding.token)
    audit_records.record(db, event)
    _end(db, reembedding)


def _end(db: Connection, reembedding: Reembedding) -> None:
    """Delete the re-embedding and its lease, so that its worker stops."""
    db.execute("DELETE FROM leases WHERE name = %s", (_lease(reembedding),))
    db.execute("DELETE FROM reembeddings WHERE token = %s", (reembedding.token,))
