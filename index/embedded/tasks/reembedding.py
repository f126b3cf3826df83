"""A collection's vectors made anew by another pipeline, from the crops that were kept, while the old ones serve.

The new vectors are staged in the ledger beside the old ones, and leave it with their faces: what is erased meanwhile is
erased there by the same transaction. When every face has one, one transaction puts them in place of the old, and gives
the collection its new embedder; segments and inverted files are made anew by the next rounds of maintenance. So a
process can die at any moment and another goes on, and a search compares with vectors of one pipeline, never of two.

Faces that are said not to be a subject's (index/embedded/query/feedback.py) have vectors of the old pipeline, too.
Those with a crop follow; the others are forgotten in the switch, and how many those are is told from the beginning.

One process works on a collection: who holds its lease.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.aead import OVERHEAD
from index.embedded.encryption.data_keys import cipher_of, is_locked
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, lease_records, vector_records
from index.embedded.store.ledger import Change, Row, committing
from index.errors import ConflictError, NotFoundError
from index.types import Collection, Floats

LEASE_S = 15.0
FIRST = -(2**63)  # is less than every id

State = Literal["queued", "running", "blocked"]


@dataclass(frozen=True)
class Reembedding:
    """What a collection is to become. `token` is that of the receipt for its old vectors, once they are replaced.

    `problem` says why it cannot be done, until something changes.
    """

    collection: str
    collection_id: int
    token: str
    embedder: str
    fingerprint: str
    dimensions: int
    actor: str | None
    requested_at: float
    problem: str | None


@dataclass(frozen=True)
class Progress:
    """How far it is: of `faces` faces `done` have a new vector. Of `feedback` faces that are not a subject's, `lost`
    have no crop, and are forgotten.
    """

    reembedding: Reembedding
    state: State
    faces: int
    done: int
    feedback: int
    lost: int


@dataclass(frozen=True)
class Pending:
    """Something without a new vector: a face's id, or less than 0 that of one that is not a subject's, and its crop."""

    id: int
    crop: bytes


class Reembeddings:
    """For those who ask for it."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger

    @committing
    def begin(
        self, collection: str, embedder: str, fingerprint: str, dimensions: int, *, actor: str | None = None
    ) -> Change[Progress]:
        """From now on the collection is made anew for these; `actor` as in `Gallery`.

        Raises:
            NotFoundError: no such collection. ConflictError: it holds vectors of that pipeline already, or is being
            made anew already, or there are faces without a crop. InvalidError: the actor may be a name.
        """

        def write(db: apsw.Connection) -> Progress:
            found, now = collection_records.find(db, collection), self._gallery.clock()
            if found.fingerprint == fingerprint:
                raise ConflictError(f"{collection!r} holds vectors of {fingerprint} already")
            db.execute(
                "INSERT INTO reembeddings VALUES (?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO NOTHING",
                (found.id, secrets.token_hex(16), embedder, fingerprint, dimensions, actor, now),
            )
            if not db.changes():
                raise ConflictError(f"{collection!r} is being embedded anew already; that can be cancelled")
            _check_crops(db, found, embedder)
            begun = reembedding(db, found)
            audit.note(db, Act("begin_reembed", now, actor, found.id, of=begun.token))
            return _progress(db, begun, now)

        return self._gallery.change(write)

    def progress(self, collection: str) -> Progress:
        """How far it is.

        Raises:
            NotFoundError: no such collection, or it is not being made anew.
        """
        with self._ledger.snapshot() as db:
            return _progress(db, reembedding(db, collection_records.find(db, collection)), self._gallery.clock())

    @committing
    def cancel(self, collection: str, *, actor: str | None = None) -> Change[Progress]:
        """The collection stays as it is; how far it was.

        Raises:
            NotFoundError: as `progress`.
        """

        def write(db: apsw.Connection) -> Progress:
            found, now = reembedding(db, collection_records.find(db, collection)), self._gallery.clock()
            reached = _progress(db, found, now)
            _end(db, found)
            audit.note(db, Act("cancel_reembed", now, actor, found.collection_id, of=found.token))
            return reached

        return self._gallery.change(write)


class Worker:
    """Who does it: one collection at a time, of all processes one at a collection."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger
        self._holder = secrets.token_hex(16)

    def waiting(self) -> list[Reembedding]:
        """Those that nobody works on and whose keys are here, the oldest first."""
        now = self._gallery.clock()
        with self._ledger.snapshot() as db:
            under_way = [_read(row) for row in db.execute(f"{_REEMBEDDING} ORDER BY requested_at, collection_id")]
            free = [one for one in under_way if not lease_records.is_held(db, _lease(one), now, LEASE_S)]
            return [one for one in free if not is_locked(db, one.collection_id)]

    def claim(self, one: Reembedding) -> bool:
        """Whether it is this worker's from now on; False where it is another's, or over."""

        def write(db: apsw.Connection) -> bool:
            there = db.execute("SELECT 1 FROM reembeddings WHERE token = ?", (one.token,)).get is not None
            return there and lease_records.take(db, _lease(one), self._holder, self._gallery.clock(), LEASE_S)

        return self._ledger.write(write)

    def keep(self, one: Reembedding) -> bool:
        """Say that this worker is at it still; False where it is another's, or over."""
        return self._ledger.write(lambda db: self._renew(db, one))

    def release(self, one: Reembedding) -> None:
        """Let another go on with it."""
        self._ledger.write(lambda db: lease_records.release(db, _lease(one), self._holder))

    def pending(self, one: Reembedding, after: int, limit: int) -> list[Pending]:
        """At most `limit` of what has a crop and no new vector, and an id greater than `after`, in the order of ids."""
        with self._ledger.snapshot() as db:
            # First feedback's, whose ids are less than 0 here.
            found = _pending_feedback(db, one.collection_id, after, limit) if after < 0 else []
            return found or _pending_faces(db, one.collection_id, max(after, 0), limit)

    def stage(self, one: Reembedding, made: Mapping[int, Floats]) -> bool:
        """Keep these new vectors [D], by the ids of `pending`, until the switch; False where it is another's, or over.

        What was erased meanwhile is left out.

        Raises:
            InvalidError: see `Gallery.enrol`.
        """
        data = {number: vector_records.encode(vector, one.dimensions) for number, vector in made.items()}

        def write(db: apsw.Connection) -> bool:
            if not self._renew(db, one):
                return False
            cipher = cipher_of(db, one.collection_id)
            rows = [
                (cipher.encrypt(vector, "vector", number), one.collection_id, number) for number, vector in data.items()
            ]
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
            db.execute("UPDATE reembeddings SET problem = NULL WHERE token = ?", (one.token,))
            return True

        return self._ledger.write(write)

    def switch(self, one: Reembedding) -> int | None:
        """Put the new vectors in place of the old ones, unless some are missing; how many are (0: it is done).

        None where it is another's, or over. What goes is in the audit log, and has a receipt.
        """

        def write(db: apsw.Connection) -> int | None:
            if not self._renew(db, one):
                return None
            missing = _missing(db, one.collection_id)
            if not missing:
                _switch(db, one, self._gallery.clock())
            return missing

        return self._ledger.write(write)

    def block(self, one: Reembedding, problem: str) -> None:
        """It cannot be done now. It is tried again when the lease is over."""

        def write(db: apsw.Connection) -> None:
            if self._renew(db, one):
                db.execute("UPDATE reembeddings SET problem = ? WHERE token = ?", (problem, one.token))

        self._ledger.write(write)

    def _renew(self, db: apsw.Connection, one: Reembedding) -> bool:
        db.execute(
            "UPDATE leases SET expires_at = ? WHERE name = ? AND holder = ?",
            (self._gallery.clock() + LEASE_S, _lease(one), self._holder),
        )
        return db.changes() > 0


_REEMBEDDING = (
    "SELECT name, collection_id, token, reembeddings.embedder, reembeddings.fingerprint, reembeddings.dimensions,"
    " actor, requested_at, problem FROM reembeddings JOIN collections ON collections.id = collection_id"
)


def _read(row: Row) -> Reembedding:
    return Reembedding(*row)


def reembedding(db: apsw.Connection, found: Collection) -> Reembedding:
    """What the collection is to become.

    Raises:
        NotFoundError: it is to stay as it is.
    """
    row = db.execute(f"{_REEMBEDDING} WHERE collection_id = ?", (found.id,)).fetchone()
    if row is None:
        raise NotFoundError(f"{found.name!r} is not being embedded anew")
    return _read(row)


def faults(db: apsw.Connection) -> list[str]:
    """What is wrong with what is staged, and with the vectors of feedback, in words."""
    staged: int = db.execute(
        "SELECT count(*) FROM reembedded JOIN reembeddings USING (collection_id) JOIN faces ON faces.id = face_id"
        " JOIN collections ON collections.id = reembedded.collection_id"
        " WHERE length(data) != 4 * reembeddings.dimensions + ? * encrypted"
        " OR faces.collection_id != reembedded.collection_id",
        (OVERHEAD,),
    ).get
    feedback: int = db.execute(
        "SELECT count(*) FROM rejections JOIN subjects ON subjects.id = subject_id"
        " JOIN collections ON collections.id = subjects.collection_id"
        " LEFT JOIN reembeddings ON reembeddings.collection_id = collections.id"
        " WHERE length(data) != 4 * collections.dimensions + ?1 * encrypted"
        " OR reembedded IS NOT NULL AND length(reembedded) IS NOT 4 * reembeddings.dimensions + ?1 * encrypted",
        (OVERHEAD,),
    ).get
    told = [(staged, "new vectors of faces"), (feedback, "vectors of feedback")]
    return [f"{count} {what} do not fit their collection" for count, what in told if count]


def _lease(one: Reembedding) -> str:
    return f"reembed:{one.token}"


def _check_crops(db: apsw.Connection, found: Collection, embedder: str) -> None:
    """See that every face has one.

    Raises:
        ConflictError: some have none.
    """
    _, faces = collection_records.counts(db, found.id)
    without = db.execute(
        "SELECT count(*) FROM faces WHERE collection_id = ? AND id NOT IN (SELECT face_id FROM crops)", (found.id,)
    ).get
    if without:
        raise ConflictError(
            f"{without} of {faces} faces of {found.name!r} have no crop to embed anew: enrol their pictures again, in a"
            f" new collection of {embedder}, or erase them first"
        )


_OF_COLLECTION = "rejections.subject_id IN (SELECT id FROM subjects WHERE collection_id = ?)"


def _progress(db: apsw.Connection, one: Reembedding, now: float) -> Progress:
    _, faces = collection_records.counts(db, one.collection_id)
    feedback, lost = db.execute(
        f"SELECT count(*), count(*) - count(crop) FROM rejections WHERE {_OF_COLLECTION}",  # noqa: S608  of constants
        (one.collection_id,),
    ).get
    running = lease_records.is_held(db, _lease(one), now, LEASE_S)
    state: State = "blocked" if one.problem else "running" if running else "queued"
    return Progress(one, state, faces, _staged(db, one.collection_id), feedback, lost)


def _staged(db: apsw.Connection, collection_id: int) -> int:
    return int(db.execute("SELECT count(*) FROM reembedded WHERE collection_id = ?", (collection_id,)).get)


def _missing(db: apsw.Connection, collection_id: int) -> int:
    """How many have no new vector; feedback without a crop does not count."""
    _, faces = collection_records.counts(db, collection_id)
    feedback = db.execute(
        f"SELECT count(crop) - count(reembedded) FROM rejections WHERE {_OF_COLLECTION}",  # noqa: S608  of constants
        (collection_id,),
    ).get
    return int(faces - _staged(db, collection_id) + feedback)


def _pending_faces(db: apsw.Connection, collection_id: int, after: int, limit: int) -> list[Pending]:
    rows = db.execute(
        "SELECT faces.id, crops.data FROM faces JOIN crops ON crops.face_id = faces.id"
        " LEFT JOIN reembedded ON reembedded.face_id = faces.id"
        " WHERE faces.collection_id = ? AND faces.id > ? AND reembedded.face_id IS NULL ORDER BY faces.id LIMIT ?",
        (collection_id, after, limit),
    )
    return _pending(db, collection_id, rows)


def _pending_feedback(db: apsw.Connection, collection_id: int, after: int, limit: int) -> list[Pending]:
    rows = db.execute(
        f"SELECT -id, crop FROM rejections WHERE {_OF_COLLECTION}"  # noqa: S608  of constants
        " AND -id > ? AND crop IS NOT NULL AND reembedded IS NULL ORDER BY id DESC LIMIT ?",
        (collection_id, after, limit),
    )
    return _pending(db, collection_id, rows)


def _pending(db: apsw.Connection, collection_id: int, rows: Iterable[Row]) -> list[Pending]:
    cipher = cipher_of(db, collection_id)
    return [Pending(number, cipher.decrypt(crop, "crop", number)) for number, crop in rows]


def _switch(db: apsw.Connection, one: Reembedding, now: float) -> None:
    number = (one.collection_id,)
    db.execute(
        "UPDATE vectors SET data = new.data FROM reembedded AS new"
        " WHERE new.face_id = vectors.face_id AND collection_id = ?",
        number,
    )
    lost: list[Row] = db.execute(
        f"DELETE FROM rejections WHERE crop IS NULL AND {_OF_COLLECTION} RETURNING -id",  # noqa: S608  of constants
        number,
    ).fetchall()
    db.execute(f"UPDATE rejections SET data = reembedded WHERE {_OF_COLLECTION}", number)  # noqa: S608  of constants
    db.execute(
        "UPDATE collections SET embedder = ?, fingerprint = ?, dimensions = ?, generation = generation + 1"
        " WHERE id = ?",
        (one.embedder, one.fingerprint, one.dimensions, one.collection_id),
    )
    db.execute("DELETE FROM segments WHERE collection_id = ?", number)
    vector_records.drop_inverted_file(db, one.collection_id)
    # Erased are feedback's faces, and from the files the old vectors: for those alone maintenance scrubs the ledger.
    db.execute("INSERT INTO receipts VALUES (?, ?, 0, ?, 0, ?, NULL)", (one.token, one.collection_id, len(lost), now))
    audit.note(db, Act("reembed", now, one.actor, one.collection_id, faces=[row[0] for row in lost], id=one.token))
    _end(db, one)


def _end(db: apsw.Connection, one: Reembedding) -> None:
    """Nothing of what was staged stays."""
    db.execute("DELETE FROM reembeddings WHERE token = ?", (one.token,))
