"""What the ledger holds of bulk jobs, row by row: as `index.embedded.store.records`, on a connection that is given."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import apsw

from index.embedded.encryption.aead import Cipher
from index.embedded.encryption.data_keys import cipher_of
from index.embedded.store import records
from index.embedded.store.records import NewFace, Row
from index.errors import NotFoundError
from index.unicode_forms import normalised
from index.validation import check_subject, read_object

Finished = Literal["done", "failed", "cancelled"]
State = Literal["receiving", "queued", "running"] | Finished
Status = Literal["pending", "enrolled", "rejected", "failed", "erased", "cancelled"]
Kind = Literal["picture", "vector"]

LEASE_S = 15.0
# Nothing of what was sent, in an item that is over.
_OPENLY = "subject = NULL, properties = NULL, kind = NULL, data = NULL"
_NOTHING = f"{_OPENLY}, sealed = NULL"


@dataclass(frozen=True)
class Properties:
    """What a subject has from now on, in place of what it had."""

    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expires_at: float | None = None


@dataclass(frozen=True)
class Item:
    """Something to enrol: an encoded picture, or a vector as little-endian float32."""

    number: int
    subject: str
    kind: Kind
    data: bytes
    properties: Properties | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of an item; `result` is JSON's, and names nobody."""

    number: int
    status: Status
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What is to become of an item: these faces enrolled for its subject, or none."""

    item: Item
    outcome: Outcome
    faces: Sequence[NewFace] = ()


@dataclass(frozen=True)
class Job:
    """A job of a collection; `settings` are the caller's, `problem` says why it failed, `actor` is who sent it."""

    id: int
    collection: str
    collection_id: int
    token: str
    state: State
    settings: dict[str, Any]
    created_at: float
    finished_at: float | None
    problem: str | None
    actor: str | None = None


_JOB = (
    "SELECT jobs.id, name, collection_id, token, state, jobs.settings, jobs.created_at, finished_at, problem, actor"
    " FROM jobs JOIN collections ON collections.id = collection_id"
)


def _read(row: Row) -> Job:
    number, collection, collection_id, token, state, settings, *rest = row
    return Job(number, collection, collection_id, token, state, read_object(settings), *rest)


def job(db: apsw.Connection, collection_id: int, token: str) -> Job:
    """The job.

    Raises:
        NotFoundError.
    """
    row = db.execute(f"{_JOB} WHERE collection_id = ? AND token = ?", (collection_id, token)).fetchone()
    if row is None:
        raise NotFoundError("there is no such job")
    return _read(row)


def jobs(db: apsw.Connection, collection_id: int, after: int, limit: int) -> list[Job]:
    """In the order they were sent, those whose id is greater than `after`."""
    rows = db.execute(
        f"{_JOB} WHERE collection_id = ? AND jobs.id > ? ORDER BY jobs.id LIMIT ?", (collection_id, after, limit)
    )
    return [_read(row) for row in rows]


def unfinished(db: apsw.Connection) -> list[Job]:
    """Of all collections, the oldest first."""
    return [_read(row) for row in db.execute(f"{_JOB} WHERE finished_at IS NULL ORDER BY jobs.id")]


def insert_job(
    db: apsw.Connection,
    collection_id: int,
    settings: Mapping[str, Any],
    holder: str,
    now: float,
    actor: str | None = None,
) -> Job:
    """A new one, that `holder` receives."""
    token = records.token()
    db.execute(
        "INSERT INTO jobs (collection_id, token, state, settings, created_at, actor)"
        " VALUES (?, ?, 'receiving', ?, ?, ?)",
        (collection_id, token, json.dumps(dict(settings)), now, actor),
    )
    made = job(db, collection_id, token)
    take(db, made, holder, now)
    return made


def set_state(db: apsw.Connection, found: Job, state: State) -> Job:
    """The job as it is then."""
    db.execute("UPDATE jobs SET state = ? WHERE id = ?", (state, found.id))
    return job(db, found.collection_id, found.token)


def remove_job(db: apsw.Connection, found: Job) -> None:
    """As if there had been none."""
    db.execute("DELETE FROM jobs WHERE id = ?", (found.id,))


def forget_finished(db: apsw.Connection, now: float, keep_s: float) -> None:
    """Those that ended `keep_s` ago or before. Those that ended while the clock was ahead count as ended now."""
    db.execute("UPDATE jobs SET finished_at = ? WHERE finished_at > ?", (now, now))
    db.execute("DELETE FROM jobs WHERE finished_at <= ?", (now - keep_s,))


def finish(db: apsw.Connection, found: Job, state: Finished, problem: str | None, now: float) -> None:
    """The job is over; nothing of what was sent stays."""
    db.execute("UPDATE jobs SET state = ?, finished_at = ?, problem = ? WHERE id = ?", (state, now, problem, found.id))
    db.execute(
        f"UPDATE job_items SET status = ?, {_NOTHING} WHERE job_id = ? AND status = 'pending'",  # noqa: S608  constants
        (state, found.id),
    )
    db.execute("DELETE FROM leases WHERE name = ?", (_lease(found),))


def insert_items(db: apsw.Connection, found: Job, items: Sequence[Item | Outcome]) -> None:
    """More of what was sent; an Outcome is of what cannot be enrolled.

    Raises:
        InvalidError: see `check_item`.
    """
    for item in items:
        if isinstance(item, Item):
            check_item(item)
    cipher = cipher_of(db, found.collection_id)
    db.executemany(
        "INSERT INTO job_items (job_id, number, status, result, subject, properties, kind, data, sealed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_row(db, cipher, found, item) for item in items],
    )


def check_item(item: Item) -> None:
    """See that the item's subject can be stored.

    Raises:
        InvalidError: see `check_subject`.
    """
    of = item.properties or Properties()
    check_subject(item.subject, of.name, of.metadata, of.expires_at)


def _row(db: apsw.Connection, cipher: Cipher, found: Job, item: Item | Outcome) -> Row:
    if isinstance(item, Outcome):
        result, sealed = _result(cipher, found, item)
        return (found.id, item.number, item.status, result, None, None, None, None, sealed)
    properties = None if item.properties is None else item.properties.__dict__
    data = cipher.seal(item.data, "sent data", found.id, item.number)
    subject = records.current_key(db, cipher, found.collection_id, item.subject)
    key, sealed = cipher.lookup(subject), None
    if cipher.encrypted:
        sealed = cipher.seal(json.dumps((subject, properties)).encode(), "sent", found.id, item.number)
        properties = None
    text = None if properties is None else json.dumps(properties)
    return (found.id, item.number, "pending", None, key, text, item.kind, data, sealed)


def _result(cipher: Cipher, found: Job, one: Outcome) -> tuple[str | None, bytes | None]:
    """What became of an item, for the two columns that it may lie in."""
    text = json.dumps(dict(one.result))
    if cipher.encrypted:
        return None, cipher.seal(text.encode(), "result", found.id, one.number)
    return text, None


def counts(db: apsw.Connection, found: Job) -> dict[Status, int]:
    """How many items there are of each status; of others there are none."""
    return dict(db.execute("SELECT status, count(*) FROM job_items WHERE job_id = ? GROUP BY status", (found.id,)))


def outcomes(db: apsw.Connection, found: Job, after: int, limit: int) -> list[Outcome]:
    """In the order they were sent, those whose number is greater than `after`."""
    rows = db.execute(
        "SELECT number, status, result, sealed FROM job_items WHERE job_id = ? AND number > ? ORDER BY number LIMIT ?",
        (found.id, after, limit),
    )
    cipher = cipher_of(db, found.collection_id)
    return [
        Outcome(
            number, status, read_object(_told(cipher, found, number, result, None if status == "pending" else sealed))
        )
        for number, status, result, sealed in rows
    ]


def _told(cipher: Cipher, found: Job, number: int, result: str | None, sealed: bytes | None) -> str:
    """What `_result` put there, JSON."""
    return result or "{}" if sealed is None else cipher.unseal(sealed, "result", found.id, number).decode()


def pending(db: apsw.Connection, found: Job) -> Generator[Item, None, None]:
    """In the order they were sent. To be closed: it holds a lock."""
    cipher = cipher_of(db, found.collection_id)
    rows = db.execute(
        "SELECT number, subject, kind, data, properties, sealed FROM job_items"
        " WHERE job_id = ? AND status = 'pending' ORDER BY number",
        (found.id,),
    )
    try:
        for number, subject, kind, data, properties, sealed in rows:
            who, made = subject, None if properties is None else json.loads(properties)
            if cipher.encrypted:
                who, made = json.loads(cipher.unseal(sealed, "sent", found.id, number))
            sent = cipher.unseal(data, "sent data", found.id, number)
            yield Item(number, who, kind, sent, None if made is None else Properties(**made))
    finally:
        rows.close()


def still_pending(db: apsw.Connection, found: Job, numbers: Sequence[int]) -> set[int]:
    """Those of the numbers."""
    rows = db.execute(
        "SELECT number FROM job_items"
        " WHERE job_id = ? AND number IN (SELECT value FROM json_each(?)) AND status = 'pending'",
        (found.id, json.dumps(numbers)),
    )
    return {row[0] for row in rows}


def settle_items(db: apsw.Connection, found: Job, done: Sequence[Outcome]) -> None:
    """What became of these; nothing of what was sent stays."""
    cipher = cipher_of(db, found.collection_id)
    db.executemany(
        f"UPDATE job_items SET status = ?, {_OPENLY}, result = ?, sealed = ?"  # noqa: S608  of constants
        " WHERE job_id = ? AND number = ?",
        [(one.status, *_result(cipher, found, one), found.id, one.number) for one in done],
    )


def erase_items(db: apsw.Connection, collection_id: int, subject: str) -> int:
    """What waits to become this subject's is not enrolled, and nothing of it stays; how many items."""
    cipher = cipher_of(db, collection_id)
    db.execute(
        f"UPDATE job_items SET status = 'erased', {_NOTHING}"  # noqa: S608  of constants
        " WHERE subject IN (?, ?) AND job_id IN (SELECT id FROM jobs WHERE collection_id = ?)",
        (cipher.lookup(normalised(subject)), cipher.lookup(subject), collection_id),
    )
    return db.changes()


def _lease(found: Job) -> str:
    return f"job:{found.token}"


def has_lease(db: apsw.Connection, found: Job) -> bool:
    """Whether somebody has, had or can have the job's lease: not in a ledger that was restored."""
    return db.execute("SELECT 1 FROM leases WHERE name = ?", (_lease(found),)).get is not None


def take(db: apsw.Connection, found: Job, holder: str, now: float) -> bool:
    """Get the job's lease, or keep it; False while another has it."""
    return records.take_lease(db, _lease(found), holder, now, LEASE_S)


def renew(db: apsw.Connection, found: Job, holder: str, now: float) -> bool:
    """Keep the lease for longer; False where it is not held."""
    db.execute("UPDATE leases SET expires_at = ? WHERE name = ? AND holder = ?", (now + LEASE_S, _lease(found), holder))
    return db.changes() > 0


def free(db: apsw.Connection, found: Job, holder: str) -> None:
    """Let another have it."""
    db.execute("UPDATE leases SET holder = '', expires_at = 0 WHERE name = ? AND holder = ?", (_lease(found), holder))
