"""Bulk jobs: many faces, sent at once and enrolled in the background, each exactly once.

What was sent lies in the ledger until it is enrolled, and leaves it in the transaction that enrols it. So a process can
die at any moment and another goes on; who is erased meanwhile is erased here, too, by the same transaction.

One process works on a job: who holds its lease. The row of the lease is made with the job and goes when that ends. A
restored ledger has no leases: a job that waits in it is over, since who was erased after the backup may be in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Mapping, Sequence
from contextlib import closing

import apsw

from index.embedded.audit import log as audit
from index.embedded.audit.entries import Act
from index.embedded.encryption.data_keys import is_locked
from index.embedded.gallery import EmbeddedGallery, remove_lapsed, remove_subjects
from index.embedded.store import collection_records, erasure_records, face_records, job_records, subject_records
from index.embedded.store.ledger import Change, committing
from index.errors import NotFoundError
from index.types import Item, ItemStatus, Job, JobResult, Outcome, ProcessedItem, Receipt

KEEP_S = 7 * 86_400.0  # how long outcomes can be asked for
ALL_FAILED = "every item failed; its own problem says why"

# Of one batch: rows, and bytes beyond which no more are read.
MOST_ROWS, MOST_BYTES = 2048, 4 * 2**20


class Jobs:
    """The jobs of a gallery, for those who send them and ask for them."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger
        self._holder = secrets.token_hex(16)

    @committing
    def begin(self, collection: str, settings: Mapping[str, object], *, actor: str | None = None) -> Change[Job]:
        """A new job, that is not worked on before `ready`; `actor` as in `Gallery`, also of what it enrols.

        Raises:
            NotFoundError: no such collection.
        """

        def write(db: apsw.Connection) -> Job:
            found = collection_records.find(db, collection)
            Act("submit_job", self._gallery.clock(), actor)  # refuses what may be a name
            return job_records.insert(db, found.id, settings, self._holder, self._gallery.clock(), actor)

        return self._gallery.change(write)

    @committing
    def append(self, job: Job, items: Sequence[Item | Outcome]) -> Change[None]:
        """More of what was sent; an Outcome is of what cannot be enrolled. Nothing is kept before `ready`.

        Raises:
            NotFoundError: the collection was dropped. InvalidError: see `job_records.check_item`.
        """

        def write(db: apsw.Connection) -> None:
            if not job_records.renew_lease(db, job, self._holder, self._gallery.clock()):
                raise NotFoundError("the job is gone")
            job_records.insert_items(db, job, items)

        return self._gallery.change(write)

    @committing
    def ready(self, job: Job) -> Change[Job]:
        """All was sent: from now on it is sure to be done.

        Raises:
            NotFoundError: the collection was dropped.
        """

        def write(db: apsw.Connection) -> Job:
            job_records.release_lease(db, job, self._holder)
            queued = job_records.set_state(db, job, "queued")
            audit.note(db, Act("submit_job", self._gallery.clock(), job.actor, job.collection_id, of=job.token))
            return queued

        return self._gallery.change(write)

    @committing
    def abandon(self, job: Job) -> Change[None]:
        """It was not sent to its end: as if there had been none."""
        return self._gallery.change(lambda db: job_records.delete(db, job))

    def job(self, collection: str, token: str) -> Job:
        """The job.

        Raises:
            NotFoundError.
        """
        with self._ledger.snapshot() as db:
            return job_records.find(db, collection_records.find(db, collection).id, token)

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """In the order they were sent, those whose id is greater than `after`.

        Raises:
            NotFoundError: no such collection.
        """
        with self._ledger.snapshot() as db:
            return job_records.page(db, collection_records.find(db, collection).id, after, limit)

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """How many items there are of each status; of others there are none."""
        return job_records.counts(self._ledger.reader(), job)

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """In the order they were sent, those whose number is greater than `after`."""
        return job_records.outcomes(self._ledger.reader(), job, after, limit)

    @committing
    def cancel(self, collection: str, token: str, *, actor: str | None = None) -> Change[Job]:
        """Enrol no more of it; what is enrolled stays. A job that is over stays as it is.

        Raises:
            NotFoundError.
        """

        def write(db: apsw.Connection) -> Job:
            found = job_records.find(db, collection_records.find(db, collection).id, token)
            if found.finished_at is None:
                now = self._gallery.clock()
                job_records.finish(db, found, "cancelled", None, now)
                audit.note(db, Act("cancel_job", now, actor, found.collection_id, of=found.token))
            return job_records.find(db, found.collection_id, token)

        return self._gallery.change(write)

    @committing
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Change[Receipt]:
        """As the gallery's; also where the subject is not enrolled yet, and something of it waits in a job.

        Raises:
            NotFoundError: there is nothing of it.
        """

        def write(db: apsw.Connection) -> Receipt:
            found, now = collection_records.find(db, collection), self._gallery.clock()
            waiting = job_records.erase_items(db, found.id, key)
            try:
                return remove_subjects(db, found.id, subject_records.ids_of_key(db, found.id, key), now, actor)
            except NotFoundError:
                if not waiting:
                    raise
                made = erasure_records.remove_faces(db, found.id, [], subjects=1, now=now)
                # Its receipt names what was erased; the subject has no number yet.
                audit.note(db, Act("erase", now, actor, found.id, of=made.token))
                return made

        return self._gallery.erasure(write)


class Worker:
    """Who does jobs: one at a time, of all processes one at a job."""

    def __init__(self, gallery: EmbeddedGallery):
        self._gallery = gallery
        self._ledger = gallery.ledger
        self._holder = secrets.token_hex(16)

    def claim(self, postponed: Container[int] = ()) -> Job | None:
        """The oldest job that nobody else works on and whose id is not in `postponed`; this worker's from now on."""
        return self._ledger.write(lambda db: self._claim(db, postponed))

    def keep(self, job: Job) -> bool:
        """Say that this worker is at it still; False where the job is over, or another's."""
        return self._ledger.write(lambda db: job_records.renew_lease(db, job, self._holder, self._gallery.clock()))

    def release(self, job: Job) -> None:
        """Let another go on with it."""
        self._ledger.write(lambda db: job_records.release_lease(db, job, self._holder))

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """The next items to enrol, all of one kind; of pictures at most `pictures`."""
        found: list[Item] = []
        size = 0
        with self._ledger.snapshot() as db, closing(job_records.pending(db, job)) as items:
            for item in items:
                most = pictures if item.kind == "picture" else MOST_ROWS
                if found and (item.kind != found[0].kind or len(found) == most or size > MOST_BYTES):
                    break
                found.append(item)
                size += len(item.data)
        return found

    def enrol(self, job: Job, found: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """Enrol these faces, that the pipeline `fingerprint` made; False where the job is over, or another's.

        What is no longer pending (its subject was erased) is left out.

        Raises:
            ConflictError: the collection is another pipeline's.
        """

        def write(db: apsw.Connection) -> bool:
            if not job_records.renew_lease(db, job, self._holder, self._gallery.clock()):
                return False
            collection_records.check_fingerprint(collection_records.find(db, job.collection), fingerprint)
            waiting = job_records.still_pending(db, job, [one.item.number for one in found])
            self._insert(db, job, [one for one in found if one.item.number in waiting])
            return True

        return self._ledger.write(write)

    def finish(self, job: Job, state: JobResult, problem: str | None = None) -> None:
        """The job is over; nothing of what was sent stays. Nothing happens where it is another's by now.

        One that is done, and of which every item failed, has failed.
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
            if job.id in postponed or is_locked(db, job.collection_id):  # until somebody has the key
                continue
            if not job_records.has_lease(db, job):
                problem = "a backup was restored before the job was done; send it again"
                job_records.finish(db, job, "failed", problem, now)
            elif job_records.take_lease(db, job, self._holder, now):
                if job.state != "receiving":
                    return job_records.set_state(db, job, "running")
                job_records.delete(db, job)  # whoever received it is dead
        return None

    def _insert(self, db: apsw.Connection, job: Job, found: Sequence[ProcessedItem]) -> None:
        now = self._gallery.clock()
        remove_lapsed(db, job.collection_id, {one.item.subject for one in found if one.faces}, now)
        for one in found:
            if one.faces and (properties := one.item.properties) is not None:
                subject_records.upsert(db, job.collection_id, one.item.subject, **properties.__dict__, now=now)
        made = face_records.insert(db, job.collection_id, [face for one in found for face in one.faces], now)
        if ids := [face.id for face in made]:
            audit.note(db, Act("enrol", now, job.actor, job.collection_id, audit.subjects_of(db, ids), ids))
        rest = iter(made)
        done = []
        for one in found:
            tokens = [next(rest).token for _ in one.faces]
            done.append(Outcome(one.item.number, one.outcome.status, {**one.outcome.result, "faces": tokens}))
        job_records.finish_items(db, job, done)
