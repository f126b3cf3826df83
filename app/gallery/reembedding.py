"""Re-embed collections in the background, by one task of each process.

A re-embedding starts only at a caller's request: if weights differ from a collection's, either may be wrong, and an
operator's mistake in a folder of weights must not rewrite a gallery. Until then the collection refuses the changed
embedder and keeps its vectors.

The new vectors are computed from the stored crops, WebP of 112x112 pixels that were aligned at enrolment; neither the
detector nor the alignment runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from app.background_tasks import lease_renewal, wait_for_event
from app.errors import Conflict, NotFound, NotReady, UnknownModel, VestibuleError
from app.gallery.access import GalleryAccess
from app.gallery.embedding_pipeline import TRANSIENT, ImageEmbedder, allows_int8
from app.gallery.schemas import NewEmbedder, ReembeddingInfo
from app.inference.loaded_model import LoadedModel
from index.protocol import FIRST, LEASE_S, Storage
from index.types import Floats, PendingCrop, Reembedding, ReembeddingProgress
from index.validation import read_timestamp

log = structlog.get_logger()

POLL_S = 1.0
BATCH_SIZE = 8  # crops; few, so that requests are served in between


class Reembedder(GalleryAccess):
    """Re-embeds the collections of one gallery."""

    def __init__(self, storage: Storage, embedder: ImageEmbedder):
        super().__init__(storage, embedder)
        self._reembeddings = storage.reembeddings
        self._worker = storage.reembedding_worker
        self._requested = asyncio.Event()

    async def begin(self, name: str, params: NewEmbedder, actor: str | None) -> ReembeddingInfo:
        """Queue a re-embedding, which is durable when this returns.

        Raises:
            NotFound: no such collection. UnknownModel. Conflict: the collection has such vectors, is already being
            re-embedded, or has a face without a crop; or the model does not embed faces. Unprocessable: it has no
            thresholds.
        """
        collection = await self._collection(name)
        pipeline = await self._embedder.pipeline(
            params.embedder or collection.embedder, allow_int8=allows_int8(collection)
        )
        model, card = pipeline.embedder, pipeline.embedder.card
        if card.task != "embed":
            raise Conflict(
                f"crops are stored of faces only, and {card.name} embeds whole images: enrol those in a new collection"
            )
        pipeline.check_calibration()
        change = self._reembeddings.begin.planned(name, card.name, pipeline.fingerprint, model.dimensions, actor=actor)
        info = await self._commit_response(change, partial(_reembedding_info, has_model=True))
        self._requested.set()
        return info

    async def progress(self, collection: str) -> ReembeddingInfo:
        """Return the progress of the collection's re-embedding.

        Raises:
            NotFound: no such collection, or it is not being re-embedded.
        """
        progress = await self._read(lambda: self._reembeddings.progress(collection))
        return _reembedding_info(progress, has_model=await self._model(progress.reembedding) is not None)

    async def cancel(self, collection: str, actor: str | None) -> ReembeddingInfo:
        """Cancel the re-embedding and return its last progress; the collection keeps its vectors.

        Raises:
            NotFound: as `progress`.
        """
        change = self._reembeddings.cancel.planned(collection, actor=actor)
        last = await self._commit_response(change, partial(_reembedding_info, has_model=True))
        return last.model_copy(update={"state": "cancelled"})

    async def work(self) -> None:
        """Re-embed one collection after the other, until cancelled."""
        while True:
            self._requested.clear()
            waiting: Sequence[Reembedding] = []
            try:
                waiting = await self._run_background(self._worker.waiting)
            except Exception:  # such as a full disk: the next round tries again
                log.exception("reembedding_failed")
            for task in waiting:
                await self._try(task)
            await wait_for_event(self._requested, POLL_S)

    async def _try(self, task: Reembedding) -> None:
        """Do the re-embedding if this process has the model; log errors, so that they do not affect other tasks."""
        is_blocked = False
        try:
            model = await self._model(task)
            if model is None or not await self._run_background(partial(self._worker.claim, task)):
                return
            try:
                async with lease_renewal(lambda: self._run_background(lambda: self._worker.keep(task)), LEASE_S / 4):
                    is_blocked = await self._embed_missing(task, model)
            finally:
                if not is_blocked:  # a blocked task keeps its lease: no process should try it at once
                    await self._run_background(lambda: self._worker.release(task))
        except Exception:
            # Such as a full queue or a full disk: the next round computes the missing vectors.
            log.exception("reembedding_failed", collection=task.collection_id)

    async def _model(self, task: Reembedding) -> LoadedModel | None:
        """Return the embedder of the new vectors, or None if this process does not have it with these weights."""
        try:
            pipeline = await self._embedder.pipeline_with_fingerprint(
                task.embedder, task.fingerprint, allow_int8=allows_int8(await self._collection(task.collection))
            )
        except (NotFound, UnknownModel, NotReady):
            return None
        return pipeline.embedder if pipeline else None

    async def _embed_missing(self, task: Reembedding, model: LoadedModel) -> bool:
        """Compute the missing vectors, then switch to the new ones. Return whether unreadable crops prevent that."""
        while True:
            staged, after = 0, FIRST
            while crops := await self._run_background(partial(self._worker.pending, task, after, BATCH_SIZE)):
                after = crops[-1].id
                vectors = await self._embed(model, crops)
                if vectors and not await self._run_background(partial(self._worker.stage, task, vectors)):
                    return False  # cancelled, or another process has the lease
                staged += len(vectors)
            await self._run_background(partial(self._worker.prepare, task))
            missing = await self._run_background(lambda: self._worker.switch(task))
            if not missing:
                log.info(
                    "reembedded",
                    collection=task.collection_id,
                    fingerprint=task.fingerprint,
                    switched=missing == 0,  # not if it was cancelled
                )
                return False
            if not staged:
                problem = f"{missing} faces have no crop that can be read: erase them and enrol them again, or cancel"
                await self._run_background(partial(self._worker.block, task, problem))
                return True

    async def _embed(self, model: LoadedModel, crops: Sequence[PendingCrop]) -> dict[int, Floats]:
        """Return the vectors of the readable crops, by the crops' ids; those with a temporary error are left out.

        Raises:
            NotReady: all crops had a temporary error.
        """

        async def embed(crop: PendingCrop) -> Floats | VestibuleError:
            try:
                return (await self._embedder.faces.embed_whole_image(model, crop.crop)).numpy()
            except VestibuleError as error:
                if not isinstance(error, TRANSIENT):
                    log.error("crop_refused", face=crop.id, error=error.detail)
                return error

        results = await asyncio.gather(*map(embed, crops))
        if all(isinstance(result, TRANSIENT) for result in results):
            raise NotReady("no crop could be embedded")
        return {
            crop.id: result
            for crop, result in zip(crops, results, strict=True)
            if not isinstance(result, VestibuleError)
        }


def _reembedding_info(progress: ReembeddingProgress, *, has_model: bool) -> ReembeddingInfo:
    task, state, problem = progress.reembedding, progress.state, progress.reembedding.problem
    if not has_model and state != "running":
        state = "blocked"
        problem = f"no model here computes vectors of {task.fingerprint}: restore its weights, or cancel"
    return ReembeddingInfo(
        embedder=task.embedder,
        fingerprint=task.fingerprint,
        dimensions=task.dimensions,
        state=state,
        problem=problem,
        faces=progress.faces,
        done=progress.done,
        feedback=progress.feedback,
        feedback_lost=progress.lost,
        requested_at=read_timestamp(task.requested_at),
        erasure=task.token,
    )
