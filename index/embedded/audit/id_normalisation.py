"""Normalises ids that older versions stored in other forms than Unicode form C, when a gallery is opened.

If two subjects' ids are equal in form C, the subject whose id is in form C (or else the oldest) gets that id. The other
keeps its own id: it is found by exactly this id, and erased together with the first (`subject_records.ids_of_key`).
Names of collections are treated alike, but each collection is dropped alone. The ids of an encrypted collection are
normalised when the gallery is opened with its key.

The audit log has a line for each id that changes, with the number of the subject, or of the collection only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.encryption import Cipher, cipher_of, is_locked
from index.embedded.store import collection_records, job_records, subject_records
from index.embedded.store.ledger import Ledger, Row
from index.errors import CorruptError
from index.validation import normalised, normalised_json


@dataclass(frozen=True)
class Clash:
    """An id that equals another one in form C: a subject's key, or if `key` is None the collection's name."""

    collection: str
    key: str | None = None


def normalise_ids(ledger: Ledger, now: float) -> None:
    """Normalise the ids and the searchable metadata of all collections where that was not done before.

    `now`: the time of the audit events, in seconds since 1970.
    """
    if ledger.reader().execute("SELECT 1 FROM collections WHERE NOT normalised").get is not None:
        ledger.write(partial(_normalise, now=now))


def clashes(db: apsw.Connection) -> Iterator[Clash]:
    """Yield the ids that could not be normalised, without those of locked collections."""
    for collection in collection_records.page(db, "", -1):
        if collection.name != normalised(collection.name):
            yield Clash(collection.name)
        if not is_locked(db, collection.id):
            rows = db.execute(
                "SELECT subject_id FROM clashes WHERE collection_id = ? ORDER BY subject_id", (collection.id,)
            )
            subjects = subject_records.by_id(db, cipher_of(db, collection.id), [row[0] for row in rows])
            yield from (Clash(collection.name, subject.key) for subject in subjects.values())


def count_clashes(db: apsw.Connection) -> int:
    """Return how many subjects have an id that could not be normalised, including those of locked collections."""
    return int(db.execute("SELECT count(*) FROM clashes").get)


def _normalise(db: apsw.Connection, now: float) -> None:
    rows: list[Row] = db.execute("SELECT id, name FROM collections WHERE NOT normalised ORDER BY id").fetchall()
    for collection_id, name in rows:
        if (new_name := normalised(name)) != name:
            db.execute("UPDATE OR IGNORE collections SET name = ? WHERE id = ?", (new_name, collection_id))
            if db.changes():
                audit.record(db, AuditEvent("normalise_id", now, collection=collection_id))
        if not is_locked(db, collection_id):
            cipher = cipher_of(db, collection_id)
            _normalise_subjects(db, cipher, collection_id, now)
            _normalise_items(db, cipher, collection_id)
            db.execute("UPDATE collections SET normalised = 1 WHERE id = ?", (collection_id,))


def _normalise_subjects(db: apsw.Connection, cipher: Cipher, collection_id: int, now: float) -> None:
    changed = [
        (number, key, name, *new)
        for number, key, name, metadata in subject_records.readable(db, cipher, collection_id)
        # Damaged metadata is kept; `vestibule gallery verify` reports it.
        if (new := (normalised(key), normalised_json(metadata))) != (key, metadata)
    ]
    for number, key, name, new_key, metadata in changed:
        db.execute("UPDATE OR IGNORE subjects SET key = ? WHERE id = ?", (cipher.lookup(new_key), number))
        is_renamed = db.changes() > 0
        if not is_renamed:
            db.execute("INSERT INTO clashes VALUES (?, ?, ?)", (number, collection_id, cipher.lookup(new_key)))
        elif new_key != key:
            audit.record(db, AuditEvent("normalise_id", now, collection=collection_id, subjects=[number]))
        if cipher.encrypted:
            subject_records.encrypt(db, cipher, [(number, new_key if is_renamed else key, name, metadata)])
        else:
            db.execute("UPDATE subjects SET metadata = ? WHERE id = ?", (metadata, number))


def _normalise_items(db: apsw.Connection, cipher: Cipher, collection_id: int) -> None:
    """Set the subjects' new keys in the pending items of jobs, so that erasing a subject finds its items."""
    rows: list[Row] = db.execute(
        "SELECT job_id, number, subject, job_items.sealed FROM job_items JOIN jobs ON jobs.id = job_id"
        " WHERE collection_id = ? AND status = 'pending'",
        (collection_id,),
    ).fetchall()
    for job_id, number, stored, sealed in rows:
        with suppress(CorruptError):
            subject = job_records.sent(cipher, job_id, number, sealed)[0] if cipher.encrypted else stored
            key = cipher.lookup(subject_records.stored_key(db, cipher, collection_id, subject))
            db.execute("UPDATE job_items SET subject = ? WHERE job_id = ? AND number = ?", (key, job_id, number))
