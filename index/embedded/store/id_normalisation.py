"""Ids from before they were kept in Unicode form C: normalised when a gallery is opened, and what cannot be.

Where two ids would become one, one subject has it (that whose id is in form C, or else the oldest), and the other keeps
its id: it is found by exactly that, and erased with the first (`records.same_subjects`). Collections keep their names
likewise, but each is dropped alone. An encrypted collection is looked through when it is opened with its key.

Each id that changes has a line in the audit log, which names the subject, or the collection alone, by its number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.aead import Cipher
from index.embedded.encryption.data_keys import cipher_of, is_locked
from index.embedded.store import records
from index.embedded.store.ledger import Ledger
from index.embedded.store.records import Row
from index.errors import CorruptError
from index.unicode_forms import normalised, normalised_json


@dataclass(frozen=True)
class Clash:
    """A name that is another's in form C: a subject's key in the collection, or where that is None the collection's."""

    collection: str
    key: str | None = None


def normalise(ledger: Ledger, now: float) -> None:
    """Bring ids, and the metadata that subjects are chosen by, to form C, as far as it was not done before.

    `now`: the time of the acts in the audit log, in seconds since 1970.
    """
    if ledger.reader().execute("SELECT 1 FROM collections WHERE NOT normalised").get is not None:
        ledger.write(partial(_normalise, now=now))


def clashes(db: apsw.Connection) -> Iterator[Clash]:
    """The ids that could not be normalised, those of locked collections excepted."""
    for found in records.collections(db, "", -1):
        if found.name != normalised(found.name):
            yield Clash(found.name)
        if not is_locked(db, found.id):
            rows = db.execute("SELECT subject_id FROM clashes WHERE collection_id = ? ORDER BY subject_id", (found.id,))
            subjects = records.subjects_by_id(db, [row[0] for row in rows])
            yield from (Clash(found.name, subject.key) for subject in subjects.values())


def count_clashes(db: apsw.Connection) -> int:
    """How many subjects keep another form, those of locked collections among them."""
    return int(db.execute("SELECT count(*) FROM clashes").get)


def _normalise(db: apsw.Connection, now: float) -> None:
    rows: list[Row] = db.execute("SELECT id, name FROM collections WHERE NOT normalised ORDER BY id").fetchall()
    for collection_id, name in rows:
        if (new_name := normalised(name)) != name:
            db.execute("UPDATE OR IGNORE collections SET name = ? WHERE id = ?", (new_name, collection_id))
            if db.changes():
                audit.note(db, Act("normalise_id", now, collection=collection_id))
        if not is_locked(db, collection_id):
            cipher = cipher_of(db, collection_id)
            _normalise_subjects(db, cipher, collection_id, now)
            _normalise_items(db, cipher, collection_id)
            db.execute("UPDATE collections SET normalised = 1 WHERE id = ?", (collection_id,))


def _normalise_subjects(db: apsw.Connection, cipher: Cipher, collection_id: int, now: float) -> None:
    changed = []
    for number, key, name, metadata in records.readable_subjects(db, cipher, collection_id):
        new = (
            normalised(key),
            normalised_json(metadata),
        )  # damaged metadata stays; `vestibule gallery verify` reports it
        if new != (key, metadata):
            changed.append((number, key, name, *new))
    for number, key, name, new_key, metadata in changed:
        db.execute("UPDATE OR IGNORE subjects SET key = ? WHERE id = ?", (cipher.lookup(new_key), number))
        is_renamed = db.changes() > 0
        if not is_renamed:
            db.execute("INSERT INTO clashes VALUES (?, ?, ?)", (number, collection_id, cipher.lookup(new_key)))
        elif new_key != key:
            audit.note(db, Act("normalise_id", now, collection=collection_id, subjects=[number]))
        if cipher.encrypted:
            records.seal_subjects(db, cipher, [(number, new_key if is_renamed else key, name, metadata)])
        else:
            db.execute("UPDATE subjects SET metadata = ? WHERE id = ?", (metadata, number))


def _normalise_items(db: apsw.Connection, cipher: Cipher, collection_id: int) -> None:
    """Let what waits in jobs be found by its subject's new key, when that subject is erased."""
    rows: list[Row] = db.execute(
        "SELECT job_id, number, subject, job_items.sealed FROM job_items JOIN jobs ON jobs.id = job_id"
        " WHERE collection_id = ? AND status = 'pending'",
        (collection_id,),
    ).fetchall()
    for job_id, number, subject, sealed in rows:
        with suppress(CorruptError):
            sent = json.loads(cipher.unseal(sealed, "sent", job_id, number))[0] if cipher.encrypted else subject
            key = cipher.lookup(records.current_key(db, cipher, collection_id, sent))
            db.execute("UPDATE job_items SET subject = ? WHERE job_id = ? AND number = ?", (key, job_id, number))
