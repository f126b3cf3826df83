"""Feedback that a face is not a subject's."""

from __future__ import annotations

from app.gallery.embedding_pipeline import ImageEmbedder, keeps_crops
from app.gallery.executor import GalleryExecutor, conflict_as_pipeline_changed, retry_once
from app.gallery.schemas import ErasureReceipt
from app.gallery.search_schemas import FeedbackInfo, FeedbackList
from app.images.uploads import Images
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback, Rejection
from index.embedded.store.records import Collection
from index.validation import read_moment

MAX_ROW_ID = 2**62  # SQLite has no larger integers


class FeedbackService:
    """Adds, lists and erases feedback. `actor`: id of the caller's key for the audit log; None without keys."""

    def __init__(self, executor: GalleryExecutor, embedder: ImageEmbedder, gallery: EmbeddedGallery):
        self._executor = executor
        self._embedder = embedder
        self._gallery = gallery
        self._feedback = Feedback(gallery)

    async def add(self, collection: str, key: str, images: Images, actor: str | None) -> FeedbackInfo:
        """Record that the image's most prominent face is not the subject's: searches do not return it for that face.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `GallerySearch.search`.
        """
        return await retry_once(lambda: self._add(collection, key, images, actor))

    async def _add(self, name: str, key: str, images: Images, actor: str | None) -> FeedbackInfo:
        def read() -> Collection:
            self._gallery.subject(name, key)  # raises NotFoundError before the image is decoded
            return self._gallery.collection(name)

        collection = await self._executor.read(read)
        pipeline = await self._embedder.collection_pipeline(collection)
        face = await self._embedder.embed_only_image(pipeline, images)
        (new,) = await self._embedder.new_faces(key, [face], keep_crops=keeps_crops(collection))
        with conflict_as_pipeline_changed():
            change = self._feedback.add.planned(name, key, new.vector[None], [new.crop], collection.fingerprint, actor)
            return await self._executor.commit_response(change, lambda rejections: _feedback_info(rejections[0]))

    async def list_feedback(self, collection: str, key: str, after: str, limit: int) -> FeedbackList:
        """Return a page of the feedback on the subject; `after` is the `next` of the page before, or empty.

        Raises:
            NotFound.
        """
        seconds, _, row_id = after.partition("-")
        position = (float(seconds or 0), min(int(row_id or 0), MAX_ROW_ID))
        rows = await self._executor.read(lambda: self._feedback.of_subject(collection, key, position, limit))
        next_page = f"{rows[-1].created_at!r}-{rows[-1].id}" if len(rows) == limit else None
        return FeedbackList(data=[_feedback_info(row) for row in rows], next=next_page)

    async def remove(self, collection: str, key: str, token: str, actor: str | None) -> ErasureReceipt:
        """Erase the feedback and the face that is stored for it.

        Raises:
            NotFound.
        """
        change = self._feedback.remove.planned(collection, key, token, actor=actor)
        return await self._executor.commit_response(change, ErasureReceipt.from_receipt)


def _feedback_info(rejection: Rejection) -> FeedbackInfo:
    return FeedbackInfo(id=rejection.token, created_at=read_moment(rejection.created_at))
