"""Re-embedding: replace a collection's vectors by those of another pipeline, computed from the stored crops.

New vectors are staged in the ledger beside the old ones, which searches use meanwhile; erasing a face deletes both in
one transaction. When every face has a new vector, one transaction replaces the old vectors and sets the collection's
new embedder. The next rounds of maintenance rebuild segments and inverted files. If the process dies, another
continues, and a search never compares vectors of two pipelines.

Rejected faces (index/embedded/query/feedback.py) with a crop are re-embedded, too. Those without a crop are discarded
by the switch; the progress reports their number from the start.

The process that holds a collection's lease works on it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.encryption import cipher_of, is_locked
from index.embedded.gallery import GalleryComponent
from index.embedded.store import collection_records, lease_records, vector_records
from index.embedded.store.changes import committing
from index.embedded.store.ledger import Row
from index.errors import ConflictError, NotFoundError
from index.protocol import LEASE_S
from index.types import Collection, Floats, PendingCrop, Reembedding, ReembeddingProgress, ReembeddingState


class Reembeddings(GalleryComponent):
    """Request, watch and cancel re-embeddings of a gallery's collections."""

    @committing
    def begin(
        self,
        db: apsw.Connection,
        collection: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        actor: str | None = None,
    ) -> ReembeddingProgress:
        """Request a re-embedding with this pipeline; `actor` as in `Gallery`.

        Raises:
            NotFoundError: no such collection. ConflictError: it has vectors of that pipeline already, or is being
            re-embedded, or a face has no crop. InvalidError: the actor may be a name.
        """
        target, now = collection_records.find(db, collection), self.gallery.clock()
        if target.fingerprint == fingerprint:
            raise ConflictError(f"{collection!r} has vectors of {fingerprint} already")
        db.execute(
            "INSERT INTO reembeddings VALUES (?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO NOTHING",
            (target.id, secrets.token_hex(16), embedder, fingerprint, dimensions, actor, now),
        )
        if not db.changes():
            raise ConflictError(f"{collection!r} is being re-embedded already; cancel that first")
        _check_crops(db, target, embedder)
        reembedding = get_reembedding(db, target)
        audit.record(db, AuditEvent("begin_reembed", now, actor, target.id, of=reembedding.token))
        return _progress(db, reembedding, now)

    def progress(self, collection: str) -> ReembeddingProgress:
        """Return the progress of the collection's re-embedding.

        Raises:
            NotFoundError: no such collection, or it is not being re-embedded.
        """
        with self.ledger.snapshot() as db:
            reembedding = get_reembedding(db, collection_records.find(db, collection))
            return _progress(db, reembedding, self.gallery.clock())

    @committing
    def cancel(self, db: apsw.Connection, collection: str, *, actor: str | None = None) -> ReembeddingProgress:
        """Cancel the re-embedding and return its last progress. The collection keeps its vectors.

        Raises:
            NotFoundError: see `progress`.
        """
        reembedding, now = get_reembedding(db, collection_records.find(db, collection)), self.gallery.clock()
        progress = _progress(db, reembedding, now)
        db.execute(_DELETE, (reembedding.token,))
        event = AuditEvent("cancel_reembed", now, actor, reembedding.collection_id, of=reembedding.token)
        audit.record(db, event)
        return progress


class ReembeddingWorker(GalleryComponent):
    """Works on one re-embedding at a time. No two workers of any process work on the same collection."""

    def waiting(self) -> list[Reembedding]:
        """Return the re-embeddings without a worker whose keys are available, oldest first."""
        now = self.gallery.clock()
        with self.ledger.snapshot() as db:
            rows = db.execute(f"{_REEMBEDDING} ORDER BY requested_at, collection_id")
            return [
                reembedding
                for reembedding in [Reembedding(*row) for row in rows]
                if not lease_records.is_held(db, _lease(reembedding), now, LEASE_S)
                and not is_locked(db, reembedding.collection_id)
            ]

    @committing
    def claim(self, db: apsw.Connection, reembedding: Reembedding) -> bool:
        """Take the lease; False where another worker has it, or the re-embedding has ended."""
        exists = db.execute("SELECT 1 FROM reembeddings WHERE token = ?", (reembedding.token,)).get is not None
        return exists and lease_records.take(db, _lease(reembedding), self.holder, self.gallery.clock(), LEASE_S)

    @committing
    def keep(self, db: apsw.Connection, reembedding: Reembedding) -> bool:
        """Renew the lease; False where another worker has it, or the re-embedding has ended."""
        return self._renew(db, reembedding)

    @committing
    def release(self, db: apsw.Connection, reembedding: Reembedding) -> None:
        """Release the lease."""
        lease_records.release(db, _lease(reembedding), self.holder)

    def pending(self, reembedding: Reembedding, after: int, limit: int) -> list[PendingCrop]:
        """Return at most `limit` crops without a new vector, whose ids are greater than `after`, ascending."""
        with self.ledger.snapshot() as db:
            cipher = cipher_of(db, reembedding.collection_id)
            rows = db.execute(_PENDING, (reembedding.collection_id, after, limit))
            return [PendingCrop(number, cipher.decrypt(crop, "crop", number)) for number, crop in rows]

    @committing
    def stage(self, db: apsw.Connection, reembedding: Reembedding, vectors: Mapping[int, Floats]) -> bool:
        """Store new vectors [D] by the ids of `pending`; False where another worker has the lease, or it has ended.

        Faces that were erased meanwhile are skipped.

        Raises:
            InvalidError: see `Gallery.enrol`.
        """
        data = {number: vector_records.encode(vector, reembedding.dimensions) for number, vector in vectors.items()}
        if not self._renew(db, reembedding):
            return False
        collection_id = reembedding.collection_id
        cipher = cipher_of(db, collection_id)
        rows = [(cipher.encrypt(vector, "vector", number), collection_id, number) for number, vector in data.items()]
        db.executemany(
            "INSERT INTO reembedded (data, collection_id, face_id)"
            " SELECT ?1, ?2, id FROM faces WHERE id = ?3 AND collection_id = ?2 ON CONFLICT DO NOTHING",
            [row for row in rows if row[2] > 0],
        )
        db.executemany(
            "UPDATE rejections SET reembedded = ?1 WHERE id = -?3"
            " AND subject_id IN (SELECT id FROM subjects WHERE collection_id = ?2)",
            [row for row in rows if row[2] < 0],
        )
        db.execute("UPDATE reembeddings SET problem = NULL WHERE token = ?", (reembedding.token,))
        return True

    def prepare(self, reembedding: Reembedding) -> None:
        """Do nothing: maintenance writes the new segments and their index after the switch."""

    @committing
    def switch(self, db: apsw.Connection, reembedding: Reembedding) -> int | None:
        """Replace the old vectors unless new ones are missing; return the number of missing vectors (0: done).

        None where another worker has the lease, or the re-embedding has ended. The switch is recorded in the audit log
        and has a receipt.
        """
        if not self._renew(db, reembedding):
            return None
        faces, done, _, crops, reembedded = _counts(db, reembedding.collection_id)
        missing = int(faces - done + crops - reembedded)
        if not missing:
            _switch(db, reembedding, self.gallery.clock())
        return missing

    @committing
    def block(self, db: apsw.Connection, reembedding: Reembedding, problem: str) -> None:
        """Store why the re-embedding cannot continue. A worker retries it when the lease has expired."""
        if self._renew(db, reembedding):
            db.execute("UPDATE reembeddings SET problem = ? WHERE token = ?", (problem, reembedding.token))

    def _renew(self, db: apsw.Connection, reembedding: Reembedding) -> bool:
        return lease_records.renew(db, _lease(reembedding), self.holder, self.gallery.clock(), LEASE_S)


_DELETE = "DELETE FROM reembeddings WHERE token = ?"  # also deletes all staged vectors
# Crops without a new vector. Rejected faces come first: their ids are negative.
_PENDING = """
SELECT -id, crop FROM rejections WHERE subject_id IN (SELECT id FROM subjects WHERE collection_id = ?1)
AND ?2 < 0 AND -id > ?2 AND crop IS NOT NULL AND reembedded IS NULL
UNION ALL
SELECT faces.id, crops.data FROM faces JOIN crops ON crops.face_id = faces.id
LEFT JOIN reembedded ON reembedded.face_id = faces.id
WHERE faces.collection_id = ?1 AND faces.id > ?2 AND reembedded.face_id IS NULL
ORDER BY 1 LIMIT ?3
"""
_REEMBEDDING = (
    "SELECT name, collection_id, token, reembeddings.embedder, reembeddings.fingerprint, reembeddings.dimensions,"
    " actor, requested_at, problem FROM reembeddings JOIN collections ON collections.id = collection_id"
)


def get_reembedding(db: apsw.Connection, collection: Collection) -> Reembedding:
    """Return the collection's re-embedding.

    Raises:
        NotFoundError: the collection is not being re-embedded.
    """
    row = db.execute(f"{_REEMBEDDING} WHERE collection_id = ?", (collection.id,)).fetchone()
    if row is None:
        raise NotFoundError(f"{collection.name!r} is not being re-embedded")
    return Reembedding(*row)


def _lease(reembedding: Reembedding) -> str:
    return f"reembed:{reembedding.token}"


def _check_crops(db: apsw.Connection, collection: Collection, embedder: str) -> None:
    """Raise ConflictError if a face has no crop."""
    _, faces = collection_records.counts(db, collection.id)
    missing = db.execute(
        "SELECT count(*) FROM faces WHERE collection_id = ? AND id NOT IN (SELECT face_id FROM crops)", (collection.id,)
    ).get
    if missing:
        raise ConflictError(
            f"{missing} of {faces} faces of {collection.name!r} have no crop to re-embed: enrol their images again, in"
            f" a new collection of {embedder}, or erase them first"
        )


_OF_COLLECTION = "rejections.subject_id IN (SELECT id FROM subjects WHERE collection_id = ?1)"


def _progress(db: apsw.Connection, reembedding: Reembedding, now: float) -> ReembeddingProgress:
    faces, done, feedback, crops, _ = _counts(db, reembedding.collection_id)
    running = lease_records.is_held(db, _lease(reembedding), now, LEASE_S)
    state: ReembeddingState = "blocked" if reembedding.problem else "running" if running else "queued"
    return ReembeddingProgress(reembedding, state, faces, done, feedback, feedback - crops)


def _counts(db: apsw.Connection, collection_id: int) -> Row:
    """Return the numbers of faces, faces with a new vector, rejected faces, and rejected faces with crop or vector."""
    row: Row = db.execute(
        "SELECT faces, (SELECT count(*) FROM reembedded WHERE collection_id = ?1),"  # noqa: S608  of constants
        " count(subject_id), count(crop), count(reembedded)"
        f" FROM collections LEFT JOIN rejections ON {_OF_COLLECTION} WHERE collections.id = ?1",
        (collection_id,),
    ).get
    return row


def _switch(db: apsw.Connection, reembedding: Reembedding, now: float) -> None:
    collection_id = reembedding.collection_id
    db.execute(
        "UPDATE vectors SET data = new.data FROM reembedded AS new"
        " WHERE new.face_id = vectors.face_id AND collection_id = ?",
        (collection_id,),
    )
    discarded: list[Row] = db.execute(
        f"DELETE FROM rejections WHERE crop IS NULL AND {_OF_COLLECTION} RETURNING -id",  # noqa: S608  of constants
        (collection_id,),
    ).fetchall()
    db.execute(
        f"UPDATE rejections SET data = reembedded WHERE {_OF_COLLECTION}",  # noqa: S608  of constants
        (collection_id,),
    )
    # Without their vectors, nobody can be given the pseudonyms of sightings any more.
    db.execute("DELETE FROM sighting_faces WHERE collection_id = ?", (collection_id,))
    db.execute(
        "UPDATE collections SET embedder = ?, fingerprint = ?, dimensions = ? WHERE id = ?",
        (reembedding.embedder, reembedding.fingerprint, reembedding.dimensions, collection_id),
    )
    vector_records.drop_files(db, collection_id)
    # The receipt is for the discarded faces and the old vectors: maintenance scrubs the ledger for open receipts only.
    db.execute(
        "INSERT INTO receipts VALUES (?, ?, 0, ?, 0, ?, NULL, 0)",
        (reembedding.token, collection_id, len(discarded), now),
    )
    faces = [row[0] for row in discarded]
    audit.record(db, AuditEvent("reembed", now, reembedding.actor, collection_id, faces=faces, id=reembedding.token))
    db.execute(_DELETE, (reembedding.token,))
