"""Faces that were said not to be a subject's, and what follows: who is not named for them again.

A subject is not named for a face that is at least as like to one of these as it is to the subject. So the same picture
is never given that name again, others of the same stranger mostly are not, and the subject's own pictures, which are
liker to the subject, still are.

Where the collection keeps crops, one is kept of such a face, too, and erased with it: without it the face is forgotten
when the collection is embedded anew (index/embedded/tasks/reembedding.py), since its vector means nothing then.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apsw
import numpy as np

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.data_keys import cipher_of, ciphers
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, subject_records, vector_records
from index.embedded.store.ledger import Change, Row, committing
from index.errors import NotFoundError
from index.types import Collection, Floats, Ints, Match, Receipt
from index.validation import unit_vectors

# By how much two computations of one cosine may differ.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Rejection:
    """A face that is not the subject's; `token` is what the caller knows it by, `id` its row."""

    token: str
    created_at: float
    id: int


class Feedback:
    """What a gallery was told of who is not who."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery

    @committing
    def add(
        self,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> Change[list[Rejection]]:
        """None of these faces [N, D] is the subject; durable when it returns, and erased with the subject.

        Raises:
            NotFoundError: no such collection or subject. InvalidError, ConflictError: see `Gallery.search`.
        """

        def write(db: apsw.Connection) -> list[Rejection]:
            found, now = collection_records.find(db, collection), self._gallery.clock()
            collection_records.check_fingerprint(found, fingerprint)
            scaled = unit_vectors(vectors, found.dimensions)
            subject, cipher = subject_records.find(db, found.id, key, now), cipher_of(db, found.id)
            numbers = [secrets.randbelow(2**62) + 1 for _ in scaled]
            made = [Rejection(secrets.token_hex(16), now, number) for number in numbers]
            for one, number, vector, crop in zip(made, numbers, scaled, crops or [None] * len(scaled), strict=True):
                data = cipher.encrypt(vector.astype("<f4").tobytes(), "vector", -number)
                kept = None if crop is None else cipher.encrypt(crop, "crop", -number)
                db.execute(
                    "INSERT INTO rejections (id, subject_id, token, created_at, data, crop) VALUES (?, ?, ?, ?, ?, ?)",
                    (number, subject.id, one.token, one.created_at, data, kept),
                )
            audit.note(db, Act("feedback", now, actor, found.id, [subject.id], [-number for number in numbers]))
            return made

        return self._gallery.change(write)

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """The subject's, in the order of `created_at` and `id`, those above `after`; all of them if `limit` is -1.

        Raises:
            NotFoundError.
        """
        with self._gallery.ledger.snapshot() as db:
            subject = subject_records.find(db, collection_records.find(db, collection).id, key, self._gallery.clock())
            rows = db.execute(
                "SELECT token, created_at, id FROM rejections WHERE subject_id = ? AND (created_at, id) > (?, ?)"
                " ORDER BY created_at, id LIMIT ?",
                (subject.id, *after, limit),
            )
            return [Rejection(*row) for row in rows]

    @committing
    def remove(self, collection: str, key: str, token: str, *, actor: str | None = None) -> Change[Receipt]:
        """Take it back: the face is erased.

        Raises:
            NotFoundError.
        """

        def write(db: apsw.Connection) -> Receipt:
            found = collection_records.find(db, collection)
            subject = subject_records.find(db, found.id, key)
            row = db.execute(
                "SELECT id FROM rejections WHERE subject_id = ? AND token = ?", (subject.id, token)
            ).fetchone()
            if row is None:
                raise NotFoundError("there is no such feedback")
            made = erasure_records.remove_faces(db, found.id, [-row[0]], subjects=0, now=self._gallery.clock())
            audit.note(db, Act("erase", made.requested_at, actor, found.id, [subject.id], [-row[0]], made.token))
            return made

        return self._gallery.erasure(write)


def rejected_after(db: apsw.Connection, found: Collection, after: int, limit: int) -> tuple[Ints, Floats]:
    """Ids [N] and vectors [N, D] of a collection's feedback: ids greater than `after`, ascending, at most `limit`.

    Feedback whose vector does not have D numbers is left out; see `reembedding.faults`.

    Raises:
        LockedError. CorruptError: sealed data is not as it was written.
    """
    cipher = cipher_of(db, found.id)
    rows: list[Row] = db.execute(
        "SELECT rejections.id, data FROM rejections JOIN subjects ON subjects.id = subject_id"
        " WHERE collection_id = ? AND rejections.id > ? AND length(data) = ? ORDER BY rejections.id LIMIT ?",
        (found.id, after, cipher.encrypted_size(4 * found.dimensions), limit),
    ).fetchall()
    data = b"".join(cipher.decrypt(sealed, "vector", -number) for number, sealed in rows)
    vectors = np.frombuffer(data, "<f4").reshape(len(rows), found.dimensions)
    return np.fromiter((row[0] for row in rows), np.int64, len(rows)), vectors


def replace_rejected(db: apsw.Connection, found: Collection, made: Mapping[int, Floats]) -> dict[int, int]:
    """Put these vectors in place of those that the feedback has, by its ids; the subject of each that is there."""
    cipher, subjects = cipher_of(db, found.id), {}
    for number, vector in made.items():
        data = cipher.encrypt(vector_records.encode(vector, found.dimensions), "vector", -number)
        for row in db.execute("UPDATE rejections SET data = ? WHERE id = ? RETURNING subject_id", (data, number)):
            subjects[number] = row[0]
    return subjects


def contradicted(db: apsw.Connection, matches: Iterable[Match], query: Floats) -> set[int]:
    """Ids of those subjects that are said not to be this face [D]."""
    similarities = {match.subject.id: match.similarity for match in matches}
    rows = db.execute(
        "SELECT collection_id, subject_id, rejections.id, data FROM rejections"
        " JOIN subjects ON subjects.id = subject_id WHERE subject_id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(similarities)),),
    )
    of = ciphers(db)
    return {
        subject
        for collection_id, subject, number, data in rows
        if float(np.frombuffer(of(collection_id).decrypt(data, "vector", -number), "<f4") @ query)
        >= similarities[subject] - ROUNDING
    }


def without(db: apsw.Connection, matches: Sequence[Match], query: Floats) -> list[Match]:
    """The matches whose subjects may be this face."""
    gone = contradicted(db, matches, query)
    return [match for match in matches if match.subject.id not in gone]
