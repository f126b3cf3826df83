"""Rows of bulk jobs and their items; those of an encrypted collection are encrypted and decrypted here."""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import apsw

from index.embedded.encryption import Cipher, cipher_of
from index.embedded.store import lease_records, subject_records
from index.embedded.store.ledger import Row
from index.errors import NotFoundError
from index.protocol import LEASE_S
from index.types import Item, ItemStatus, Job, JobResult, JobState, Outcome, Properties
from index.validation import check_item, normalised, read_object

# Assignments that delete the caller's data, for an item that is finished.
_CLEAR_COLUMNS = "subject = NULL, properties = NULL, kind = NULL, data = NULL"
_CLEAR = f"{_CLEAR_COLUMNS}, sealed = NULL"

_JOB = (
    "SELECT jobs.id, name, collection_id, token, state, jobs.settings, jobs.created_at, finished_at, problem, actor"
    " FROM jobs JOIN collections ON collections.id = collection_id"
)


def _job(row: Row) -> Job:
    number, collection, collection_id, token, state, settings, *rest = row
    return Job(number, collection, collection_id, token, state, read_object(settings), *rest)


def find(db: apsw.Connection, collection_id: int, token: str) -> Job:
    """Return the collection's job with this token.

    Raises:
        NotFoundError.
    """
    row = db.execute(f"{_JOB} WHERE collection_id = ? AND token = ?", (collection_id, token)).fetchone()
    if row is None:
        raise NotFoundError("there is no such job")
    return _job(row)


def page(db: apsw.Connection, collection_id: int, after: int, limit: int) -> list[Job]:
    """Return at most `limit` of the collection's jobs with ids greater than `after`, the oldest first."""
    rows = db.execute(
        f"{_JOB} WHERE collection_id = ? AND jobs.id > ? ORDER BY jobs.id LIMIT ?", (collection_id, after, limit)
    )
    return [_job(row) for row in rows]


def unfinished(db: apsw.Connection) -> list[Job]:
    """Return the unfinished jobs of all collections, the oldest first."""
    return [_job(row) for row in db.execute(f"{_JOB} WHERE finished_at IS NULL ORDER BY jobs.id")]


def insert(
    db: apsw.Connection,
    collection_id: int,
    settings: Mapping[str, Any],
    holder: str,
    now: float,
    actor: str | None = None,
) -> Job:
    """Insert a job in the state "receiving", whose lease `holder` takes, and return it."""
    token = secrets.token_hex(16)
    db.execute(
        "INSERT INTO jobs (collection_id, token, state, settings, created_at, actor)"
        " VALUES (?, ?, 'receiving', ?, ?, ?)",
        (collection_id, token, json.dumps(dict(settings)), now, actor),
    )
    job = find(db, collection_id, token)
    lease_records.take(db, lease(job), holder, now, LEASE_S)
    return job


def set_state(db: apsw.Connection, job: Job, state: JobState) -> Job:
    """Change the job's state and return the changed job."""
    db.execute("UPDATE jobs SET state = ? WHERE id = ?", (state, job.id))
    return find(db, job.collection_id, job.token)


def delete(db: apsw.Connection, job: Job) -> None:
    """Delete the job and its items."""
    db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))


def delete_finished(db: apsw.Connection, now: float, keep_s: float) -> None:
    """Delete jobs that finished at least `keep_s` seconds ago.

    A job that finished in the future, because the clock was ahead, counts as finished now.
    """
    db.execute("UPDATE jobs SET finished_at = ? WHERE finished_at > ?", (now, now))
    db.execute("DELETE FROM jobs WHERE finished_at <= ?", (now - keep_s,))


def finish(db: apsw.Connection, job: Job, state: JobResult, problem: str | None, now: float) -> None:
    """Finish the job, set its pending items to its state, and delete the caller's data."""
    db.execute("UPDATE jobs SET state = ?, finished_at = ?, problem = ? WHERE id = ?", (state, now, problem, job.id))
    db.execute(
        f"UPDATE job_items SET status = ?, {_CLEAR} WHERE job_id = ? AND status = 'pending'",  # noqa: S608  constants
        (state, job.id),
    )
    db.execute("DELETE FROM leases WHERE name = ?", (lease(job),))


def insert_items(db: apsw.Connection, job: Job, items: Sequence[Item | Outcome]) -> None:
    """Add items to the job; an Outcome is an item that was refused while it was received.

    Raises:
        InvalidError: see `check_item`.
    """
    for item in items:
        if isinstance(item, Item):
            check_item(item)
    cipher = cipher_of(db, job.collection_id)
    db.executemany(
        "INSERT INTO job_items (job_id, number, status, result, subject, properties, kind, data, sealed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_item_row(db, cipher, job, item) for item in items],
    )


def _item_row(db: apsw.Connection, cipher: Cipher, job: Job, item: Item | Outcome) -> Row:
    if isinstance(item, Outcome):
        result, sealed = _encrypted_result(cipher, job, item)
        return (job.id, item.number, item.status, result, None, None, None, None, sealed)
    properties = None if item.properties is None else item.properties.__dict__
    data = cipher.encrypt(item.data, "sent data", job.id, item.number)
    subject = subject_records.stored_key(db, cipher, job.collection_id, item.subject)
    key, sealed = cipher.lookup(subject), None
    if cipher.encrypted:
        sealed = cipher.encrypt(json.dumps((subject, properties)).encode(), "sent", job.id, item.number)
        properties = None
    text = None if properties is None else json.dumps(properties)
    return (job.id, item.number, "pending", None, key, text, item.kind, data, sealed)


def _item(cipher: Cipher, job: Job, row: Row) -> Item:
    number, subject, kind, data, properties, sealed = row
    properties = None if properties is None else json.loads(properties)
    if cipher.encrypted:
        subject, properties = sent(cipher, job.id, number, sealed)
    data = cipher.decrypt(data, "sent data", job.id, number)
    return Item(number, subject, kind, data, None if properties is None else Properties(**properties))


def sent(cipher: Cipher, job_id: int, number: int, sealed: bytes | None) -> tuple[str, dict[str, Any] | None]:
    """Return the subject's key and properties of a pending item of an encrypted collection."""
    subject, properties = json.loads(cipher.decrypt(sealed, "sent", job_id, number))
    return subject, properties


def _encrypted_result(cipher: Cipher, job: Job, outcome: Outcome) -> tuple[str | None, bytes | None]:
    """Return the columns `result` and `sealed` for the result of an item."""
    text = json.dumps(dict(outcome.result))
    if cipher.encrypted:
        return None, cipher.encrypt(text.encode(), "result", job.id, outcome.number)
    return text, None


def counts(db: apsw.Connection, job: Job) -> dict[ItemStatus, int]:
    """Return how many items the job has of each status that occurs."""
    return dict(db.execute("SELECT status, count(*) FROM job_items WHERE job_id = ? GROUP BY status", (job.id,)))


def outcomes(db: apsw.Connection, job: Job, after: int, limit: int) -> list[Outcome]:
    """Return the outcomes of at most `limit` items with numbers greater than `after`, sorted by number."""
    rows = db.execute(
        "SELECT number, status, result, sealed FROM job_items WHERE job_id = ? AND number > ? ORDER BY number LIMIT ?",
        (job.id, after, limit),
    )
    cipher = cipher_of(db, job.collection_id)
    return [_outcome(cipher, job, row) for row in rows]


def _outcome(cipher: Cipher, job: Job, row: Row) -> Outcome:
    number, status, result, sealed = row
    if sealed is not None and status != "pending":  # of a pending item, `sealed` is the caller's data
        result = cipher.decrypt(sealed, "result", job.id, number).decode()
    return Outcome(number, status, read_object(result or "{}"))


def pending(db: apsw.Connection, job: Job) -> Generator[Item, None, None]:
    """Yield the job's pending items, sorted by number. Close the generator: it holds a read lock."""
    cipher = cipher_of(db, job.collection_id)
    rows = db.execute(
        "SELECT number, subject, kind, data, properties, sealed FROM job_items"
        " WHERE job_id = ? AND status = 'pending' ORDER BY number",
        (job.id,),
    )
    try:
        for row in rows:
            yield _item(cipher, job, row)
    finally:
        rows.close()


def still_pending(db: apsw.Connection, job: Job, numbers: Sequence[int]) -> set[int]:
    """Return those of `numbers` whose items are pending."""
    rows = db.execute(
        "SELECT number FROM job_items"
        " WHERE job_id = ? AND number IN (SELECT value FROM json_each(?)) AND status = 'pending'",
        (job.id, json.dumps(numbers)),
    )
    return {row[0] for row in rows}


def finish_items(db: apsw.Connection, job: Job, outcomes: Sequence[Outcome]) -> None:
    """Store the outcomes of these items, and delete the caller's data."""
    cipher = cipher_of(db, job.collection_id)
    db.executemany(
        f"UPDATE job_items SET status = ?, {_CLEAR_COLUMNS}, result = ?, sealed = ?"  # noqa: S608  constants
        " WHERE job_id = ? AND number = ?",
        [(outcome.status, *_encrypted_result(cipher, job, outcome), job.id, outcome.number) for outcome in outcomes],
    )


def erase_items(db: apsw.Connection, collection_id: int, subject: str) -> int:
    """Set all items for this subject to the status "erased", delete the caller's data, and return their number."""
    cipher = cipher_of(db, collection_id)
    db.execute(
        f"UPDATE job_items SET status = 'erased', {_CLEAR}"  # noqa: S608  constants
        " WHERE subject IN (?, ?) AND job_id IN (SELECT id FROM jobs WHERE collection_id = ?)",
        (cipher.lookup(normalised(subject)), cipher.lookup(subject), collection_id),
    )
    return db.changes()


def lease(job: Job) -> str:
    """Return the name of the job's lease."""
    return f"job:{job.token}"


def has_lease(db: apsw.Connection, job: Job) -> bool:
    """Return whether the job's lease exists, held or released. In a restored ledger it does not."""
    return db.execute("SELECT 1 FROM leases WHERE name = ?", (lease(job),)).get is not None
