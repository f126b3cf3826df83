"""Rows of bulk jobs and their items. The data of an item, its subject and properties are sealed until it is finished.

The lease of a job is in its row, so that a worker finds and takes a job that no other worker has in one statement.
The key of the seal is in the item's row, too; maintenance overwrites the place of rows that were replaced or deleted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from index.errors import NotFoundError
from index.postgres.store import subject_records
from index.postgres.store.database import Connection, Row
from index.postgres.store.sealing import seal, unseal
from index.protocol import LEASE_S
from index.types import Item, ItemStatus, Job, JobResult, JobState, Outcome, Properties
from index.validation import check_item, normalised, read_object

# The first number of the advisory locks under which the ids of jobs are taken; the second is the collection's.
_IDS_LOCK = 0x6A6F6273
_LOCK_NUMBERS = 2**31
_CLEAR = "lookup = NULL, kind = NULL, seal = NULL, sealed = NULL"

_JOB = (
    "SELECT jobs.id, name, collection_id, token, state, jobs.settings, jobs.created_at, finished_at, problem, actor"
    " FROM jobs JOIN collections ON collections.id = collection_id"
)
_FREE = "finished_at IS NULL AND (holder = %s OR leased_until <= %s)"


def _job(row: Row) -> Job:
    number, collection, collection_id, token, state, settings, *rest = row
    return Job(number, collection, collection_id, token, state, read_object(settings), *rest)


def find(db: Connection, collection_id: int, token: str, *, lock: bool = False) -> Job:
    """Return the collection's job with this token. `lock`: until the transaction ends.

    Raises:
        NotFoundError.
    """
    statement = f"{_JOB} WHERE collection_id = %s AND token = %s" + (" FOR NO KEY UPDATE OF jobs" if lock else "")
    row = db.execute(sql.SQL(statement), (collection_id, token)).fetchone()
    if row is None:
        raise NotFoundError("there is no such job")
    return _job(row)


def page(db: Connection, collection_id: int, after: int, limit: int) -> list[Job]:
    """Return at most `limit` of the collection's jobs with ids greater than `after`, the oldest first."""
    rows = db.execute(
        _JOB + " WHERE collection_id = %s AND jobs.id > %s ORDER BY jobs.id LIMIT %s", (collection_id, after, limit)
    )
    return [_job(row) for row in rows]


def insert(
    db: Connection, collection_id: int, settings: Mapping[str, Any], holder: str, now: float, actor: str | None
) -> Job:
    """Insert a job in the state "receiving", whose lease `holder` takes, and return it.

    The ids of a collection's jobs increase in the order of the commits: a reader that has seen a job never gets one
    with a smaller id later. A sequence alone does not guarantee that, since a transaction may commit after a later one.
    Therefore a transaction takes an id under a lock that it holds until it has committed. Nothing else waits for that
    lock, as it would for a lock of the collection's row.
    """
    token = secrets.token_hex(16)
    db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_IDS_LOCK, collection_id % _LOCK_NUMBERS))
    db.execute(
        "INSERT INTO jobs (collection_id, token, state, settings, created_at, actor, holder, leased_until)"
        " VALUES (%s, %s, 'receiving', %s, %s, %s, %s, %s)",
        (collection_id, token, json.dumps(dict(settings)), now, actor, holder, now + LEASE_S),
    )
    return find(db, collection_id, token)


def take_oldest(db: Connection, ids: Sequence[int], holder: str, now: float) -> Job | None:
    """Take the lease of the oldest of these jobs that is free and that no other transaction has locked; return the job.

    None where there is none.
    """
    statement = (
        f"{_JOB} WHERE jobs.id = ANY(%s) AND {_FREE} ORDER BY jobs.id LIMIT 1 FOR NO KEY UPDATE OF jobs SKIP LOCKED"
    )
    row = db.execute(sql.SQL(statement), (list(ids), holder, now)).fetchone()
    if row is None:
        return None
    db.execute("UPDATE jobs SET holder = %s, leased_until = %s WHERE id = %s", (holder, now + LEASE_S, row[0]))
    return _job(row)


def free(db: Connection, holder: str, now: float) -> list[int]:
    """Return the ids of the unfinished jobs that no other worker holds, the oldest first."""
    rows = db.execute(sql.SQL(f"SELECT id FROM jobs WHERE {_FREE} ORDER BY id"), (holder, now))  # noqa: S608  constants
    return [row[0] for row in rows]


def renew(db: Connection, job: Job, holder: str, now: float) -> bool:
    """Renew the lease and return True; False if the job is finished, deleted or another holder's.

    The job is locked until the transaction ends, so that no other worker takes it meanwhile.
    """
    renewed = db.execute(
        "UPDATE jobs SET leased_until = %s WHERE id = %s AND holder = %s AND finished_at IS NULL",
        (now + LEASE_S, job.id, holder),
    )
    return renewed.rowcount > 0


def release(db: Connection, job: Job, holder: str) -> None:
    """Release the lease if `holder` holds it."""
    db.execute("UPDATE jobs SET holder = '', leased_until = 0 WHERE id = %s AND holder = %s", (job.id, holder))


def set_state(db: Connection, job: Job, state: JobState) -> Job:
    """Change the job's state and return the changed job.

    Raises:
        NotFoundError: the job was deleted.
    """
    db.execute("UPDATE jobs SET state = %s WHERE id = %s", (state, job.id))
    return find(db, job.collection_id, job.token)


def delete(db: Connection, job: Job) -> None:
    """Delete the job and its items."""
    db.execute("DELETE FROM jobs WHERE id = %s", (job.id,))


def delete_finished(db: Connection, until: float) -> None:
    """Delete the jobs that finished at this time or before."""
    db.execute("DELETE FROM jobs WHERE finished_at <= %s", (until,))


def finish(db: Connection, job: Job, state: JobResult, problem: str | None, now: float) -> None:
    """Finish the job, set its pending items to its state, and erase the caller's data."""
    db.execute(
        "UPDATE jobs SET state = %s, finished_at = %s, problem = %s, holder = '', leased_until = 0 WHERE id = %s",
        (state, now, problem, job.id),
    )
    _erase(db, "job_id = %s", job.id, state)


def insert_items(db: Connection, job: Job, items: Sequence[Item | Outcome]) -> None:
    """Add items to the job; an Outcome is an item that was refused while it was received.

    Raises:
        InvalidError: see `check_item`.
    """
    for item in items:
        if isinstance(item, Item):
            check_item(item)
    db.cursor().executemany(
        "INSERT INTO job_items (job_id, number, status, result, lookup, kind, seal, sealed)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [_row(db, job, item) for item in items],
    )


def _row(db: Connection, job: Job, item: Item | Outcome) -> Row:
    if isinstance(item, Outcome):
        return (job.id, item.number, item.status, json.dumps(dict(item.result)), None, None, None, None)
    properties = None if item.properties is None else item.properties.__dict__
    head = json.dumps((normalised(item.subject), properties)).encode()  # contains no line break
    lookup = subject_records.lookup(db, job.collection_id, item.subject)
    return (job.id, item.number, "pending", None, lookup, item.kind, *seal(head + b"\n" + item.data))


def _item(row: Row) -> Item:
    number, kind, key_of_seal, sealed = row
    head, _, data = unseal(key_of_seal, sealed).partition(b"\n")
    subject, properties = json.loads(head)
    return Item(number, subject, kind, data, None if properties is None else Properties(**properties))


def counts(db: Connection, job: Job) -> dict[ItemStatus, int]:
    """Return how many items the job has of each status that occurs."""
    rows = db.execute("SELECT status, count(*) FROM job_items WHERE job_id = %s GROUP BY status", (job.id,))
    return {row[0]: row[1] for row in rows}


def outcomes(db: Connection, job: Job, after: int, limit: int) -> list[Outcome]:
    """Return the outcomes of at most `limit` items with numbers greater than `after`, sorted by number."""
    rows = db.execute(
        "SELECT number, status, result FROM job_items WHERE job_id = %s AND number > %s ORDER BY number LIMIT %s",
        (job.id, after, limit),
    )
    return [Outcome(number, status, read_object(result or "{}")) for number, status, result in rows]


def pending_sizes(db: Connection, job: Job, limit: int) -> list[tuple[int, str, int]]:
    """Return number, kind and bytes of the job's first `limit` pending items, sorted by number."""
    rows = db.execute(
        "SELECT number, kind, octet_length(sealed) FROM job_items WHERE job_id = %s AND status = 'pending'"
        " ORDER BY number LIMIT %s",
        (job.id, limit),
    )
    return [(row[0], row[1], row[2]) for row in rows]


def pending(db: Connection, job: Job, numbers: Sequence[int]) -> list[Item]:
    """Return those of the items with these numbers that are pending, sorted by number.

    Raises:
        CorruptError: a row is damaged.
    """
    rows = db.execute(
        "SELECT number, kind, seal, sealed FROM job_items WHERE job_id = %s AND number = ANY(%s)"
        " AND status = 'pending' ORDER BY number",
        (job.id, list(numbers)),
    )
    return [_item(row) for row in rows]


def lock_pending(db: Connection, job: Job, numbers: Sequence[int]) -> set[int]:
    """Return those of `numbers` whose items are pending, and lock these until the transaction ends."""
    rows = db.execute(
        "SELECT number FROM job_items WHERE job_id = %s AND number = ANY(%s) AND status = 'pending'"
        " ORDER BY number FOR NO KEY UPDATE",
        (job.id, list(numbers)),
    )
    return {row[0] for row in rows}


def finish_items(db: Connection, job: Job, outcomes: Sequence[Outcome]) -> None:
    """Store the outcomes of these items, and erase the caller's data."""
    db.cursor().executemany(
        sql.SQL(f"UPDATE job_items SET status = %s, result = %s, {_CLEAR} WHERE job_id = %s AND number = %s"),  # noqa: S608
        [(outcome.status, json.dumps(dict(outcome.result)), job.id, outcome.number) for outcome in outcomes],
    )


def erase_items(db: Connection, collection_id: int, subject: str) -> int:
    """Set all pending items for this subject to the status "erased", erase their data, and return their number."""
    return _erase(db, "lookup = %s", subject_records.lookup(db, collection_id, subject))


def erase_items_of(db: Connection, subject_ids: Sequence[int]) -> None:
    """Do the same for the items of these subjects, which are about to be deleted."""
    _erase(db, "lookup IN (SELECT lookup FROM subjects WHERE id = ANY(%s))", list(subject_ids))


def _erase(db: Connection, condition: str, value: object, status: ItemStatus | JobResult = "erased") -> int:
    """Erase the data of those pending items for which `condition` holds; return their number."""
    statement = f"UPDATE job_items SET status = %s, {_CLEAR} WHERE status = 'pending' AND {condition}"  # noqa: S608
    return db.execute(sql.SQL(statement), (status, value)).rowcount
