"""Bulk enrolment: jobs are accepted from requests, and run in the background by one task of each process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import get_args

import numpy as np
import structlog

from app.background_tasks import lease_renewal, wait_for_event
from app.errors import Conflict, NoFace, NotFound, NotReady, UnknownModel, Unprocessable, VestibuleError
from app.gallery.access import GalleryAccess
from app.gallery.bulk.schemas import BulkParams, JobInfo, JobItem, JobItemPage, JobPage
from app.gallery.bulk.upload import Upload, failed_item
from app.gallery.embedding_pipeline import TRANSIENT, ImageEmbedder, keeps_crops, select_faces
from app.gallery.schemas import EnrolParams, ErasureReceipt
from index.errors import CorruptError, InvalidError
from index.protocol import LEASE_S, Storage
from index.types import Item, ItemStatus, Job, NewFace, Outcome, ProcessedItem
from index.validation import check_future, check_item, read_timestamp, unit_vectors

log = structlog.get_logger()

POLL_S = 1.0
# Seconds: the longest pause of a failing job, and the time after a pause at which its failures are forgotten.
MAX_PAUSE_S, FORGET_S = 30.0, 600.0
# Raised while a damaged row is read.
UNREADABLE = (ValueError, TypeError, KeyError, CorruptError)
BATCH_SIZE = 8  # images; few, so that requests are served in between
# Limits of one commit while a job is received: items, and bytes beyond which no more items are added.
CHUNK_ITEMS, CHUNK_BYTES = 1024, 4 * 2**20


class JobBackoff:
    """Pauses jobs that fail: for POLL_S, and after each further failure for twice as long, up to MAX_PAUSE_S.

    `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pauses: dict[int, tuple[float, float]] = {}  # job id -> end and length of its pause

    def paused(self) -> set[int]:
        """Return the ids of the paused jobs. Forgets jobs long after their pause: they ended, or run elsewhere."""
        now = self._clock()
        self._pauses = {job: pause for job, pause in self._pauses.items() if now < pause[0] + FORGET_S}
        return {job for job, (end, _) in self._pauses.items() if now < end}

    def pause(self, job: int) -> None:
        """Pause the job, which has just failed."""
        _, last = self._pauses.get(job, (0.0, 0.0))
        length = min(MAX_PAUSE_S, max(POLL_S, 2 * last))
        self._pauses[job] = (self._clock() + length, length)

    def reset(self, job: int) -> None:
        """Forget the failures of the job, which has made progress."""
        self._pauses.pop(job, None)


class BulkJobs(GalleryAccess):
    """Accepts and runs the bulk jobs of one gallery."""

    def __init__(self, storage: Storage, embedder: ImageEmbedder):
        super().__init__(storage, embedder)
        self._jobs = storage.jobs
        self._worker = storage.job_worker
        self._submitted = asyncio.Event()
        self._backoff = JobBackoff()

    async def submit(self, name: str, upload: Upload, params: BulkParams, actor: str | None) -> JobInfo:
        """Store the upload as a job and return it; it is durable when this returns.

        Raises:
            NotFound: no such collection. Conflict: its vectors are of another pipeline. See `Upload.items`.
        """
        collection = await self._collection(name)
        if params.fingerprint not in (None, collection.fingerprint):
            raise Conflict(f"{name!r} holds vectors of {collection.fingerprint}, not of {params.fingerprint}")
        job = await self._commit(self._jobs.begin.planned(name, params.model_dump(), actor=actor))
        try:
            chunks = _chunks(upload.items(collection.dimensions, vectors=params.fingerprint is not None))
            while chunk := await self._executors.run_cpu(lambda: next(chunks, None), is_long=True):
                await self._commit(self._jobs.append.planned(job, chunk))
            job = await self._commit(self._jobs.ready.planned(job))
        except BaseException:  # also when the client disconnects
            await self._commit(self._jobs.abandon.planned(job))
            raise
        self._submitted.set()
        return await self._read(lambda: self._job_info(job))

    async def job(self, collection: str, token: str) -> JobInfo:
        """Return the job and its progress.

        Raises:
            NotFound.
        """
        return await self._read(lambda: self._job_info(self._jobs.job(collection, token)))

    async def list_jobs(self, collection: str, after: int, limit: int) -> JobPage:
        """Return a page of the collection's jobs.

        Raises:
            NotFound: no such collection.
        """

        def read() -> JobPage:
            jobs = self._jobs.list_jobs(collection, after, limit)
            data = [self._job_info(job) for job in jobs if job.state != "receiving"]
            return JobPage(data=data, next=jobs[-1].id if len(jobs) == limit else None)

        return await self._read(read)

    async def items(self, collection: str, token: str, after: int, limit: int) -> JobItemPage:
        """Return a page of the outcomes of the job's items.

        Raises:
            NotFound.
        """

        def read() -> JobItemPage:
            rows = self._jobs.outcomes(self._jobs.job(collection, token), after, limit)
            data = [JobItem(index=row.number, status=row.status, **row.result) for row in rows]
            return JobItemPage(data=data, next=rows[-1].number if len(rows) == limit else None)

        return await self._read(read)

    async def cancel(self, collection: str, token: str, actor: str | None) -> JobInfo:
        """Cancel the pending items of the job and return it; a finished job does not change.

        Raises:
            NotFound.
        """
        job = await self._commit(self._jobs.cancel.planned(collection, token, actor=actor))
        return await self._read(lambda: self._job_info(job))

    async def remove_subject(self, collection: str, key: str, actor: str | None) -> ErasureReceipt:
        """Erase the subject with all its faces and the items that wait in jobs.

        Raises:
            NotFound.
        """
        return await self._erase(self._jobs.remove_subject.planned(collection, key, actor=actor))

    async def work(self) -> None:
        """Run one job after the other, until cancelled.

        A job that fails, for example because its model is not ready, is retried later; the next jobs run meanwhile.
        """
        while True:
            self._submitted.clear()
            job: Job | None = None
            try:
                job = await self._run_background(partial(self._worker.claim, self._backoff.paused()))
                if job is not None:
                    await self._run(job)
            except Exception:
                # Such as a full queue or a full disk: the pending items stay in the job.
                log.exception("bulk_failed", job=job and job.token)
                if job is not None:
                    self._backoff.pause(job.id)
            if job is None:
                await wait_for_event(self._submitted, POLL_S)

    async def _run(self, job: Job) -> None:
        try:
            async with lease_renewal(lambda: self._run_background(lambda: self._worker.keep(job)), LEASE_S / 4):
                await self._enrol_all(job)
        except (Conflict, UnknownModel) as error:
            await self._run_background(partial(self._worker.finish, job, "failed", error.detail))
        except NotFound:  # the collection was dropped, and the job with it
            pass
        except UNREADABLE:  # a damaged row, which would fail at each retry
            log.exception("bulk_job_unreadable", job=job.token)
            problem = "the stored items cannot be read; send them again"
            await self._run_background(partial(self._worker.finish, job, "failed", problem))
        finally:
            await self._run_background(lambda: self._worker.release(job))

    async def _enrol_all(self, job: Job) -> None:
        while items := await self._run_background(lambda: self._worker.pending(job, BATCH_SIZE)):
            if items[0].kind == "vector":
                dimensions = (await self._collection(job.collection)).dimensions
                processed = [self._process_vector(item, dimensions) for item in items]
                fingerprint = job.settings["fingerprint"]
            else:
                processed, fingerprint = await self._process_images(job, items)
            try:
                if not await self._run_background(partial(self._worker.enrol, job, processed, fingerprint)):
                    return  # cancelled, or another process has the lease
                self._backoff.reset(job.id)
            except Conflict:
                if items[0].kind == "vector":
                    raise
                # The collection was re-embedded meanwhile: the images are embedded again.
        await self._run_background(lambda: self._worker.finish(job, "done"))

    async def _process_images(self, job: Job, items: Sequence[Item]) -> tuple[list[ProcessedItem], str]:
        """Return the faces of the images, without images that had a temporary error, and the pipeline's fingerprint.

        Raises:
            NotReady: all images had a temporary error.
        """
        collection = await self._collection(job.collection)
        pipeline = await self._embedder.collection_pipeline(collection)
        params = EnrolParams(max_faces=job.settings["max_faces"], quality_gate=job.settings["quality_gate"])

        async def process(item: Item) -> ProcessedItem | None:
            try:
                self._check(item)
                faces = await self._embedder.embed_image(pipeline, item.data)
                if not faces:
                    raise NoFace("no face was found")
            except TRANSIENT:
                return None
            except InvalidError as error:
                return ProcessedItem(item, failed_item(item.number, Unprocessable(str(error))))
            except VestibuleError as error:
                return ProcessedItem(item, failed_item(item.number, error))
            except Exception:
                log.exception("bulk_item_failed", job=job.token, index=item.number)
                return ProcessedItem(item, failed_item(item.number, VestibuleError()))
            accepted, rejected = select_faces(item.number, faces, params)
            reasons = list(dict.fromkeys(reason for face in rejected for reason in face.reasons))
            new_faces = await self._embedder.new_faces(item.subject, accepted, keep_crops=keeps_crops(collection))
            status: ItemStatus = "enrolled" if new_faces else "rejected"
            return ProcessedItem(item, Outcome(item.number, status, {"reasons": reasons}), new_faces)

        processed = [result for result in await asyncio.gather(*map(process, items)) if result is not None]
        if not processed:
            raise NotReady("no image of the job could be embedded")
        return processed, collection.fingerprint

    def _process_vector(self, item: Item, dimensions: int) -> ProcessedItem:
        try:
            self._check(item)
            (vector,) = unit_vectors([np.frombuffer(item.data, "<f4")], dimensions)
        except ValueError as error:  # an InvalidError, or a number of bytes that is not a multiple of 4
            return ProcessedItem(item, failed_item(item.number, Unprocessable(str(error))))
        return ProcessedItem(item, Outcome(item.number, "enrolled"), [NewFace(item.subject, vector)])

    def _check(self, item: Item) -> None:
        """Check an item again: an older version may have accepted it, or it may have expired since.

        Raises:
            InvalidError: if it is not valid, or its subject has expired.
        """
        check_item(item)
        check_future(item.properties.expires_at if item.properties else None, self._gallery.clock())

    def _job_info(self, job: Job) -> JobInfo:
        counts = self._jobs.counts(job)
        return JobInfo(
            id=job.token,
            collection=job.collection,
            state=job.state,
            problem=job.problem,
            created_at=read_timestamp(job.created_at),
            finished_at=None if job.finished_at is None else read_timestamp(job.finished_at),
            total=sum(counts.values()),
            items={status: counts.get(status, 0) for status in get_args(ItemStatus)},
        )


def _chunks(items: Iterator[Item | Outcome]) -> Iterator[list[Item | Outcome]]:
    """Group the items into lists that are committed at once."""
    chunk: list[Item | Outcome] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.data) if isinstance(item, Item) else 0
        if len(chunk) == CHUNK_ITEMS or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
