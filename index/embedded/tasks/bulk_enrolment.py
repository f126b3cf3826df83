"""Bulk jobs: many faces that are uploaded at once and enrolled in the background, each exactly once.

Items stay in the ledger until they are enrolled, and the transaction that enrols them deletes them. If a process dies,
another continues; erasing a subject erases its pending items in the same transaction.

The process that holds a job's lease works on it. The lease row is created with the job and deleted when the job ends.
A restored ledger has no leases: a pending job in it fails, since its items may include subjects that were erased after
the backup.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import closing

import apsw

from index.audit_chain import AuditEvent
from index.embedded.audit import log as audit
from index.embedded.encryption import is_locked
from index.embedded.gallery import GalleryComponent, remove_expired_among, remove_subjects
from index.embedded.store import (
    collection_records,
    erasure_records,
    face_records,
    job_records,
    lease_records,
    subject_records,
)
from index.embedded.store.changes import committing
from index.embedded.store.tombstones import erasing
from index.errors import NotFoundError
from index.protocol.jobs import ALL_FAILED, KEEP_S, LEASE_S, MAX_BYTES, MAX_ROWS
from index.types import Item, ItemStatus, Job, JobResult, Outcome, ProcessedItem, Receipt
from index.validation import check_fingerprint


class JobQueue(GalleryComponent):
    """Submit, list and cancel the bulk jobs of a gallery."""

    @committing
    def begin(
        self, db: apsw.Connection, collection: str, settings: Mapping[str, object], *, actor: str | None = None
    ) -> Job:
        """Create a job, which no worker takes before `ready`. `actor`, as in `Gallery`, is also that of its enrolments.

        Raises:
            NotFoundError: no such collection. InvalidError: the actor may be a name.
        """
        number, now = collection_records.find(db, collection).id, self.gallery.clock()
        AuditEvent("submit_job", now, actor)  # validates the actor
        return job_records.insert(db, number, settings, self.holder, now, actor)

    @committing
    def append(self, db: apsw.Connection, job: Job, items: Sequence[Item | Outcome]) -> None:
        """Add items to the job; an Outcome stands for an item that cannot be enrolled.

        Raises:
            NotFoundError: the collection was dropped. InvalidError: see `job_records.check_item`.
        """
        if not lease_records.renew(db, job_records.lease(job), self.holder, self.gallery.clock(), LEASE_S):
            raise NotFoundError("the job no longer exists")
        job_records.insert_items(db, job, items)

    @committing
    def ready(self, db: apsw.Connection, job: Job) -> Job:
        """Queue the job for the workers once all items were appended. From then on it survives a crash.

        Raises:
            NotFoundError: the collection was dropped.
        """
        lease_records.release(db, job_records.lease(job), self.holder)
        queued = job_records.set_state(db, job, "queued")
        event = AuditEvent("submit_job", self.gallery.clock(), job.actor, job.collection_id, of=job.token)
        audit.record(db, event)
        return queued

    @committing
    def abandon(self, db: apsw.Connection, job: Job) -> None:
        """Delete a job whose upload was not completed."""
        job_records.delete(db, job)

    def job(self, collection: str, token: str) -> Job:
        """Return the job.

        Raises:
            NotFoundError: no such collection or job.
        """
        with self.ledger.snapshot() as db:
            return job_records.find(db, collection_records.find(db, collection).id, token)

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """Return at most `limit` jobs with ids greater than `after`, oldest first.

        Raises:
            NotFoundError: no such collection.
        """
        with self.ledger.snapshot() as db:
            return job_records.page(db, collection_records.find(db, collection).id, after, limit)

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """Return the number of items by status, without statuses that no item has."""
        return job_records.counts(self.ledger.reader(), job)

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """Return at most `limit` outcomes with numbers greater than `after`, in the order of the items."""
        return job_records.outcomes(self.ledger.reader(), job, after, limit)

    @committing
    def cancel(self, db: apsw.Connection, collection: str, token: str, *, actor: str | None = None) -> Job:
        """Cancel the job unless it is finished, and return it. Faces that it enrolled stay enrolled.

        Raises:
            NotFoundError: no such collection or job.
        """
        job = job_records.find(db, collection_records.find(db, collection).id, token)
        if job.finished_at is None:
            now = self.gallery.clock()
            job_records.finish(db, job, "cancelled", None, now)
            audit.record(db, AuditEvent("cancel_job", now, actor, job.collection_id, of=job.token))
        return job_records.find(db, job.collection_id, token)

    @erasing
    def remove_subject(self, db: apsw.Connection, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject as `Gallery.remove_subject` does, and its pending items.

        Raises:
            NotFoundError: no such collection; or no such subject, and no pending item of it.
        """
        number, now = collection_records.find(db, collection).id, self.gallery.clock()
        pending = job_records.erase_items(db, number, key)
        try:
            return remove_subjects(db, number, subject_records.ids_of_key(db, number, key), now, actor)
        except NotFoundError:
            if not pending:
                raise
            receipt = erasure_records.remove_faces(db, number, [], subjects=1, now=now)
            # The subject has no id yet. The event refers to the receipt instead.
            audit.record(db, AuditEvent("erase", now, actor, number, of=receipt.token))
            return receipt


class BulkEnrolmentWorker(GalleryComponent):
    """Works on one bulk job at a time. No two workers of any process work on the same job."""

    @committing
    def claim(self, db: apsw.Connection, postponed: Container[int] = ()) -> Job | None:
        """Take the lease of the oldest job that no other worker has and whose id is not in `postponed`; return the job.

        None where there is none.
        """
        now = self.gallery.clock()
        job_records.delete_finished(db, now, KEEP_S)
        for job in job_records.unfinished(db):
            if job.id in postponed or is_locked(db, job.collection_id):  # another process may have the key
                continue
            if not job_records.has_lease(db, job):
                problem = "a backup was restored before the job was done; submit it again"
                job_records.finish(db, job, "failed", problem, now)
            elif lease_records.take(db, job_records.lease(job), self.holder, now, LEASE_S):
                if job.state != "receiving":
                    return job_records.set_state(db, job, "running")
                job_records.delete(db, job)  # the process that received it has died
        return None

    @committing
    def keep(self, db: apsw.Connection, job: Job) -> bool:
        """Renew the lease; False where the job is finished or another worker's."""
        return lease_records.renew(db, job_records.lease(job), self.holder, self.gallery.clock(), LEASE_S)

    @committing
    def release(self, db: apsw.Connection, job: Job) -> None:
        """Release the lease."""
        lease_records.release(db, job_records.lease(job), self.holder)

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """Return the next batch of items, all of one kind; at most `pictures` images."""
        batch: list[Item] = []
        size = 0
        with self.ledger.snapshot() as db, closing(job_records.pending(db, job)) as items:
            for item in items:
                limit = pictures if item.kind == "picture" else MAX_ROWS
                if batch and (item.kind != batch[0].kind or len(batch) == limit or size > MAX_BYTES):
                    break
                batch.append(item)
                size += len(item.data)
        return batch

    @committing
    def enrol(self, db: apsw.Connection, job: Job, results: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """Enrol faces that the pipeline `fingerprint` found; False if the job is finished or another worker's.

        Items that are no longer pending, because their subject was erased, are skipped.

        Raises:
            ConflictError: the collection belongs to another pipeline.
        """
        now = self.gallery.clock()
        if not lease_records.renew(db, job_records.lease(job), self.holder, now, LEASE_S):
            return False
        check_fingerprint(collection_records.find(db, job.collection), fingerprint)
        pending = job_records.still_pending(db, job, [result.item.number for result in results])
        results = [result for result in results if result.item.number in pending]
        remove_expired_among(db, job.collection_id, {result.item.subject for result in results if result.faces}, now)
        for result in results:
            if result.faces and (properties := result.item.properties) is not None:
                subject_records.upsert(db, job.collection_id, result.item.subject, **properties.__dict__, now=now)
        enrolled = face_records.insert(
            db, job.collection_id, [face for result in results for face in result.faces], now
        )
        if ids := [face.id for face in enrolled]:
            subjects = face_records.subjects_of(db, ids)
            audit.record(db, AuditEvent("enrol", now, job.actor, job.collection_id, subjects, ids))
        tokens = iter([face.token for face in enrolled])
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
    def finish(self, db: apsw.Connection, job: Job, state: JobResult, problem: str | None = None) -> None:
        """Finish the job and delete its items, unless it is another worker's now.

        A job that is done has failed if all its items failed.
        """
        now = self.gallery.clock()
        if not lease_records.renew(db, job_records.lease(job), self.holder, now, LEASE_S):
            return
        if state == "done" and job_records.counts(db, job).keys() == {"failed"}:
            state, problem = "failed", ALL_FAILED
        job_records.finish(db, job, state, problem, now)
