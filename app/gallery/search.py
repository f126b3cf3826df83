"""Search a collection for the faces of images, and verify images against one subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import Unprocessable
from app.faces.schemas import DetectedFace
from app.faces.service import calibrated, operating_point, threshold_at
from app.gallery.access import GalleryAccess, conflict_as_pipeline_changed, retry_once
from app.gallery.embedding_pipeline import EmbeddedFace, EmbeddingPipeline
from app.gallery.open_set import (
    CollectionThresholds,
    Decision,
    DecisionRule,
    collection_thresholds,
    decide_by_steps,
    rate_per_comparison,
)
from app.gallery.search_schemas import (
    Candidate,
    CandidateParams,
    Chosen,
    MetadataConditions,
    OneOf,
    Searched,
    SearchedCollection,
    SearchedFace,
    SearchParams,
    SearchReason,
    SearchResponse,
    SubjectVerification,
    SubjectVerifyParams,
    Value,
)
from app.images.uploads import Images
from app.schemas import Failed, OperatingPoint
from index.types import Collection, Floats, Fusion, Match
from models.align import Reason


@dataclass(frozen=True)
class SearchTarget:
    """The subjects that a search compares with: those of a collection, or those that `where` selects of it.

    `comparisons`: the number of comparisons per face, which the threshold depends on.
    """

    collection: Collection
    pipeline: EmbeddingPipeline
    where: dict[str, list[Value]] | None
    size: SearchedCollection
    comparisons: int
    thresholds: CollectionThresholds

    def rule(self, params: CandidateParams) -> DecisionRule:
        """Return the rule by which each face is decided by itself."""
        return DecisionRule.for_comparisons(
            self.thresholds.matching, params.fpir, self.comparisons, extrapolate=params.extrapolate
        )


@dataclass(frozen=True)
class VerifyTarget:
    """The subject of a collection that a verification compares with; `faces` is the number of its faces."""

    collection: Collection
    pipeline: EmbeddingPipeline
    key: str
    faces: int
    thresholds: CollectionThresholds

    def rate(self, params: SubjectVerifyParams) -> float:
        """Return the false match rate per comparison."""
        return rate_per_comparison(params.fmr, self.faces if params.fusion == "best" else 1)


class Identification(GalleryAccess):
    """Base of services that identify and verify faces."""

    async def _target(self, params: CandidateParams) -> SearchTarget:
        """Return the subjects to search.

        Raises:
            NotFound: no such collection. Conflict: its vectors are of another pipeline.
        """
        where = None if params.where is None else _allowed_values(params.where)
        scope = await self._read(lambda: self._storage.searches.scope(params.collection, where))
        collection, usage = scope.collection, scope.usage
        pipeline = await self._embedder.collection_pipeline(collection)
        chosen = None if scope.selected is None else Chosen(subjects=scope.selected[0], faces=scope.selected[1])
        selected = chosen or usage
        size = SearchedCollection(
            name=collection.name, subjects=usage.subjects, faces=usage.faces, exact=usage.exact, chosen=chosen
        )
        comparisons = selected.faces if params.fusion == "best" else selected.subjects
        thresholds = collection_thresholds(pipeline.embedder.card, scope.calibration)
        return SearchTarget(collection, pipeline, where, size, comparisons, thresholds)

    async def _subject(self, name: str, key: str) -> VerifyTarget:
        """Return the subject of the collection `name`.

        Raises:
            NotFound: no such collection or subject. Conflict: its vectors are of another pipeline.
        """
        collection, subject, calibration = await self._read(
            lambda: (
                self._gallery.collection(name),
                self._gallery.subject(name, key),
                self._storage.calibrations.in_use(name),
            )
        )
        pipeline = await self._embedder.collection_pipeline(collection)
        thresholds = collection_thresholds(pipeline.embedder.card, calibration)
        return VerifyTarget(collection, pipeline, subject.key, subject.faces, thresholds)

    def _decide(
        self,
        target: SearchTarget,
        vectors: Floats,
        params: CandidateParams,
        rule: DecisionRule,
        actor: str | None,
        *,
        repeated: bool,
        excluded: Sequence[int | None] = (),
    ) -> list[Decision]:
        """Search for vectors [N, D], decide, and record the search, all in the caller's thread.

        `repeated`: several vectors may be of one subject. `excluded`: for each vector the id of a subject that is no
        candidate for it. All steps run in one thread, because each change of threads costs a wake-up.
        """

        def read(rows: Sequence[int], k: int) -> list[list[Match]]:
            results = self._storage.searches.search(
                target.collection.name,
                vectors[list(rows)],
                k + bool(excluded),
                fusion=params.fusion,
                where=target.where,
                fingerprint=target.collection.fingerprint,
            )
            if not excluded:
                return results
            return [
                [match for match in matches if match.subject.id != excluded[row]][:k]
                for row, matches in zip(rows, results, strict=True)
            ]

        results = decide_by_steps(rule, len(vectors), params.limit, read, repeated=repeated)
        subjects = [match.subject for decision in results for match in decision.candidates[: params.limit]]
        self._gallery.note_search(target.collection.name, subjects, actor=actor)
        return results

    def _compare(self, target: VerifyTarget, vector: Floats, fusion: Fusion, actor: str | None) -> tuple[Match, bool]:
        """Compare a vector [D] with the subject and record it: the match, and whether feedback rules it out.

        Raises:
            Unprocessable: the subject has no face.
        """
        match, denied = self._storage.searches.compare(
            target.collection.name, target.key, vector, fusion=fusion, fingerprint=target.collection.fingerprint
        )
        if match is None:
            raise Unprocessable("the subject has no face to compare with")
        self._gallery.note_search(target.collection.name, [match.subject], actor=actor)
        return match, denied


class GallerySearch(Identification):
    """Identifies and verifies each face by itself."""

    @retry_once
    async def search(self, images: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        """Return the candidates of each face of each image.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline.
        """
        target = await self._target(params)
        rule = target.rule(params)

        async def search_image(index: int, data: bytes) -> Searched:
            faces = await self._embedder.embed_image(target.pipeline, data)
            with conflict_as_pipeline_changed():
                results = await self._read(lambda: self._identify(faces, target, params, rule, actor))
                return Searched(index=index, faces=results)

        data = await self._embedder.predictor.for_each_image(images, search_image)
        return search_response(target, rule, params.fpir, data)

    def _identify(
        self,
        faces: Sequence[EmbeddedFace],
        target: SearchTarget,
        params: SearchParams,
        rule: DecisionRule,
        actor: str | None,
    ) -> list[SearchedFace]:
        """Search for the faces of one image; runs in a thread, see `_decide`."""
        positions = [
            position
            for position, face in enumerate(faces)
            if not rejection_reasons(face, quality_gate=params.quality_gate)
        ]
        vectors = np.array([faces[position].vector.numpy() for position in positions], np.float32)
        results = self._decide(target, vectors, params, rule, actor, repeated=params.repeated)
        decisions = dict(zip(positions, results, strict=True))
        return [
            searched_face(face.detected, decisions.get(position), rule, params.limit)
            for position, face in enumerate(faces)
        ]

    @retry_once
    async def verify(
        self, name: str, key: str, images: Images, params: SubjectVerifyParams, actor: str | None
    ) -> SubjectVerification:
        """Compare the image's most prominent face with the subject of the collection `name`.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `search`. Unprocessable: the subject
            has no face, or the embedder's calibration has no threshold for the rate.
        """
        target = await self._subject(name, key)
        card = target.pipeline.embedder.card
        matching = calibrated(card, target.thresholds.matching)
        threshold = threshold_at(matching, target.rate(params))
        face = await self._embedder.embed_only_image(target.pipeline, images)

        with conflict_as_pipeline_changed():
            match, denied = await self._read(lambda: self._compare(target, face.vector.numpy(), params.fusion, actor))
        return SubjectVerification(
            verified=match.similarity >= threshold.similarity and not denied,
            denied=denied,
            probability=matching.probability(match.similarity),
            distance=distance(match),
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
            face=face.detected,
            face_id=match.face,
            model=card.name,
            version=card.version,
        )


def search_response(
    target: SearchTarget, rule: DecisionRule, fpir: float, data: Sequence[Searched | Failed]
) -> SearchResponse:
    """Return the response with these results."""
    card = target.pipeline.embedder.card
    return SearchResponse(
        collection=target.size,
        threshold=1 - rule.threshold.similarity if rule.threshold else None,
        operating_point=rule_operating_point(rule),
        fpir=fpir,
        model=card.name,
        version=card.version,
        data=list(data),
    )


def searched_face(face: DetectedFace | None, decision: Decision | None, rule: DecisionRule, limit: int) -> SearchedFace:
    """Return the result of a face with at most `limit` candidates; it has no decision if it was not searched for."""
    if decision is None:
        assert face is not None  # noqa: S101  only faces can fail the quality gate
        reasons: list[SearchReason] = list(face.reasons)
        return SearchedFace(face=face, status="rejected", reasons=reasons, candidates=[])
    return SearchedFace(
        face=face,
        status="match" if decision.matched else "unknown",
        reasons=[] if rule.can_match else ["BEYOND_CALIBRATION" if rule.matching else "NOT_CALIBRATED"],
        candidates=list_candidates(decision, rule, limit),
    )


def rejection_reasons(face: EmbeddedFace, *, quality_gate: bool) -> list[Reason]:
    """Return the reasons not to search for the face; empty if it passes the quality gate, or there is no gate."""
    return face.detected.reasons if quality_gate and face.detected else []


def list_candidates(decision: Decision, rule: DecisionRule, limit: int) -> list[Candidate]:
    """Return the first `limit` candidates for a response."""
    return [
        Candidate(
            subject_id=match.subject.key,
            name=match.subject.name,
            face_id=match.face,
            probability=rule.matching.probability(match.similarity) if rule.matching else None,
            distance=distance(match),
        )
        for match in decision.candidates[:limit]
    ]


def rule_operating_point(rule: DecisionRule) -> OperatingPoint | None:
    """Return the operating point of decisions by this rule; None without calibration."""
    if not (rule.matching and rule.fmr and rule.threshold):
        return None
    return operating_point(rule.fmr, rule.matching, rule.threshold)


def _allowed_values(where: MetadataConditions) -> dict[str, list[Value]]:
    """Return the values that each key may have."""
    return {key: value.in_ if isinstance(value, OneOf) else [value] for key, value in where.items()}


def distance(match: Match) -> float:
    """Return 1 - cosine, 0..2."""
    return max(0.0, 1 - match.similarity)  # a cosine may be rounded to slightly more than 1
