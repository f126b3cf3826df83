"""The use cases of the gallery: enrol, list, erase. Its files are `index`'s; here pictures meet it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from app.errors import Conflict, Locked, NoFace, Unprocessable
from app.gallery.bulk.enrolment import BulkJobs
from app.gallery.embedding_pipeline import Pipeline, Sight, compared, described, gated, keeps_crops, settled
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
    moment,
)
from app.gallery.search import Recognition
from app.images.uploads import Images
from app.inference.predictor import Predictor
from app.schemas import Failed
from index.embedded.gallery import EmbeddedGallery
from index.embedded.store.id_normalisation import count_clashes
from index.embedded.store.records import Collection, CountedSubject, Face

log = structlog.get_logger()


class Galleries:
    """The use cases over one gallery; those that compare are `recognition`'s, those of bulk jobs `jobs`'.

    `actor` is the id of the key by which something is asked for, for the audit log; None while the service is open.
    """

    def __init__(self, predictor: Predictor, gallery: EmbeddedGallery):
        self._pipeline = Pipeline(predictor)
        background = Pipeline(predictor.background())
        self._ask = self._pipeline.ask
        self._gallery = gallery
        if count := count_clashes(gallery.ledger.reader()):
            log.warning("subject_ids_clash", subjects=count, listed_by="vestibule gallery clashes")
        self.recognition = Recognition(self._pipeline, gallery)
        self.jobs = BulkJobs(background, gallery)
        self.reembedder = Reembedder(background, gallery)

    async def create(self, name: str, asked: NewCollection, actor: str | None) -> tuple[CollectionInfo, bool]:
        """The collection, and whether it was made now; the same call again finds it.

        A call that names no embedder also finds a collection of an embedder that was the default earlier.

        Raises:
            UnknownModel; Conflict: there is another of that name; Unprocessable: there is no key to encrypt it by.
        """
        sight = await self._pipeline.sight(asked.embedder)
        model, fingerprint = sight.model, sight.fingerprint
        # Also of a collection that keeps an earlier rule for detection scales: the call that made it finds it.
        fingerprints = {fingerprint, replace(sight, scales="whole").fingerprint}

        change = self._gallery.create.planned(
            name,
            model.card.name,
            fingerprint,
            model.dimensions,
            encrypted=asked.encrypted,
            actor=actor,
            keep_crops=asked.keep_crops,
        )
        try:
            return await self._pipeline.commit(change, _collection), True
        except Locked as error:
            raise Unprocessable(error.detail) from error
        except Conflict:
            found = _collection(await self._ask(lambda: self._gallery.collection(name)))
            is_same = asked.embedder is None or found.fingerprint in fingerprints
            if not is_same or (found.keep_crops, found.encrypted) != (asked.keep_crops, asked.encrypted):
                raise
            return found, False

    async def list_collections(self, after: str, limit: int) -> CollectionPage:
        """A page of collections."""
        found = await self._ask(lambda: self._gallery.collections(after, limit))
        return CollectionPage(data=[_collection(one) for one in found], next=_next([c.name for c in found], limit))

    async def collection(self, name: str) -> CollectionDetail:
        """The collection, how much is in it, and what it is to become.

        Raises:
            NotFound.
        """
        reembedding = await self.reembedder.told(name)

        def read() -> CollectionDetail:
            usage = self._gallery.usage(name)
            return CollectionDetail(
                **_collection(self._gallery.collection(name)).model_dump(),
                subjects=usage.subjects,
                faces=usage.faces,
                exact=usage.exact,
                reembedding=reembedding,
            )

        return await self._ask(read)

    async def drop(self, name: str, actor: str | None) -> ErasureReceipt:
        """Erase the collection and all in it.

        Raises:
            NotFound.
        """
        return await self._pipeline.commit(self._gallery.drop.planned(name, actor=actor), described)

    async def put_subject(self, collection: str, key: str, asked: SubjectProperties, actor: str | None) -> SubjectInfo:
        """Make the subject, or give it these properties in place of those it had.

        Raises:
            NotFound: no such collection. Unprocessable: it would have expired already.
        """
        expires_at = asked.expires_at.timestamp() if asked.expires_at else None
        change = self._gallery.put_subject.planned(
            collection, key, name=asked.name, metadata=asked.metadata, expires_at=expires_at, actor=actor
        )
        return await self._pipeline.commit(change, _subject)

    async def subject(self, collection: str, key: str) -> SubjectInfo:
        """The subject.

        Raises:
            NotFound.
        """
        return _subject(await self._ask(lambda: self._gallery.subject(collection, key)))

    async def list_subjects(self, collection: str, after: str, limit: int) -> SubjectPage:
        """A page of subjects.

        Raises:
            NotFound: no such collection.
        """
        found = await self._ask(lambda: self._gallery.subjects(collection, after, limit))
        return SubjectPage(data=[_subject(one) for one in found], next=_next([s.key for s in found], limit))

    async def list_faces(self, collection: str, key: str, after: int, limit: int) -> FaceList:
        """A page of the subject's faces.

        Raises:
            NotFound.
        """
        found = await self._ask(lambda: self._gallery.faces(collection, key, after, limit))
        return FaceList(
            data=[EnrolledFace(id=f.token, created_at=moment(f.created_at), details=f.details) for f in found],
            next=found[-1].id if len(found) == limit else None,
        )

    async def remove_face(self, collection: str, face: str, actor: str | None) -> ErasureReceipt:
        """Erase one face; its subject stays.

        Raises:
            NotFound.
        """
        change = self._gallery.remove_faces.planned(collection, [face], actor=actor)
        return await self._pipeline.commit(change, described)

    async def receipt(self, token: str) -> ErasureReceipt:
        """What became of an erasure.

        Raises:
            NotFound.
        """
        return described(await self._ask(lambda: self._gallery.receipt(token)))

    async def enrol(
        self, collection: str, key: str, pictures: Images, params: EnrolParams, actor: str | None
    ) -> EnrolResponse:
        """The faces of each picture become the subject's, as far as nothing is against them.

        Raises:
            VestibuleError: about the request, or about its only picture. NotFound: no such collection. Conflict: the
            models are others than those the collection was made with.
        """
        await self._sight(collection)

        async def one(index: int, data: bytes) -> tuple[list[IndexedFace], list[RejectedFace]]:
            found, sight = await self._sight(collection)
            seen = await self._pipeline.seen(sight, data)
            if not seen:
                raise NoFace("no face was found")
            good, bad = gated(index, seen, params)
            news = await self._pipeline.new_faces(key, good, keep_crops=keeps_crops(found))
            if not news:
                return [], bad

            def indexed(faces: Sequence[Face]) -> list[IndexedFace]:
                return [
                    IndexedFace(index=index, face_id=face.token, face=one.described)
                    for face, one in zip(faces, good, strict=True)
                ]

            with compared():
                change = self._gallery.enrol.planned(collection, news, found.fingerprint, actor=actor)
                return await self._pipeline.commit(change, indexed), bad

        answers = await self._pipeline.predictor.for_each_image(
            pictures, lambda index, data: settled(lambda: one(index, data))
        )
        seen = [answer for answer in answers if not isinstance(answer, Failed)]
        return EnrolResponse(
            indexed=[face for indexed, _ in seen for face in indexed],
            rejected=[face for _, rejected in seen for face in rejected],
            failed=[answer for answer in answers if isinstance(answer, Failed)],
        )

    async def _sight(self, collection: str) -> tuple[Collection, Sight]:
        found = await self._ask(lambda: self._gallery.collection(collection))
        return found, await self._pipeline.model(found)


def _next(names: Sequence[str], limit: int) -> str | None:
    """Where the following page begins; None where this one was not full."""
    return names[-1] if len(names) == limit else None


def _collection(found: Collection) -> CollectionInfo:
    return CollectionInfo(
        name=found.name,
        embedder=found.embedder,
        fingerprint=found.fingerprint,
        dimensions=found.dimensions,
        keep_crops=keeps_crops(found),
        encrypted=found.encrypted,
        created_at=moment(found.created_at),
    )


def _subject(found: CountedSubject) -> SubjectInfo:
    return SubjectInfo(
        id=found.key,
        name=found.name,
        metadata=found.metadata,
        expires_at=None if found.expires_at is None else moment(found.expires_at),
        created_at=moment(found.created_at),
        faces=found.faces,
    )
