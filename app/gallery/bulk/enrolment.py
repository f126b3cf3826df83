"""Bulk enrolment: jobs are taken in, told of, and done in the background by one task of each process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar, get_args

import numpy as np
import structlog

from app.background_tasks import kept, wait
from app.errors import Conflict, NoFace, NotFound, NotReady, UnknownModel, Unprocessable, VestibuleError
from app.gallery.bulk.schemas import BulkParams, JobInfo, JobItem, JobItemPage, JobPage
from app.gallery.bulk.upload import Upload, refused
from app.gallery.embedding_pipeline import TRANSIENT, Pipeline, described, gated, keeps_crops
from app.gallery.schemas import EnrolParams, ErasureReceipt, moment
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.job_records import LEASE_S, Found, Item, Job, Outcome, Status, check_item
from index.embedded.store.records import NewFace
from index.embedded.tasks.bulk_enrolment import Jobs, Worker
from index.errors import CorruptError, InvalidError
from index.validation import check_future, unit_vectors

T = TypeVar("T")

log = structlog.get_logger()

POLL_S = 1.0
# The longest pause of a job that cannot go on, and how long after its pause it is forgotten that it paused.
MOST_PAUSE_S, FORGOTTEN_S = 30.0, 600.0
# What is raised for a row that is not what was written.
UNREADABLE = (ValueError, TypeError, KeyError, CorruptError)
# At once, so that those who wait for an answer get theirs in between.
PICTURES = 8
# Of what is written down at once while a job is taken in: items, and bytes beyond which no more are read.
MOST_ITEMS, MOST_BYTES = 1024, 4 * 2**20


class Postponed:
    """Ids of jobs that failed for the moment. Each pauses for POLL_S, and after each further failure for twice as long,
    up to MOST_PAUSE_S. `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[int, tuple[float, float]] = {}  # id -> when the pause ends, and its length

    def current(self) -> set[int]:
        """Ids of the jobs whose pause has not ended. Forgets those that were not tried long after theirs: they are
        over, or another process does them.
        """
        now = self._clock()
        self._pauses = {job: pause for job, pause in self._pauses.items() if now < pause[0] + FORGOTTEN_S}
        return {job for job, (until, _) in self._pauses.items() if now < until}

    def add(self, job: int) -> None:
        """The job has failed now."""
        _, last = self._pauses.get(job, (0.0, 0.0))
        pause = min(MOST_PAUSE_S, max(POLL_S, 2 * last))
        self._pauses[job] = (self._clock() + pause, pause)

    def remove(self, job: int) -> None:
        """The job goes on."""
        self._pauses.pop(job, None)


class BulkJobs:
    """The bulk jobs of one gallery."""

    def __init__(self, pipeline: Pipeline, gallery: EmbeddedGallery):
        self._pipeline = pipeline
        self._ask, self._work = pipeline.ask, pipeline.work
        self._gallery = gallery
        self._jobs = Jobs(gallery)
        self._worker = Worker(gallery)
        self._sent = asyncio.Event()
        self._postponed = Postponed()

    async def submit(self, collection: str, upload: Upload, params: BulkParams, actor: str | None) -> JobInfo:
        """A job that is sure to be done once this returns; `actor` as in `Galleries`.

        Raises:
            NotFound: no such collection. Conflict: its vectors are another pipeline's. See `Upload.items`.
        """
        found = await self._ask(lambda: self._gallery.collection(collection))
        if params.fingerprint not in (None, found.fingerprint):
            raise Conflict(f"{collection!r} holds vectors of {found.fingerprint}, not of {params.fingerprint}")
        commit = self._pipeline.commit
        job = await commit(self._jobs.begin.planned(collection, params.model_dump(), actor=actor), _itself)
        try:
            chunks = _chunks(upload.items(found.dimensions, vectors=params.fingerprint is not None))
            while chunk := await self._pipeline.executors.run_cpu(lambda: next(chunks, None), is_long=True):
                await commit(self._jobs.append.planned(job, chunk), _itself)
            job = await commit(self._jobs.ready.planned(job), _itself)
        except BaseException:  # also of a client that left
            await commit(self._jobs.abandon.planned(job), _itself)
            raise
        self._sent.set()
        return await self._ask(lambda: self._described(job))

    async def job(self, collection: str, token: str) -> JobInfo:
        """How far the job is.

        Raises:
            NotFound.
        """
        return await self._ask(lambda: self._described(self._jobs.job(collection, token)))

    async def list_jobs(self, collection: str, after: int, limit: int) -> JobPage:
        """A page of the collection's jobs.

        Raises:
            NotFound: no such collection.
        """

        def read() -> JobPage:
            found = self._jobs.list_jobs(collection, after, limit)
            data = [self._described(job) for job in found if job.state != "receiving"]
            return JobPage(data=data, next=found[-1].id if len(found) == limit else None)

        return await self._ask(read)

    async def items(self, collection: str, token: str, after: int, limit: int) -> JobItemPage:
        """What became of each item, by page.

        Raises:
            NotFound.
        """

        def read() -> JobItemPage:
            found = self._jobs.outcomes(self._jobs.job(collection, token), after, limit)
            data = [JobItem(index=one.number, status=one.status, **one.result) for one in found]
            return JobItemPage(data=data, next=found[-1].number if len(found) == limit else None)

        return await self._ask(read)

    async def cancel(self, collection: str, token: str, actor: str | None) -> JobInfo:
        """Enrol no more of it; a job that is over stays as it is.

        Raises:
            NotFound.
        """
        job = await self._pipeline.commit(self._jobs.cancel.planned(collection, token, actor=actor), _itself)
        return await self._ask(lambda: self._described(job))

    async def remove_subject(self, collection: str, key: str, actor: str | None) -> ErasureReceipt:
        """Erase the subject and all its faces, those that wait in jobs among them; `actor` as in `Galleries`.

        Raises:
            NotFound.
        """
        change = self._jobs.remove_subject.planned(collection, key, actor=actor)
        return await self._pipeline.commit(change, described)

    async def work(self) -> None:
        """Do one job after the other, until cancelled.

        A job that cannot go on, as while its model is not ready, is tried again later; those after it are done first.
        """
        while True:
            self._sent.clear()
            try:
                job = await self._work(partial(self._worker.claim, self._postponed.current()))
            except Exception:
                log.exception("bulk_failed")
                job = None
            if job is None:
                await wait(self._sent, POLL_S)
                continue
            try:
                await self._do(job)
            except Exception:
                # A full queue or a full disk, too: the items that are not enrolled yet are kept.
                log.exception("bulk_failed", job=job.token)
                self._postponed.add(job.id)

    async def _do(self, job: Job) -> None:
        try:
            async with kept(lambda: self._work(lambda: self._worker.keep(job)), LEASE_S / 4):
                await self._enrol_all(job)
        except (Conflict, UnknownModel) as error:
            problem = error.detail
            await self._work(lambda: self._worker.finish(job, "failed", problem))
        except NotFound:  # the collection was dropped, and the job with it
            pass
        except UNREADABLE:  # a damaged row, which would fail each time and keep all later jobs waiting
            log.exception("bulk_job_unreadable", job=job.token)
            problem = "what was sent cannot be read back; send it again"
            await self._work(lambda: self._worker.finish(job, "failed", problem))
        finally:
            await self._work(lambda: self._worker.release(job))

    async def _enrol_all(self, job: Job) -> None:
        while items := await self._work(lambda: self._worker.pending(job, PICTURES)):
            if items[0].kind == "vector":
                dimensions = (await self._ask(lambda: self._gallery.collection(job.collection))).dimensions
                found = [self._given(item, dimensions) for item in items]
                fingerprint = job.settings["fingerprint"]
            else:
                found, fingerprint = await self._pictured(job, items)
            try:
                if not await self._work(partial(self._worker.enrol, job, found, fingerprint)):
                    return  # cancelled, or another process has it
                self._postponed.remove(job.id)  # it goes on: the next pause is a short one again
            except Conflict:
                if items[0].kind == "vector":
                    raise
                # The collection was embedded anew meanwhile: the pictures are looked at once more.
        await self._work(lambda: self._worker.finish(job, "done"))

    async def _pictured(self, job: Job, items: Sequence[Item]) -> tuple[list[Found], str]:
        """What is in the pictures, and the fingerprint of what saw it.

        Raises:
            Overloaded, DeadlineExceeded, NotReady: of all of them nothing could be seen.
        """
        collection = await self._ask(lambda: self._gallery.collection(job.collection))
        sight = await self._pipeline.model(collection)
        params = EnrolParams(max_faces=job.settings["max_faces"], quality_gate=job.settings["quality_gate"])

        async def one(item: Item) -> Found | None:
            try:
                self._check(item)
                seen = await self._pipeline.seen(sight, item.data)
                if not seen:
                    raise NoFace("no face was found")
            except TRANSIENT:
                return None
            except VestibuleError as error:
                return Found(item, refused(item.number, error))
            except Exception:
                log.exception("bulk_item_failed", job=job.token, index=item.number)
                return Found(item, refused(item.number, VestibuleError()))
            good, rejected = gated(item.number, seen, params)
            reasons = list(dict.fromkeys(reason for face in rejected for reason in face.reasons))
            faces = await self._pipeline.new_faces(item.subject, good, keep_crops=keeps_crops(collection))
            return Found(item, Outcome(item.number, "enrolled" if faces else "rejected", {"reasons": reasons}), faces)

        found = [answer for answer in await asyncio.gather(*map(one, items)) if answer is not None]
        if not found:
            raise NotReady("no picture of the job could be looked at")
        return found, collection.fingerprint

    def _given(self, item: Item, dimensions: int) -> Found:
        """Of a vector that was sent."""
        try:
            self._check(item)
            (vector,) = unit_vectors([np.frombuffer(item.data, "<f4")], dimensions)
        except VestibuleError as error:
            return Found(item, refused(item.number, error))
        except ValueError as error:  # an InvalidError, or a number of bytes that no vector has
            return Found(item, refused(item.number, Unprocessable(str(error))))
        return Found(item, Outcome(item.number, "enrolled"), [NewFace(item.subject, vector)])

    def _check(self, item: Item) -> None:
        """Refuse now what was accepted by an older version, or has expired while it waited.

        Raises:
            Unprocessable.
        """
        try:
            check_item(item)
            check_future(item.properties.expires_at if item.properties else None, self._gallery.clock())
        except InvalidError as error:
            raise Unprocessable(str(error)) from error

    def _described(self, job: Job) -> JobInfo:
        counts = self._jobs.counts(job)
        return JobInfo(
            id=job.token,
            collection=job.collection,
            state=job.state,
            problem=job.problem,
            created_at=moment(job.created_at),
            finished_at=None if job.finished_at is None else moment(job.finished_at),
            total=sum(counts.values()),
            items={status: counts.get(status, 0) for status in get_args(Status)},
        )


def _itself(made: T) -> T:
    """Return the argument, where the result of a commit needs no translation."""
    return made


def _chunks(items: Iterator[Item | Outcome]) -> Iterator[list[Item | Outcome]]:
    """The items in pieces of a bearable size."""
    chunk: list[Item | Outcome] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.data) if isinstance(item, Item) else 0
        if len(chunk) == MOST_ITEMS or size > MOST_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
