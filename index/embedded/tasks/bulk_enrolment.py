"""Bulk jobs: many faces that are uploaded at once and enrolled in the background, each exactly once.

Items stay in the ledger until they are enrolled, and the transaction that enrols them deletes them. So a process can
die at any time and another continues; erasing a subject erases its pending items in the same transaction.

The process that holds a job's lease works on it. The lease row is created with the job and deleted when the job ends.
A restored ledger has no leases: a pending job in it fails, since its items may include subjects that were erased after
the backup.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Mapping, Sequence
from contextlib import closing

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import AuditEvent
from index.embedded.audit.erasure import remove_expired_among, remove_subjects
from index.embedded.encryption.data_keys import is_locked
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store import collection_records, erasure_records, face_records, job_records, subject_records
from index.embedded.store.ledger import Change, committing
from index.errors import NotFoundError
from index.types import Item, ItemStatus, Job, JobResult, Outcome, ProcessedItem, Receipt

KEEP_S = 7 * 86_400.0  # how long the outcomes of a finished job are kept
ALL_FAILED = "all items failed; see the problem of each item"

# Limits of one batch: rows, and bytes after which no more rows are read.
MAX_ROWS, MAX_BYTES = 2048, 4 * 2**20


class JobQueue:
    """Submit, list and cancel the bulk jobs of a gallery."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger
        self._holder = secrets.token_hex(16)

    @committing
    def begin(self, collection: str, settings: Mapping[str, object], *, actor: str | None = None) -> Change[Job]:
        """Create a job, which no worker takes before `ready`. `actor`, as in `Gallery`, is also that of its enrolments.

        Raises:
            NotFoundError: no such collection. InvalidError: the actor may be a name.
        """

        def write(db: apsw.Connection) -> Job:
            number, now = collection_records.find(db, collection).id, self._gallery.clock()
            AuditEvent("submit_job", now, actor)  # validates the actor
            return job_records.insert(db, number, settings, self._holder, now, actor)

        return self._gallery.change(write)

    @committing
    def append(self, job: Job, items: Sequence[Item | Outcome]) -> Change[None]:
        """Add items to the job; an Outcome is that of an item which cannot be enrolled.

        Raises:
            NotFoundError: the collection was dropped. InvalidError: see `job_records.check_item`.
        """

        def write(db: apsw.Connection) -> None:
            if not job_records.renew_lease(db, job, self._holder, self._gallery.clock()):
                raise NotFoundError("the job no longer exists")
            job_records.insert_items(db, job, items)

        return self._gallery.change(write)

    @committing
    def ready(self, job: Job) -> Change[Job]:
        """Queue the job for the workers once all items were appended. From then on it survives a crash.

        Raises:
            NotFoundError: the collection was dropped.
        """

        def write(db: apsw.Connection) -> Job:
            job_records.release_lease(db, job, self._holder)
            queued = job_records.set_state(db, job, "queued")
            event = AuditEvent("submit_job", self._gallery.clock(), job.actor, job.collection_id, of=job.token)
            audit.record(db, event)
            return queued

        return self._gallery.change(write)

    @committing
    def abandon(self, job: Job) -> Change[None]:
        """Delete a job whose upload was not completed."""
        return self._gallery.change(lambda db: job_records.delete(db, job))

    def job(self, collection: str, token: str) -> Job:
        """Return the job.

        Raises:
            NotFoundError: no such collection or job.
        """
        with self._ledger.snapshot() as db:
            return job_records.find(db, collection_records.find(db, collection).id, token)

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """Return at most `limit` jobs with ids greater than `after`, oldest first.

        Raises:
            NotFoundError: no such collection.
        """
        with self._ledger.snapshot() as db:
            return job_records.page(db, collection_records.find(db, collection).id, after, limit)

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """Return the number of items by status, without statuses that no item has."""
        return job_records.counts(self._ledger.reader(), job)

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """Return at most `limit` outcomes with numbers greater than `after`, in the order of the items."""
        return job_records.outcomes(self._ledger.reader(), job, after, limit)

    @committing
    def cancel(self, collection: str, token: str, *, actor: str | None = None) -> Change[Job]:
        """Cancel the job unless it is finished, and return it. What it enrolled stays enrolled.

        Raises:
            NotFoundError: no such collection or job.
        """

        def write(db: apsw.Connection) -> Job:
            job = job_records.find(db, collection_records.find(db, collection).id, token)
            if job.finished_at is None:
                now = self._gallery.clock()
                job_records.finish(db, job, "cancelled", None, now)
                audit.record(db, AuditEvent("cancel_job", now, actor, job.collection_id, of=job.token))
            return job_records.find(db, job.collection_id, token)

        return self._gallery.change(write)

    @committing
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Change[Receipt]:
        """Erase the subject as `Gallery.remove_subject` does, and its pending items.

        Raises:
            NotFoundError: no such collection; or no such subject, and no pending item of it.
        """

        def write(db: apsw.Connection) -> Receipt:
            number, now = collection_records.find(db, collection).id, self._gallery.clock()
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

        return self._gallery.erasure(write)


class BulkEnrolmentWorker:
    """Works on one bulk job at a time. No two workers of any process work on the same job."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger
        self._holder = secrets.token_hex(16)

    def claim(self, postponed: Container[int] = ()) -> Job | None:
        """Take the lease of the oldest job that no other worker has and whose id is not in `postponed`; return the job.

        None where there is none.
        """
        return self._ledger.write(lambda db: self._claim(db, postponed))

    def keep(self, job: Job) -> bool:
        """Renew the lease; False where the job is finished or another worker's."""
        return self._ledger.write(lambda db: job_records.renew_lease(db, job, self._holder, self._gallery.clock()))

    def release(self, job: Job) -> None:
        """Release the lease."""
        self._ledger.write(lambda db: job_records.release_lease(db, job, self._holder))

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """Return the next batch of items, all of one kind; at most `pictures` images."""
        batch: list[Item] = []
        size = 0
        with self._ledger.snapshot() as db, closing(job_records.pending(db, job)) as items:
            for item in items:
                limit = pictures if item.kind == "picture" else MAX_ROWS
                if batch and (item.kind != batch[0].kind or len(batch) == limit or size > MAX_BYTES):
                    break
                batch.append(item)
                size += len(item.data)
        return batch

    def enrol(self, job: Job, results: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """Enrol faces that the pipeline `fingerprint` found; False where the job is finished or another worker's.

        Items that are no longer pending, because their subject was erased, are skipped.

        Raises:
            ConflictError: the collection belongs to another pipeline.
        """

        def write(db: apsw.Connection) -> bool:
            if not job_records.renew_lease(db, job, self._holder, self._gallery.clock()):
                return False
            collection_records.check_fingerprint(collection_records.find(db, job.collection), fingerprint)
            pending = job_records.still_pending(db, job, [result.item.number for result in results])
            self._insert(db, job, [result for result in results if result.item.number in pending])
            return True

        return self._ledger.write(write)

    def finish(self, job: Job, state: JobResult, problem: str | None = None) -> None:
        """Finish the job and delete its items, unless it is another worker's now.

        A job that is done has failed if all its items failed.
        """

        def write(db: apsw.Connection) -> None:
            now = self._gallery.clock()
            if not job_records.renew_lease(db, job, self._holder, now):
                return
            if state == "done" and job_records.counts(db, job).keys() == {"failed"}:
                job_records.finish(db, job, "failed", ALL_FAILED, now)
            else:
                job_records.finish(db, job, state, problem, now)

        self._ledger.write(write)

    def _claim(self, db: apsw.Connection, postponed: Container[int]) -> Job | None:
        now = self._gallery.clock()
        job_records.delete_finished(db, now, KEEP_S)
        for job in job_records.unfinished(db):
            if job.id in postponed or is_locked(db, job.collection_id):  # another process may have the key
                continue
            if not job_records.has_lease(db, job):
                problem = "a backup was restored before the job was done; submit it again"
                job_records.finish(db, job, "failed", problem, now)
            elif job_records.take_lease(db, job, self._holder, now):
                if job.state != "receiving":
                    return job_records.set_state(db, job, "running")
                job_records.delete(db, job)  # the process that received it has died
        return None

    def _insert(self, db: apsw.Connection, job: Job, results: Sequence[ProcessedItem]) -> None:
        """Enrol the faces, record them in the audit log, and store the outcome of each item."""
        now = self._gallery.clock()
        remove_expired_among(db, job.collection_id, {result.item.subject for result in results if result.faces}, now)
        for result in results:
            if result.faces and (properties := result.item.properties) is not None:
                subject_records.upsert(db, job.collection_id, result.item.subject, **properties.__dict__, now=now)
        enrolled = face_records.insert(
            db, job.collection_id, [face for result in results for face in result.faces], now
        )
        if ids := [face.id for face in enrolled]:
            subjects = audit.subjects_of(db, ids)
            audit.record(db, AuditEvent("enrol", now, job.actor, job.collection_id, subjects, ids))
        tokens = iter([face.token for face in enrolled])
        outcomes = []
        for result in results:
            faces = [next(tokens) for _ in result.faces]
            details = {**result.outcome.result, "faces": faces}
            outcomes.append(Outcome(result.item.number, result.outcome.status, details))
        job_records.finish_items(db, job, outcomes)
