"""Collections embedded anew: asked for, told of, and done in the background by one task of each process.

Only ever because somebody asks for it. That an embedder's weights are others than a collection's says nothing about
which of the two are wrong: an operator's mistake in a folder of weights must not rewrite a gallery. Until it is asked
for, a changed embedder is refused by that collection, and what is stored stays as it is.

The new vectors come from the crops that were kept of faces, WebP of 112x112 pixels, aligned when they were enrolled:
neither the detector nor the alignment is used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from app.background_tasks import kept, wait
from app.errors import Conflict, NotFound, NotReady, UnknownModel, VestibuleError
from app.gallery.embedding_pipeline import TRANSIENT, Pipeline
from app.gallery.schemas import NewEmbedder, ReembeddingInfo, moment
from app.inference.loaded_model import LoadedModel
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.records import Floats
from index.embedded.tasks.reembedding import FIRST, LEASE_S, Pending, Progress, Reembedding, Reembeddings, Worker

log = structlog.get_logger()

POLL_S = 1.0
# At once, so that those who wait for an answer get theirs in between.
CROPS = 8


class Reembedder:
    """The collections of one gallery that are embedded anew."""

    def __init__(self, pipeline: Pipeline, gallery: EmbeddedGallery):
        self._pipeline = pipeline
        self._ask, self._work = pipeline.ask, pipeline.work
        self._gallery = gallery
        self._reembeddings = Reembeddings(gallery)
        self._worker = Worker(gallery)
        self._asked = asyncio.Event()

    async def begin(self, collection: str, asked: NewEmbedder, actor: str | None) -> ReembeddingInfo:
        """From now on it is done, sure to be so once this returns; `actor` as in `Galleries`.

        Raises:
            NotFound: no such collection. UnknownModel. Conflict: it has such vectors already, is embedded anew already,
            or there is a face without a crop; or the model sees no faces.
        """
        found = await self._ask(lambda: self._gallery.collection(collection))
        sight = await self._pipeline.sight(asked.embedder or found.embedder)
        model, card = sight.model, sight.model.card
        if card.task != "embed":
            raise Conflict(
                f"crops are kept of faces only, and {card.name} sees whole pictures: enrol those in a new collection"
            )
        fingerprint = sight.fingerprint
        change = self._reembeddings.begin.planned(collection, card.name, fingerprint, model.dimensions, actor=actor)
        begun = await self._pipeline.commit(change, partial(_described, able=True))
        self._asked.set()
        return begun

    async def progress(self, collection: str) -> ReembeddingInfo:
        """How far it is.

        Raises:
            NotFound: no such collection, or it is not embedded anew.
        """
        found = await self._ask(lambda: self._reembeddings.progress(collection))
        return _described(found, able=await self._model(found.reembedding) is not None)

    async def told(self, collection: str) -> ReembeddingInfo | None:
        """How far it is; None where it is not embedded anew."""
        try:
            return await self.progress(collection)
        except NotFound:
            return None

    async def cancel(self, collection: str, actor: str | None) -> ReembeddingInfo:
        """The collection stays as it is; how far it was.

        Raises:
            NotFound: as `progress`.
        """
        change = self._reembeddings.cancel.planned(collection, actor=actor)
        reached = await self._pipeline.commit(change, partial(_described, able=True))
        return reached.model_copy(update={"state": "cancelled"})

    async def work(self) -> None:
        """Do one collection after the other, until cancelled."""
        while True:
            self._asked.clear()
            try:
                waiting = await self._work(self._worker.waiting)
            except Exception:  # a full disk: the next round tries again
                log.exception("reembedding_failed")
                waiting = []
            for one in waiting:
                await self._try(one)
            await wait(self._asked, POLL_S)

    async def _try(self, one: Reembedding) -> None:
        """Do it if this process can; what fails, as on a damaged row, keeps no other collection from being done."""
        try:
            model = await self._model(one)
            if model is not None and await self._work(partial(self._worker.claim, one)):
                await self._do(one, model)
        except Exception:
            # A full queue or a full disk: what is missing is still missing, and the next round tries again.
            log.exception("reembedding_failed", collection=one.collection_id)

    async def _model(self, one: Reembedding) -> LoadedModel | None:
        """What the new vectors are made by; None where this process has it not, or with other weights."""
        try:
            sight = await self._pipeline.sight_of(one.embedder, one.fingerprint)
        except (UnknownModel, NotReady):
            return None
        return sight.model if sight else None

    async def _do(self, one: Reembedding, model: LoadedModel) -> None:
        blocked = False
        try:
            async with kept(lambda: self._work(lambda: self._worker.keep(one)), LEASE_S / 4):
                blocked = await self._make(one, model)
        finally:
            if not blocked:  # else nobody needs to try at once
                await self._work(lambda: self._worker.release(one))

    async def _make(self, one: Reembedding, model: LoadedModel) -> bool:
        """Make what is missing, then switch; whether that cannot be done now."""
        while True:
            staged, after = 0, FIRST
            while items := await self._work(partial(self._worker.pending, one, after, CROPS)):
                after = items[-1].id
                made = await self._vectors(model, items)
                if made and not await self._work(partial(self._worker.stage, one, made)):
                    return False  # cancelled, or another process has it
                staged += len(made)
            missing = await self._work(lambda: self._worker.switch(one))
            if not missing:
                log.info("reembedded", collection=one.collection_id, fingerprint=one.fingerprint, switched=missing == 0)
                return False
            if not staged:
                problem = f"{missing} faces have no crop that can be read: erase them and enrol them again, or cancel"
                await self._work(partial(self._worker.block, one, problem))
                return True

    async def _vectors(self, model: LoadedModel, items: Sequence[Pending]) -> dict[int, Floats]:
        """Of each crop that can be read, by the item's id; those that failed for a passing reason come again.

        Raises:
            NotReady: all failed for a passing reason.
        """
        passing = 0

        async def one(item: Pending) -> Floats | None:
            nonlocal passing
            try:
                vector = await self._pipeline.of_crop(model, item.crop)
            except TRANSIENT:
                passing += 1
                return None
            except VestibuleError as error:
                log.error("crop_refused", face=item.id, error=error.detail)
                return None
            return vector.numpy()

        found = await asyncio.gather(*map(one, items))
        if passing == len(items):
            raise NotReady("no crop could be looked at")
        return {item.id: vector for item, vector in zip(items, found, strict=True) if vector is not None}


def _described(found: Progress, *, able: bool) -> ReembeddingInfo:
    one, state, problem = found.reembedding, found.state, found.reembedding.problem
    if not able and state != "running":
        state = "blocked"
        problem = f"no model here makes vectors of {one.fingerprint}: put its weights back, or cancel"
    return ReembeddingInfo(
        embedder=one.embedder,
        fingerprint=one.fingerprint,
        dimensions=one.dimensions,
        state=state,
        problem=problem,
        faces=found.faces,
        done=found.done,
        feedback=found.feedback,
        feedback_lost=found.lost,
        requested_at=moment(one.requested_at),
        erasure=one.token,
    )
