"""The use cases of the gallery: enrol, search, list, erase. Its files are `index`'s; here pictures meet it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from app.body import Pictures
from app.engine import LoadedModel
from app.errors import Conflict, NoFace, NotFound
from app.faces import DETECTION_THRESHOLD, Faces, FoundFace
from app.gallery_schemas import (
    Candidate,
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
    RejectedReason,
    Searched,
    SearchedCollection,
    SearchedFace,
    SearchParams,
    SearchReason,
    SearchResponse,
    SubjectInfo,
    SubjectPage,
    SubjectProperties,
)
from app.identification import Decision, Rule
from app.inference import Inference
from app.observe import Timings
from app.schemas import DetectedFace, Failed, OperatingPoint
from index import errors as index_errors
from index.protocol import Gallery, Match
from index.records import Collection, NewFace, Receipt, Subject
from models import align
from models.card import ModelCard
from models.matching import Matching

T = TypeVar("T")

CROP_QUALITY = 90  # of WebP


@dataclass(frozen=True)
class _Seen:
    """A face of a picture (None: the whole picture) and its vector, float32 [D] of length 1."""

    found: FoundFace | None
    described: DetectedFace | None
    vector: Tensor


class Galleries:
    """The use cases over one gallery."""

    def __init__(self, inference: Inference, faces: Faces, gallery: Gallery):
        self._inference = inference
        self._engine = inference.engine
        self._faces = faces
        self._gallery = gallery

    async def create(self, name: str, asked: NewCollection) -> tuple[CollectionInfo, bool]:
        """The collection, and whether it was made now; the same call again finds it.

        Raises:
            UnknownModel; Conflict: there is another of that name.
        """
        model = await self._engine.embedder(asked.embedder)
        card = model.card
        fingerprint = await self._fingerprint(card)

        def make() -> tuple[Collection, bool]:
            try:
                made = self._gallery.create(name, card.name, fingerprint, model.dimensions, keep_crops=asked.keep_crops)
            except index_errors.ConflictError:
                found = self._gallery.collection(name)
                if (found.fingerprint, found.settings.get("keep_crops")) != (fingerprint, asked.keep_crops):
                    raise
                return found, False
            return made, True

        made, new = await self._ask(make)
        return _collection(made), new

    async def list_collections(self, after: str, limit: int) -> CollectionPage:
        """A page of collections."""
        found = await self._ask(lambda: self._gallery.collections(after, limit))
        return CollectionPage(data=[_collection(one) for one in found], next=_next([c.name for c in found], limit))

    async def collection(self, name: str) -> CollectionDetail:
        """The collection and how much is in it.

        Raises:
            NotFound.
        """

        def read() -> CollectionDetail:
            usage = self._gallery.usage(name)
            return CollectionDetail(
                **_collection(self._gallery.collection(name)).model_dump(),
                subjects=usage.subjects,
                faces=usage.faces,
                exact=usage.exact,
            )

        return await self._ask(read)

    async def drop(self, name: str) -> ErasureReceipt:
        """Erase the collection and all in it.

        Raises:
            NotFound.
        """
        return _receipt(await self._ask(lambda: self._gallery.drop(name)))

    async def put_subject(self, collection: str, key: str, asked: SubjectProperties) -> SubjectInfo:
        """Make the subject, or give it these properties in place of those it had.

        Raises:
            NotFound: no such collection.
        """
        expires_at = asked.expires_at.timestamp() if asked.expires_at else None
        made = await self._ask(
            lambda: self._gallery.put_subject(
                collection, key, name=asked.name, metadata=asked.metadata, expires_at=expires_at
            )
        )
        return _subject(made)

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

    async def remove_subject(self, collection: str, key: str) -> ErasureReceipt:
        """Erase the subject and all its faces.

        Raises:
            NotFound.
        """
        return _receipt(await self._ask(lambda: self._gallery.remove_subject(collection, key)))

    async def list_faces(self, collection: str, key: str) -> FaceList:
        """The subject's faces.

        Raises:
            NotFound.
        """
        found = await self._ask(lambda: self._gallery.faces(collection, key))
        return FaceList(
            data=[EnrolledFace(id=f.token, created_at=_time(f.created_at), details=f.details) for f in found]
        )

    async def remove_face(self, collection: str, face: str) -> ErasureReceipt:
        """Erase one face; its subject stays.

        Raises:
            NotFound.
        """
        return _receipt(await self._ask(lambda: self._gallery.remove_faces(collection, [face])))

    async def receipt(self, token: str) -> ErasureReceipt:
        """What became of an erasure.

        Raises:
            NotFound.
        """
        return _receipt(await self._ask(lambda: self._gallery.receipt(token)))

    async def enrol(
        self, collection: str, key: str, pictures: Pictures, params: EnrolParams, timings: Timings
    ) -> EnrolResponse:
        """The faces of each picture become the subject's, as far as nothing is against them.

        Raises:
            VestibuleError: about the request, or about its only picture. NotFound: no such collection. Conflict: the
            models are others than those the collection was made with.
        """
        found = await self._ask(lambda: self._gallery.collection(collection))
        model = await self._model(found)
        rejected: list[RejectedFace] = []

        async def one(index: int, data: bytes) -> list[IndexedFace]:
            seen = await self._seen(model, data, timings)
            if not seen:
                raise NoFace("no face was found")
            good, bad = _gated(index, seen, params)
            rejected.extend(bad)
            news = [
                NewFace(key, one.vector.numpy(), _details(one), _crop(one) if found.settings["keep_crops"] else None)
                for one in good
            ]
            if not news:
                return []
            faces = await self._ask(lambda: self._gallery.enrol(collection, news, found.fingerprint))
            return [
                IndexedFace(index=index, face_id=face.token, face=one.described)
                for face, one in zip(faces, good, strict=True)
            ]

        answers = await self._inference.each(pictures, one)
        indexed = [face for answer in answers if not isinstance(answer, Failed) for face in answer]
        failed = [answer for answer in answers if isinstance(answer, Failed)]
        return EnrolResponse(indexed=indexed, rejected=sorted(rejected, key=lambda face: face.index), failed=failed)

    async def search(self, pictures: Pictures, params: SearchParams, timings: Timings) -> SearchResponse:
        """Who in the collection is each face of each picture?

        Raises:
            VestibuleError: about the request, or about its only picture. NotFound, Conflict: as `enrol`.
        """
        found = await self._ask(lambda: self._gallery.collection(params.collection))
        model = await self._model(found)
        usage = await self._ask(lambda: self._gallery.usage(params.collection))
        rule = Rule.of(model.card.matching, params.fpir, usage.subjects, extrapolate=params.extrapolate)

        async def one(index: int, data: bytes) -> Searched:
            seen = await self._seen(model, data, timings)
            wanted = [face for face in seen if not (params.quality_gate and face.described and face.described.reasons)]
            matches: list[list[Match]] = []
            if wanted:
                queries = np.stack([face.vector.numpy() for face in wanted])
                limit = params.limit + len(wanted) - 1  # others of the picture may take the first ones
                matches = await self._ask(
                    lambda: self._gallery.search(params.collection, queries, limit, fusion=params.fusion)
                )
            decisions = iter(rule.decide(matches, repeated=params.repeated))
            decided = {id(face): next(decisions) for face in wanted}
            describe = _Describer(rule, model.card.matching, params.limit)
            return Searched(index=index, faces=[describe(face, decided.get(id(face))) for face in seen])

        data = await self._inference.each(pictures, one)
        return SearchResponse(
            collection=SearchedCollection(
                name=found.name, subjects=usage.subjects, faces=usage.faces, exact=usage.exact
            ),
            threshold=1 - rule.threshold.similarity if rule.threshold else None,
            operating_point=_point(rule, model.card.matching),
            fpir=params.fpir,
            model=model.card.name,
            version=model.card.version,
            data=data,
        )

    async def _ask(self, question: Callable[[], T]) -> T:
        """What the gallery answers, off the event loop."""
        try:
            return await self._engine.stored(question)
        except index_errors.NotFoundError as error:
            raise NotFound(str(error)) from error
        except index_errors.ConflictError as error:
            raise Conflict(str(error)) from error

    async def _fingerprint(self, card: ModelCard) -> str:
        """Of all that lies between a picture and its vector."""
        parts: dict[str, object] = {
            "weights": card.sha256,
            "preprocess": card.preprocess.model_dump(mode="json"),
            "tta": card.tta,
        }
        if card.task == "embed":
            finder = (await self._engine.model(None, "detect")).card
            parts |= {"detector": finder.sha256, "alignment": [align.TEMPLATE, align.SIDE]}
        text = json.dumps(parts, sort_keys=True)
        return f"{card.name}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    async def _model(self, collection: Collection) -> LoadedModel:
        """The collection's embedder.

        Raises:
            Conflict: what it makes of pictures now is not what the collection holds.
        """
        model = await self._engine.embedder(collection.embedder)
        if await self._fingerprint(model.card) != collection.fingerprint:
            raise Conflict(f"{collection.name!r} holds vectors of another version of {collection.embedder}")
        return model

    async def _seen(self, model: LoadedModel, data: bytes, timings: Timings) -> list[_Seen]:
        """The faces of a picture with their vectors, surest first; or the whole picture, where the model sees such."""
        if model.card.task != "embed":
            vector = await self._faces.whole(model, data, timings)
            return [_Seen(None, None, vector)]
        finder = await self._engine.model(None, "detect")
        _, found = await self._faces.find(finder, data, DETECTION_THRESHOLD, timings)
        if not found:
            return []
        vectors = await self._faces.embedded(model, found, timings)
        return [_Seen(face, face.described(), vector) for face, vector in zip(found, vectors, strict=True)]


def _gated(index: int, seen: Sequence[_Seen], params: EnrolParams) -> tuple[list[_Seen], list[RejectedFace]]:
    """Which faces of a picture may be enrolled, and which not: the largest good ones may."""
    good: list[_Seen] = []
    rejected: list[RejectedFace] = []
    for one in sorted(seen, key=lambda one: one.found.face.area if one.found else 0.0, reverse=True):
        if one.described is None:
            good.append(one)
            continue
        reasons: list[RejectedReason] = list(one.described.reasons) if params.quality_gate else []
        if not reasons and len(good) == params.max_faces:
            reasons = ["EXCEEDS_MAX_FACES"]
        if reasons:
            rejected.append(RejectedFace(index=index, face=one.described, reasons=reasons))
        else:
            good.append(one)
    return good, rejected


def _details(seen: _Seen) -> dict[str, object]:
    if seen.described is None:
        return {}
    return {"confidence": seen.described.confidence, **seen.described.quality.model_dump()}


def _crop(seen: _Seen) -> bytes | None:
    if seen.found is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(seen.found.crop).save(buffer, "WEBP", quality=CROP_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Describer:
    """How a decision is told."""

    rule: Rule
    matching: Matching | None
    limit: int

    def __call__(self, seen: _Seen, decision: Decision | None) -> SearchedFace:
        if decision is None:
            assert seen.described is not None  # noqa: S101  only a face can have something against it
            return SearchedFace(
                face=seen.described, status="rejected", reasons=list(seen.described.reasons), candidates=[]
            )
        reasons: list[SearchReason] = []
        if self.matching is None:
            reasons = ["NOT_CALIBRATED"]
        elif not self.rule.decides:
            reasons = ["BEYOND_CALIBRATION"]
        return SearchedFace(
            face=seen.described,
            status="match" if decision.matched else "unknown",
            reasons=reasons,
            candidates=[self._candidate(match) for match in decision.candidates[: self.limit]],
        )

    def _candidate(self, match: Match) -> Candidate:
        return Candidate(
            subject_id=match.subject.key,
            name=match.subject.name,
            face_id=match.face,
            probability=self.matching.probability(match.similarity) if self.matching else None,
            distance=max(0.0, 1 - match.similarity),
        )


def _point(rule: Rule, matching: Matching | None) -> OperatingPoint | None:
    if matching is None or rule.fmr is None or rule.threshold is None:
        return None
    return OperatingPoint(
        fmr=rule.fmr, calibration=matching.data, extrapolated=rule.threshold.extrapolated, prior=matching.prior
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _next(names: Sequence[str], limit: int) -> str | None:
    """Where the following page begins; None where this one was not full."""
    return names[-1] if len(names) == limit else None


def _collection(found: Collection) -> CollectionInfo:
    return CollectionInfo(
        name=found.name,
        embedder=found.embedder,
        fingerprint=found.fingerprint,
        dimensions=found.dimensions,
        keep_crops=found.settings["keep_crops"],
        created_at=_time(found.created_at),
    )


def _subject(found: Subject) -> SubjectInfo:
    return SubjectInfo(
        id=found.key,
        name=found.name,
        metadata=found.metadata,
        expires_at=None if found.expires_at is None else _time(found.expires_at),
        created_at=_time(found.created_at),
        faces=found.faces,
    )


def _receipt(found: Receipt) -> ErasureReceipt:
    return ErasureReceipt(
        id=found.token,
        status="scrubbing" if found.erased_at is None else "erased",
        subjects=found.subjects,
        faces=found.faces,
        requested_at=_time(found.requested_at),
        erased_at=None if found.erased_at is None else _time(found.erased_at),
    )
