"""Search a collection for the faces of images, and verify images against one subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.errors import Unprocessable
from app.faces.service import operating_point, operating_threshold
from app.gallery.access import GalleryAccess, conflict_as_pipeline_changed, retry_once
from app.gallery.embedding_pipeline import EmbeddedFace
from app.gallery.open_set import Decision, DecisionRule, decide_by_steps, rate_per_comparison
from app.gallery.search_schemas import (
    Candidate,
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
from index.types import Collection, Match


class GallerySearch(GalleryAccess):
    """Identifies and verifies faces."""

    @retry_once
    async def search(self, images: Images, params: SearchParams, actor: str | None) -> SearchResponse:
        """Return the candidates of each face of each image.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline.
        """
        where = None if params.where is None else _allowed_values(params.where)
        scope = await self._read(lambda: self._storage.searches.scope(params.collection, where))
        collection, usage = scope.collection, scope.usage
        pipeline = await self._embedder.collection_pipeline(collection)
        card, matching = pipeline.embedder.card, pipeline.embedder.card.matching
        chosen = None if scope.selected is None else Chosen(subjects=scope.selected[0], faces=scope.selected[1])
        size = chosen or usage
        comparisons = size.faces if params.fusion == "best" else size.subjects
        rule = DecisionRule.for_comparisons(matching, params.fpir, comparisons, extrapolate=params.extrapolate)

        async def search_image(index: int, data: bytes) -> Searched:
            faces = await self._embedder.embed_image(pipeline, data)
            with conflict_as_pipeline_changed():
                results = await self._read(lambda: self._identify(faces, collection, where, params, rule, actor))
                return Searched(index=index, faces=results)

        data = await self._embedder.predictor.for_each_image(images, search_image)
        return SearchResponse(
            collection=SearchedCollection(
                name=collection.name, subjects=usage.subjects, faces=usage.faces, exact=usage.exact, chosen=chosen
            ),
            threshold=1 - rule.threshold.similarity if rule.threshold else None,
            operating_point=(
                operating_point(rule.fmr, matching, rule.threshold)
                if matching and rule.fmr and rule.threshold
                else None
            ),
            fpir=params.fpir,
            model=card.name,
            version=card.version,
            data=data,
        )

    def _identify(
        self,
        faces: Sequence[EmbeddedFace],
        collection: Collection,
        where: dict[str, list[Value]] | None,
        params: SearchParams,
        rule: DecisionRule,
        actor: str | None,
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

        def read(rows: Sequence[int], k: int) -> list[list[Match]]:
            return self._storage.searches.search(
                collection.name,
                vectors[list(rows)],
                k,
                fusion=params.fusion,
                where=where,
                fingerprint=collection.fingerprint,
            )

        results = decide_by_steps(rule, len(positions), params.limit, read, repeated=params.repeated)
        subjects = [match.subject for decision in results for match in decision.candidates[: params.limit]]
        self._gallery.note_search(collection.name, subjects, actor=actor)
        decisions = dict(zip(positions, results, strict=True))
        return [
            _searched_face(face, decisions.get(position), rule, params.limit) for position, face in enumerate(faces)
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


def _searched_face(face: EmbeddedFace, decision: Decision | None, rule: DecisionRule, limit: int) -> SearchedFace:
    """Return the result of a face with at most `limit` candidates; it has no decision if it was not searched for."""
    if decision is None:
        assert face.detected is not None  # noqa: S101  only faces can fail the quality gate
        reasons: list[SearchReason] = list(face.detected.reasons)
        return SearchedFace(face=face.detected, status="rejected", reasons=reasons, candidates=[])
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
        face=face.detected,
        status="match" if decision.matched else "unknown",
        reasons=[] if rule.can_match else ["BEYOND_CALIBRATION" if rule.matching else "NOT_CALIBRATED"],
        candidates=candidates,
    )


def _allowed_values(where: MetadataConditions) -> dict[str, list[Value]]:
    """Return the values that each key may have."""
    return {key: value.in_ if isinstance(value, OneOf) else [value] for key, value in where.items()}


def _distance(match: Match) -> float:
    return max(0.0, 1 - match.similarity)  # a cosine may be rounded to slightly more than 1
