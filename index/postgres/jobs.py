"""Bulk jobs: many faces that are uploaded at once and enrolled in the background, each exactly once.

Items stay in the database until they are enrolled, and the transaction that enrols them erases their data. The process
that holds a job's lease works on it; if it dies, another continues. Erasing a subject erases its pending items in the
same transaction.

Transactions lock in one order: the collection, the job, items, subjects. So an erasure that waits for an enrolment of
pending items then finds the subject that was enrolled. (The expiry of a subject locks the subject first; if PostgreSQL
aborts a transaction for that, it is repeated.)

Workers poll: LISTEN and NOTIFY would limit all commits of the database to some hundreds a second.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from index.audit_chain import AuditEvent
from index.errors import NotFoundError
from index.postgres.gallery import GalleryComponent, remove_expired_among, remove_subjects
from index.postgres.store import (
    audit_records,
    collection_records,
    erasure_records,
    face_records,
    job_records,
    subject_records,
)
from index.postgres.store.database import Connection, committing
from index.protocol.jobs import ALL_FAILED, KEEP_S, MAX_BYTES, MAX_ROWS
from index.types import (
    Collection,
    Face,
    Item,
    ItemStatus,
    Job,
    JobResult,
    Outcome,
    ProcessedItem,
    Properties,
    Receipt,
)
from index.validation import check_fingerprint, normalised


class PostgresJobQueue(GalleryComponent):
    """See `index.protocol.JobQueue`."""

    @committing
    def begin(
        self, db: Connection, collection: str, settings: Mapping[str, object], *, actor: str | None = None
    ) -> Job:
        """See `JobQueue`."""
        number, now = collection_records.find(db, collection).id, self.database.now(db)
        AuditEvent("submit_job", now, actor)  # validates the actor
        return job_records.insert(db, number, settings, self.holder, now, actor)

    @committing
    def append(self, db: Connection, job: Job, items: Sequence[Item | Outcome]) -> None:
        """See `JobQueue`."""
        if not job_records.renew(db, job, self.holder, self.database.now(db)):
            raise NotFoundError("the job no longer exists")
        job_records.insert_items(db, job, items)

    @committing
    def ready(self, db: Connection, job: Job) -> Job:
        """See `JobQueue`."""
        job_records.release(db, job, self.holder)
        queued = job_records.set_state(db, job, "queued")
        event = AuditEvent("submit_job", self.database.now(db), job.actor, job.collection_id, of=job.token)
        audit_records.record(db, event)
        return queued

    @committing
    def abandon(self, db: Connection, job: Job) -> None:
        """See `JobQueue`."""
        job_records.delete(db, job)

    def job(self, collection: str, token: str) -> Job:
        """See `JobQueue`."""
        with self.database.snapshot() as db:
            return job_records.find(db, collection_records.find(db, collection).id, token)

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """See `JobQueue`."""
        with self.database.snapshot() as db:
            return job_records.page(db, collection_records.find(db, collection).id, after, limit)

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """See `JobQueue`."""
        with self.database.snapshot() as db:
            return job_records.counts(db, job)

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """See `JobQueue`."""
        with self.database.snapshot() as db:
            return job_records.outcomes(db, job, after, limit)

    @committing
    def cancel(self, db: Connection, collection: str, token: str, *, actor: str | None = None) -> Job:
        """See `JobQueue`."""
        job = job_records.find(db, collection_records.find(db, collection).id, token, lock=True)
        if job.finished_at is not None:
            return job
        now = self.database.now(db)
        job_records.finish(db, job, "cancelled", None, now)
        audit_records.record(db, AuditEvent("cancel_job", now, actor, job.collection_id, of=job.token))
        return job_records.find(db, job.collection_id, token)

    @committing
    def remove_subject(self, db: Connection, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """See `JobQueue`."""
        target, now = collection_records.find(db, collection, "share"), self.database.now(db)
        pending = job_records.erase_items(db, target.id, key)
        try:
            number = subject_records.lock_existing(db, target.id, key)
        except NotFoundError:
            if not pending:
                raise
            receipt = erasure_records.insert_receipt(db, target.id, 1, 0, now)
            # The subject has no id yet. The event refers to the receipt instead.
            audit_records.record(db, AuditEvent("erase", now, actor, target.id, of=receipt.token))
            return receipt
        return remove_subjects(db, target, [number], now, actor)


class PostgresJobWorker(GalleryComponent):
    """See `index.protocol.JobWorker`."""

    @committing
    def claim(self, db: Connection, postponed: Container[int] = ()) -> Job | None:
        """See `JobWorker`."""
        now = self.database.now(db)
        job_records.delete_finished(db, now - KEEP_S)
        free = [number for number in job_records.free(db, self.holder, now) if number not in postponed]
        while free and (job := job_records.take_oldest(db, free, self.holder, now)):
            if job.state != "receiving":
                return job_records.set_state(db, job, "running")
            job_records.delete(db, job)  # the process that received it has died
            free.remove(job.id)
        return None

    @committing
    def keep(self, db: Connection, job: Job) -> bool:
        """See `JobWorker`."""
        return job_records.renew(db, job, self.holder, self.database.now(db))

    @committing
    def release(self, db: Connection, job: Job) -> None:
        """See `JobWorker`."""
        job_records.release(db, job, self.holder)

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """See `JobWorker`."""
        numbers: list[int] = []
        first, size = None, 0
        with self.database.snapshot() as db:
            for number, kind, length in job_records.pending_sizes(db, job, max(MAX_ROWS, pictures)):
                first = first or kind
                limit = pictures if kind == "picture" else MAX_ROWS
                if numbers and (kind != first or len(numbers) == limit or size > MAX_BYTES):
                    break
                numbers.append(number)
                size += length
            return job_records.pending(db, job, numbers)

    @committing
    def enrol(self, db: Connection, job: Job, results: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """See `JobWorker`."""
        # Locked, so that the collection is neither dropped nor re-embedded before this transaction ends.
        collection = collection_records.find(db, job.collection, "share")
        now = self.database.now(db)
        if not job_records.renew(db, job, self.holder, now):
            return False
        check_fingerprint(collection, fingerprint)
        pending = job_records.lock_pending(db, job, [result.item.number for result in results])
        results = [result for result in results if result.item.number in pending]
        faces, subjects = _enrol_faces(db, collection, results, now)
        if faces:
            ids = [face.id for face in faces]
            audit_records.record(db, AuditEvent("enrol", now, job.actor, collection.id, subjects, ids))
        tokens = iter([face.token for face in faces])
        outcomes = [
            Outcome(
                result.item.number,
                result.outcome.status,
                {**result.outcome.result, "faces": [next(tokens) for _ in result.faces]},
            )
            for result in results
        ]
        job_records.finish_items(db, job, outcomes)
        return True

    @committing
    def finish(self, db: Connection, job: Job, state: JobResult, problem: str | None = None) -> None:
        """See `JobWorker`."""
        now = self.database.now(db)
        if not job_records.renew(db, job, self.holder, now):
            return
        if state == "done" and job_records.counts(db, job).keys() == {"failed"}:
            state, problem = "failed", ALL_FAILED
        job_records.finish(db, job, state, problem, now)


def _enrol_faces(
    db: Connection, collection: Collection, results: Sequence[ProcessedItem], now: float
) -> tuple[list[Face], list[int]]:
    """Set the subjects' properties and insert the faces.

    Return the faces in the order of `results`, and the ids of their subjects, ascending.
    """
    enrolled = [result for result in results if result.faces]
    properties: dict[str, Properties | None] = {}
    for result in enrolled:
        key = normalised(result.item.subject)
        properties[key] = result.item.properties or properties.get(key)
    existing = remove_expired_among(db, collection, properties, now)
    subjects = subject_records.put_all(db, collection.id, properties, existing, now)
    return face_records.insert(db, collection, [face for result in enrolled for face in result.faces], subjects, now)
