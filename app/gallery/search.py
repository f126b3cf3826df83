"""Search a collection for the faces of images, verify images against one subject, and record feedback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import Unprocessable
from app.gallery.embedding_pipeline import EmbeddedFace, ImageEmbedder, keeps_crops
from app.gallery.executor import GalleryExecutor, conflict_as_pipeline_changed, retry_once
from app.gallery.open_set import Decision, DecisionRule, decide_by_steps, rate_per_comparison
from app.gallery.schemas import ErasureReceipt
from app.gallery.search_schemas import (
    Candidate,
    Chosen,
    FeedbackInfo,
    FeedbackList,
    Searched,
    SearchedCollection,
    SearchedFace,
    SearchParams,
    SearchReason,
    SearchResponse,
    SubjectVerification,
    SubjectVerifyParams,
)
from app.images.uploads import Images
from app.schemas import OperatingPoint
from index.embedded.gallery import EmbeddedGallery
from index.embedded.query.feedback import Feedback, Rejection
from index.embedded.query.search import compare, search, search_scope
from index.types import Collection, Match
from index.validation import read_timestamp
from models.matching import Matching

MAX_ROW_ID = 2**62  # SQLite has no larger integers


class GallerySearch:
    """Identifies and verifies faces. `actor`: id of the caller's key for the audit log; None without keys."""

    def __init__(self, executor: GalleryExecutor, embedder: ImageEmbedder, gallery: EmbeddedGallery):
        self._executor = executor
        self._embedder = embedder
        self._gallery = gallery

    @retry_once
    async def search(self, images: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        """Return the candidates of each face of each image.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline.
        """
        scope = await self._executor.read(lambda: search_scope(self._gallery, params.collection, params.conditions))
        collection, usage = scope.collection, scope.usage
        pipeline = await self._embedder.collection_pipeline(collection)
        card = pipeline.embedder.card
        chosen = None if scope.selected is None else Chosen(subjects=scope.selected[0], faces=scope.selected[1])
        size = chosen or usage
        comparisons = size.faces if params.fusion == "best" else size.subjects
        rule = DecisionRule.for_comparisons(card.matching, params.fpir, comparisons, extrapolate=params.extrapolate)
        task = _Search(self._gallery, collection, params, rule, card.matching, actor)

        async def search_image(index: int, data: bytes) -> Searched:
            faces = await self._embedder.embed_image(pipeline, data)
            with conflict_as_pipeline_changed():
                return Searched(index=index, faces=await self._executor.read(lambda: task.identify(faces)))

        data = await self._embedder.predictor.for_each_image(images, search_image)
        return SearchResponse(
            collection=SearchedCollection(
                name=collection.name, subjects=usage.subjects, faces=usage.faces, exact=usage.exact, chosen=chosen
            ),
            threshold=1 - rule.threshold.similarity if rule.threshold else None,
            operating_point=_operating_point(rule, card.matching),
            fpir=params.fpir,
            model=card.name,
            version=card.version,
            data=data,
        )

    @retry_once
    async def verify(
        self, name: str, key: str, images: Images, params: SubjectVerifyParams, actor: str | None
    ) -> SubjectVerification:
        """Compare the image's most prominent face with the subject of the collection `name`.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `search`. Unprocessable: the subject
            has no face, or the embedder's calibration has no threshold for the rate.
        """
        collection, subject = await self._executor.read(
            lambda: (self._gallery.collection(name), self._gallery.subject(name, key))
        )
        pipeline = await self._embedder.collection_pipeline(collection)
        card = pipeline.embedder.card
        matching = card.matching
        if matching is None:
            raise Unprocessable(f"{card.name} is not calibrated, so there is no threshold for a match")
        try:
            comparisons = subject.faces if params.fusion == "best" else 1
            threshold = matching.threshold(rate_per_comparison(params.fmr, comparisons))
        except ValueError as error:
            raise Unprocessable(str(error)) from error
        face = await self._embedder.embed_only_image(pipeline, images)

        def compare_face() -> tuple[Match, bool]:
            match, denied = compare(
                self._gallery,
                name,
                key,
                face.vector.numpy(),
                fusion=params.fusion,
                fingerprint=collection.fingerprint,
            )
            if match is None:
                raise Unprocessable("the subject has no face to compare with")
            self._gallery.note_search(name, [match.subject], actor=actor)
            return match, denied

        with conflict_as_pipeline_changed():
            match, denied = await self._executor.read(compare_face)
        return SubjectVerification(
            verified=match.similarity >= threshold.similarity and not denied,
            denied=denied,
            probability=matching.probability(match.similarity),
            distance=_distance(match),
            threshold=1 - threshold.similarity,
            operating_point=OperatingPoint(
                fmr=params.fmr, calibration=matching.data, extrapolated=threshold.extrapolated, prior=matching.prior
            ),
            face=face.detected,
            face_id=match.face,
            model=card.name,
            version=card.version,
        )


@dataclass(frozen=True)
class _Search:
    """A search of a collection, whose images have the same decision rule."""

    gallery: EmbeddedGallery
    collection: Collection
    params: SearchParams
    rule: DecisionRule
    matching: Matching | None
    actor: str | None

    def identify(self, faces: Sequence[EmbeddedFace]) -> list[SearchedFace]:
        """Search for the faces of one image, decide, and record the search, all in the caller's thread.

        In one thread since each change of threads costs a wake-up.
        """
        gate = self.params.quality_gate
        positions = [n for n, face in enumerate(faces) if not (gate and face.detected and face.detected.reasons)]
        vectors = np.array([faces[position].vector.numpy() for position in positions], np.float32)

        def read(rows: Sequence[int], k: int) -> list[list[Match]]:
            return search(
                self.gallery,
                self.collection.name,
                vectors[list(rows)],
                k,
                fusion=self.params.fusion,
                where=self.params.conditions,
                fingerprint=self.collection.fingerprint,
            )

        limit = self.params.limit
        results = decide_by_steps(self.rule, len(positions), limit, read, repeated=self.params.repeated)
        subjects = [match.subject for decision in results for match in decision.candidates[:limit]]
        self.gallery.note_search(self.collection.name, subjects, actor=self.actor)
        decisions = dict(zip(positions, results, strict=True))
        return [self._searched_face(face, decisions.get(position)) for position, face in enumerate(faces)]

    def _searched_face(self, face: EmbeddedFace, decision: Decision | None) -> SearchedFace:
        """Return the result of a face; it has no decision if it was not searched for."""
        if decision is None:
            assert face.detected is not None  # noqa: S101  only faces can fail the quality gate
            reasons: list[SearchReason] = list(face.detected.reasons)
            return SearchedFace(face=face.detected, status="rejected", reasons=reasons, candidates=[])
        reasons = []
        if self.matching is None:
            reasons = ["NOT_CALIBRATED"]
        elif not self.rule.can_match:
            reasons = ["BEYOND_CALIBRATION"]
        return SearchedFace(
            face=face.detected,
            status="match" if decision.matched else "unknown",
            reasons=reasons,
            candidates=[self._candidate(match) for match in decision.candidates[: self.params.limit]],
        )

    def _candidate(self, match: Match) -> Candidate:
        return Candidate(
            subject_id=match.subject.key,
            name=match.subject.name,
            face_id=match.face,
            probability=self.matching.probability(match.similarity) if self.matching else None,
            distance=_distance(match),
        )


def _distance(match: Match) -> float:
    return max(0.0, 1 - match.similarity)  # a cosine may be rounded to slightly more than 1


def _operating_point(rule: DecisionRule, matching: Matching | None) -> OperatingPoint | None:
    if matching is None or rule.fmr is None or rule.threshold is None:
        return None
    return OperatingPoint(
        fmr=rule.fmr, calibration=matching.data, extrapolated=rule.threshold.extrapolated, prior=matching.prior
    )


class FeedbackService:
    """Adds, lists and erases feedback. `actor`: id of the caller's key for the audit log; None without keys."""

    def __init__(self, executor: GalleryExecutor, embedder: ImageEmbedder, gallery: EmbeddedGallery):
        self._executor = executor
        self._embedder = embedder
        self._gallery = gallery
        self._feedback = Feedback(gallery)

    @retry_once
    async def add(self, name: str, key: str, images: Images, actor: str | None) -> FeedbackInfo:
        """Record that the image's most prominent face is not the subject's, whom searches then do not return for it.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `GallerySearch.search`.
        """

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
    return FeedbackInfo(id=rejection.token, created_at=read_timestamp(rejection.created_at))
