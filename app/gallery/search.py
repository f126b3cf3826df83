"""Search a collection for the faces of images, for vectors or enrolled faces; verify images against one subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import Conflict, Unprocessable
from app.faces.schemas import DetectedFace
from app.faces.service import operating_point, operating_threshold
from app.gallery.access import GalleryAccess, conflict_as_pipeline_changed, retry_once
from app.gallery.embedding_pipeline import EmbeddedFace, EmbeddingPipeline
from app.gallery.open_set import Decision, DecisionRule, decide_by_steps, rate_per_comparison
from app.gallery.search_schemas import (
    Candidate,
    CandidateParams,
    Chosen,
    MetadataConditions,
    OneOf,
    Searched,
    SearchedCollection,
    SearchedFace,
    SearchedVectors,
    SearchParams,
    SearchReason,
    SearchResponse,
    SubjectVerification,
    SubjectVerifyParams,
    Value,
    VectorSearchParams,
)
from app.images.uploads import Images
from app.schemas import Failed
from index.types import Floats, Match, SearchScope
from index.validation import unit_vectors
from models.card import ModelCard


@dataclass(frozen=True)
class SearchPlan:
    """How the faces of a request are searched for: the collection as it was when the request began, and the rule."""

    params: CandidateParams
    scope: SearchScope
    where: dict[str, list[Value]] | None
    card: ModelCard
    rule: DecisionRule

    def response(self, data: Sequence[Searched | Failed]) -> SearchResponse:
        """Return the response with these results."""
        collection, usage, rule, matching = self.scope.collection, self.scope.usage, self.rule, self.card.matching
        return SearchResponse(
            collection=SearchedCollection(
                name=collection.name,
                subjects=usage.subjects,
                faces=usage.faces,
                exact=usage.exact,
                chosen=_chosen(self.scope),
            ),
            threshold=1 - rule.threshold.similarity if rule.threshold else None,
            operating_point=(
                operating_point(rule.fmr, matching, rule.threshold)
                if matching and rule.fmr and rule.threshold
                else None
            ),
            fpir=self.params.fpir,
            model=self.card.name,
            version=self.card.version,
            data=list(data),
        )


class GallerySearch(GalleryAccess):
    """Identifies and verifies faces."""

    @retry_once
    async def search(self, images: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        """Return the candidates of each face of each image.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline.
        """
        plan, pipeline = await self._plan(params)

        async def search_image(index: int, data: bytes) -> Searched:
            faces = await self._embedder.embed_image(pipeline, data)
            with conflict_as_pipeline_changed():
                results = await self._read(lambda: self._identify(faces, plan, params, actor))
                return Searched(index=index, faces=results)

        return plan.response(await self._embedder.predictor.for_each_image(images, search_image))

    @retry_once
    async def search_vectors(
        self, body: SearchedVectors, params: VectorSearchParams, actor: str | None
    ) -> SearchResponse:
        """Return the candidates of each embedding, or of each enrolled face, without the subject that has that face.

        Each is decided separately.

        Raises:
            NotFound: no such collection or face. Conflict: the collection has another pipeline than the embeddings.
            Unprocessable: an embedding has another number of dimensions, or only zeros.
        """
        plan, _ = await self._plan(params)
        if params.fingerprint is not None and params.fingerprint != plan.scope.collection.fingerprint:
            raise Conflict(f"{params.collection!r} has the pipeline {plan.scope.collection.fingerprint}")

        def search() -> list[Searched]:
            if body.faces is not None:
                enrolled = [self._storage.curation.face(params.collection, face) for face in body.faces]
                vectors = np.concatenate([face.vectors for face in enrolled])
                owners: Sequence[int | None] = [face.subject.id for face in enrolled]
            else:
                vectors = unit_vectors(body.embeddings or [], plan.scope.collection.dimensions)
                owners = [None] * len(vectors)
            decisions = self._decide(vectors, plan, actor, repeated=True, excluded=owners)
            return [
                Searched(index=index, faces=[_searched_face(None, decision, plan.rule, params.limit)])
                for index, decision in enumerate(decisions)
            ]

        with conflict_as_pipeline_changed():
            return plan.response(await self._read(search))

    async def _plan(self, params: CandidateParams) -> tuple[SearchPlan, EmbeddingPipeline]:
        """Return how to search the collection, and its pipeline.

        Raises:
            NotFound: no such collection. Conflict: its vectors are of another pipeline.
        """
        where = None if params.where is None else _allowed_values(params.where)
        scope = await self._read(lambda: self._storage.searches.scope(params.collection, where))
        pipeline = await self._embedder.collection_pipeline(scope.collection)
        card, size = pipeline.embedder.card, _chosen(scope) or scope.usage
        comparisons = size.faces if params.fusion == "best" else size.subjects
        rule = DecisionRule.for_comparisons(card.matching, params.fpir, comparisons, extrapolate=params.extrapolate)
        return SearchPlan(params, scope, where, card, rule), pipeline

    def _identify(
        self, faces: Sequence[EmbeddedFace], plan: SearchPlan, params: SearchParams, actor: str | None
    ) -> list[SearchedFace]:
        """Search for the faces of one image, decide, and record the search, all in the caller's thread.

        All steps run in one thread, because each change of threads costs a wake-up.
        """
        positions = [
            position
            for position, face in enumerate(faces)
            if not (params.quality_gate and face.detected and face.detected.reasons)
        ]
        vectors = np.array([faces[position].vector.numpy() for position in positions], np.float32)
        results = self._decide(vectors, plan, actor, repeated=params.repeated)
        decisions = dict(zip(positions, results, strict=True))
        return [
            _searched_face(face.detected, decisions.get(position), plan.rule, params.limit)
            for position, face in enumerate(faces)
        ]

    def _decide(
        self,
        vectors: Floats,
        plan: SearchPlan,
        actor: str | None,
        *,
        repeated: bool,
        excluded: Sequence[int | None] | None = None,
    ) -> list[Decision]:
        """Search for the vectors [N, D], decide, and record the search.

        `excluded`: for each vector the id of a subject that is no candidate.
        """
        collection, params = plan.scope.collection, plan.params

        def read(rows: Sequence[int], k: int) -> list[list[Match]]:
            found = self._storage.searches.search(
                collection.name,
                vectors[list(rows)],
                k if excluded is None else k + 1,
                fusion=params.fusion,
                where=plan.where,
                fingerprint=collection.fingerprint,
            )
            if excluded is None:
                return found
            others = zip((excluded[row] for row in rows), found, strict=True)
            return [[match for match in matches if match.subject.id != own][:k] for own, matches in others]

        results = decide_by_steps(plan.rule, len(vectors), params.limit, read, repeated=repeated)
        subjects = [match.subject for decision in results for match in decision.candidates[: params.limit]]
        self._gallery.note_search(collection.name, subjects, actor=actor)
        return results

    @retry_once
    async def verify(
        self, name: str, key: str, images: Images, params: SubjectVerifyParams, actor: str | None
    ) -> SubjectVerification:
        """Compare the image's most prominent face with the subject of the collection `name`.

        Raises:
            VestibuleError: about the request or its image. NotFound, Conflict: as `search`. Unprocessable: the subject
            has no face, or the embedder's calibration has no threshold for the rate.
        """
        collection, subject = await self._read(
            lambda: (self._gallery.collection(name), self._gallery.subject(name, key))
        )
        pipeline = await self._embedder.collection_pipeline(collection)
        card = pipeline.embedder.card
        comparisons = subject.faces if params.fusion == "best" else 1
        matching, threshold = operating_threshold(card, rate_per_comparison(params.fmr, comparisons))
        face = await self._embedder.embed_only_image(pipeline, images)

        def compare_face() -> tuple[Match, bool]:
            match, denied = self._storage.searches.compare(
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
            match, denied = await self._read(compare_face)
        return SubjectVerification(
            verified=match.similarity >= threshold.similarity and not denied,
            denied=denied,
            probability=matching.probability(match.similarity),
            distance=_distance(match),
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
            face=face.detected,
            face_id=match.face,
            model=card.name,
            version=card.version,
        )


def _chosen(scope: SearchScope) -> Chosen | None:
    return None if scope.selected is None else Chosen(subjects=scope.selected[0], faces=scope.selected[1])


def _searched_face(
    face: DetectedFace | None, decision: Decision | None, rule: DecisionRule, limit: int
) -> SearchedFace:
    """Return the result of a face with at most `limit` candidates; it has no decision if it was not searched for."""
    if decision is None:
        assert face is not None  # noqa: S101  only faces can fail the quality gate
        reasons: list[SearchReason] = list(face.reasons)
        return SearchedFace(face=face, status="rejected", reasons=reasons, candidates=[])
    candidates = [
        Candidate(
            subject_id=match.subject.key,
            name=match.subject.name,
            face_id=match.face,
            probability=rule.matching.probability(match.similarity) if rule.matching else None,
            distance=_distance(match),
        )
        for match in decision.candidates[:limit]
    ]
    return SearchedFace(
        face=face,
        status="match" if decision.matched else "unknown",
        reasons=[] if rule.can_match else ["BEYOND_CALIBRATION" if rule.matching else "NOT_CALIBRATED"],
        candidates=candidates,
    )


def _allowed_values(where: MetadataConditions) -> dict[str, list[Value]]:
    """Return the values that each key may have."""
    return {key: value.in_ if isinstance(value, OneOf) else [value] for key, value in where.items()}


def _distance(match: Match) -> float:
    return max(0.0, 1 - match.similarity)  # a cosine may be rounded to slightly more than 1
