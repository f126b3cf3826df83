"""The service of the gallery: collections, subjects, enrolment and erasure. `index` stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

import structlog
from pydantic import TypeAdapter

from app.errors import Conflict, Locked, NoFace, NotFound, Unprocessable
from app.gallery.access import GalleryAccess, PipelineChanged, conflict_as_pipeline_changed, retry_once
from app.gallery.bulk.enrolment import BulkJobs
from app.gallery.calibration.service import SiteCalibrations
from app.gallery.curation.proposals import Proposals
from app.gallery.curation.service import GalleryCuration
from app.gallery.curation.vector_search import VectorSearch
from app.gallery.embedding_pipeline import ImageEmbedder, allows_int8, keeps_crops, select_faces
from app.gallery.passages import PassageSearch
from app.gallery.reembedding import Reembedder
from app.gallery.schemas import (
    CollectionDetail,
    CollectionInfo,
    CollectionPage,
    EnrolledFace,
    EnrolParams,
    EnrolResponse,
    ErasureReceipt,
    FaceList,
    IndexedFace,
    NewCollection,
    RejectedFace,
    SubjectInfo,
    SubjectPage,
    SubjectProperties,
)
from app.gallery.search import GallerySearch
from app.gallery.search_schemas import FeedbackInfo, FeedbackList
from app.images.uploads import Images
from app.inference.predictor import Predictor
from app.schemas import Failed
from index.protocol import UNDO_S, Storage
from index.types import Collection, Face, Rejection
from index.validation import read_timestamp

log = structlog.get_logger()

MAX_ROW_ID = 2**62  # databases have no larger integers
# A collection's options that cannot be changed.
_FIXED_OPTIONS = ("keep_crops", "encrypted", "allow_int8")


class GalleryService(GalleryAccess):
    """All use cases of one gallery; searches, curation, bulk jobs and re-embeddings are in attributes of their own."""

    def __init__(self, predictor: Predictor, storage: Storage, merge_undo_s: float = UNDO_S):
        super().__init__(storage, ImageEmbedder(predictor))
        background = ImageEmbedder(predictor.background())
        for warning in storage.warnings():
            log.warning("storage_warning", warning=warning)
        self._feedback = storage.feedback
        self.searches = GallerySearch(storage, self._embedder)
        self.curation = GalleryCuration(storage, self._embedder, merge_undo_s)
        self.proposals = Proposals(storage, self._embedder)
        self.vector_searches = VectorSearch(storage, self._embedder)
        self.passages = PassageSearch(storage, self._embedder)
        self.calibrations = SiteCalibrations(storage, self._embedder)
        self.jobs = BulkJobs(storage, background)
        self.reembedder = Reembedder(storage, background)

    async def create(self, name: str, params: NewCollection, actor: str | None) -> tuple[CollectionInfo, bool]:
        """Return the collection and whether this call created it; a repeated call returns the existing one.

        A call without an embedder also returns an existing collection of an earlier default embedder.

        Raises:
            UnknownModel. Conflict: a different collection has the name. Unprocessable: there is no encryption key, or
            the embedder has no thresholds.
        """
        pipeline = await self._embedder.pipeline(params.embedder, allow_int8=params.allow_int8)
        model = pipeline.embedder
        try:
            await self._collection(name)
        except NotFound:
            pipeline.check_calibration()
        change = self._gallery.create.planned(
            name,
            model.card.name,
            pipeline.fingerprint,
            model.dimensions,
            encrypted=params.encrypted,
            actor=actor,
            keep_crops=params.keep_crops,
            allow_int8=params.allow_int8,
        )
        try:
            return await self._commit_response(change, _collection_info), True
        except Locked as error:
            raise Unprocessable(error.detail) from error
        except Conflict:
            existing = _collection_info(await self._collection(name))
            if any(getattr(existing, option) != getattr(params, option) for option in _FIXED_OPTIONS):
                raise
            # Also a pipeline that new collections do not get, such as one with the earlier rule for detection scales.
            if params.embedder is not None and not await self._embedder.pipeline_with_fingerprint(
                params.embedder, existing.fingerprint, allow_int8=params.allow_int8
            ):
                raise
            return existing, False

    async def list_collections(self, after: str, limit: int) -> CollectionPage:
        """Return a page of collections."""
        rows = await self._read(lambda: self._gallery.collections(after, limit))
        return CollectionPage(
            data=[_collection_info(row) for row in rows], next=rows[-1].name if len(rows) == limit else None
        )

    async def collection(self, name: str) -> CollectionDetail:
        """Return the collection with its size and the progress of its re-embedding.

        Raises:
            NotFound.
        """
        reembedding = None
        with suppress(NotFound):  # the collection is not being re-embedded
            reembedding = await self.reembedder.progress(name)

        def read() -> CollectionDetail:
            usage = self._gallery.usage(name)
            return CollectionDetail(
                **_collection_info(self._gallery.collection(name)).model_dump(),
                subjects=usage.subjects,
                faces=usage.faces,
                exact=usage.exact,
                reembedding=reembedding,
            )

        return await self._read(read)

    async def drop(self, name: str, actor: str | None) -> ErasureReceipt:
        """Erase the collection with all its contents.

        Raises:
            NotFound.
        """
        return await self._erase(self._gallery.drop.planned(name, actor=actor))

    async def put_subject(
        self, collection: str, key: str, properties: SubjectProperties, actor: str | None
    ) -> SubjectInfo:
        """Create the subject, or replace its properties.

        Raises:
            NotFound: no such collection. Unprocessable: `expires_at` is in the past.
        """
        expires_at = properties.expires_at.timestamp() if properties.expires_at else None
        change = self._gallery.put_subject.planned(
            collection, key, name=properties.name, metadata=properties.metadata, expires_at=expires_at, actor=actor
        )
        return await self._commit_response(change, SubjectInfo.from_subject)

    async def subject(self, collection: str, key: str) -> SubjectInfo:
        """Return the subject.

        Raises:
            NotFound.
        """
        return SubjectInfo.from_subject(await self._read(lambda: self._gallery.subject(collection, key)))

    async def list_subjects(self, collection: str, after: str, limit: int) -> SubjectPage:
        """Return a page of the collection's subjects.

        Raises:
            NotFound: no such collection.
        """
        rows = await self._read(lambda: self._gallery.subjects(collection, after, limit))
        next_key = rows[-1].key if len(rows) == limit else None
        return SubjectPage(data=list(map(SubjectInfo.from_subject, rows)), next=next_key)

    async def list_faces(self, collection: str, key: str, after: int, limit: int) -> FaceList:
        """Return a page of the subject's faces.

        Raises:
            NotFound.
        """
        rows = await self._read(lambda: self._gallery.faces(collection, key, after, limit))
        return FaceList(
            data=[
                EnrolledFace(id=row.token, created_at=read_timestamp(row.created_at), details=row.details)
                for row in rows
            ],
            next=rows[-1].id if len(rows) == limit else None,
        )

    async def remove_face(self, collection: str, face: str, actor: str | None) -> ErasureReceipt:
        """Erase one face; its subject stays.

        Raises:
            NotFound.
        """
        return await self._erase(self._gallery.remove_faces.planned(collection, [face], actor=actor))

    async def receipt(self, token: str) -> ErasureReceipt:
        """Return the state of an erasure.

        Raises:
            NotFound.
        """
        return self._receipt_response(await self._read(lambda: self._gallery.receipt(token)))

    async def enrol(
        self,
        collection: str,
        key: str,
        images: Images,
        params: EnrolParams,
        actor: str | None,
        idempotency_key: str | None = None,
    ) -> EnrolResponse:
        """Enrol the faces of each image for the subject, except those that `select_faces` rejects.

        An image that an earlier call with the same `idempotency_key` enrolled is not enrolled again: its faces are
        those of the earlier call.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline, or the key was used for another image or with other parameters.
        """
        await self._pipeline(collection)  # raises before an image is decoded

        @retry_once
        async def enrol_image(index: int, data: bytes) -> tuple[list[IndexedFace], list[RejectedFace]]:
            current, pipeline = await self._pipeline(collection)
            faces = await self._embedder.embed_image(pipeline, data)
            if not faces:
                raise NoFace("no face was found")
            accepted, rejected = select_faces(index, faces, params)
            new_faces = await self._embedder.new_faces(key, accepted, keep_crops=keeps_crops(current))
            if not new_faces:
                return [], rejected

            def indexed_faces(rows: Sequence[Face]) -> list[IndexedFace]:
                return [
                    IndexedFace(index=index, face_id=row.token, face=face.detected)
                    for row, face in zip(rows, accepted, strict=True)
                ]

            enrolment = self._gallery.enrol.planned(collection, new_faces, current.fingerprint, actor=actor)
            change = enrolment.then(indexed_faces)
            if idempotency_key is not None:
                # The collection's id and not its name: a new collection of that name is another one.
                name = _sha256([actor, current.id, key, idempotency_key, index]).hex()
                request = await self._executors.run_cpu(lambda: _sha256(params.model_dump(), data))
                change = change.once(name, request, _encode_faces, _INDEXED_FACES.validate_json)
            try:
                return await self._commit_response(change, lambda faces: faces), rejected
            except Conflict as error:
                if (await self._collection(collection)).fingerprint != current.fingerprint:
                    raise PipelineChanged from error
                raise

        results = await self._embedder.predictor.for_each_image(images, enrol_image)
        enrolled = [result for result in results if not isinstance(result, Failed)]
        return EnrolResponse(
            indexed=[face for indexed, _ in enrolled for face in indexed],
            rejected=[face for _, rejected in enrolled for face in rejected],
            failed=[result for result in results if isinstance(result, Failed)],
        )

    @retry_once
    async def add_feedback(self, name: str, key: str, images: Images, actor: str | None) -> FeedbackInfo:
        """Record that the image's most prominent face is not the subject's: searches then do not return it.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `enrol`.
        """
        await self._read(lambda: self._gallery.subject(name, key))  # raises NotFound before the image is decoded
        collection, pipeline = await self._pipeline(name)
        face = await self._embedder.embed_only_image(pipeline, images)
        (new,) = await self._embedder.new_faces(key, [face], keep_crops=keeps_crops(collection))
        with conflict_as_pipeline_changed():
            change = self._feedback.add.planned(name, key, new.vector[None], [new.crop], collection.fingerprint, actor)
            return await self._commit_response(change, lambda rejections: _feedback_info(rejections[0]))

    async def list_feedback(self, collection: str, key: str, after: str, limit: int) -> FeedbackList:
        """Return a page of the feedback on the subject; `after` is the `next` of the page before, or empty.

        Raises:
            NotFound.
        """
        seconds, _, row_id = after.partition("-")
        position = (float(seconds or 0), min(int(row_id or 0), MAX_ROW_ID))
        rows = await self._read(lambda: self._feedback.of_subject(collection, key, position, limit))
        return FeedbackList(
            data=[_feedback_info(row) for row in rows],
            next=f"{rows[-1].created_at!r}-{rows[-1].id}" if len(rows) == limit else None,
        )

    async def remove_feedback(self, collection: str, key: str, token: str, actor: str | None) -> ErasureReceipt:
        """Erase the feedback and the face that is stored for it.

        Raises:
            NotFound.
        """
        return await self._erase(self._feedback.remove.planned(collection, key, token, actor=actor))


_INDEXED_FACES = TypeAdapter(list[IndexedFace])


def _encode_faces(faces: list[IndexedFace]) -> str:
    return _INDEXED_FACES.dump_json(faces).decode()


def _sha256(values: object, data: bytes = b"") -> bytes:
    """Return the SHA-256 of the values as JSON, which has no zero byte, and of the data."""
    digest = hashlib.sha256(json.dumps(values).encode() + b"\0")
    digest.update(data)
    return digest.digest()


def _collection_info(collection: Collection) -> CollectionInfo:
    return CollectionInfo(
        name=collection.name,
        embedder=collection.embedder,
        fingerprint=collection.fingerprint,
        dimensions=collection.dimensions,
        keep_crops=keeps_crops(collection),
        encrypted=collection.encrypted,
        allow_int8=allows_int8(collection),
        created_at=read_timestamp(collection.created_at),
    )


def _feedback_info(rejection: Rejection) -> FeedbackInfo:
    return FeedbackInfo(id=rejection.token, created_at=read_timestamp(rejection.created_at))
