"""One decision for one passer-by: fuse the faces of several frames, and search for or verify the person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import NoFace, Unprocessable
from app.faces.service import operating_point, threshold_at
from app.gallery.access import conflict_as_pipeline_changed, retry_once
from app.gallery.embedding_pipeline import EmbeddedFace, EmbeddingPipeline
from app.gallery.open_set import CollectionThresholds, DecisionRule
from app.gallery.passage_schemas import FrameStatus, PassageFrame, PassageReason, PassageResponse, PassageVerification
from app.gallery.search import Identification, distance, list_candidates, rejection_reasons, rule_operating_point
from app.gallery.search_schemas import SearchParams, SubjectVerifyParams
from app.images.uploads import Images
from app.schemas import Failed
from index.types import Floats
from models.matching import Matching
from models.passages import MAX_FRAMES, fuse, quality_weight, same_person


@dataclass(frozen=True)
class FusedPassage:
    """The fused vector [D] of the frames (None: no frame has a face), the number of fused frames, and all frames."""

    vector: Floats | None
    fused: int
    frames: list[PassageFrame | Failed]

    @property
    def reasons(self) -> list[PassageReason]:
        """Tell that faces of other people were left out."""
        statuses = {frame.status for frame in self.frames if isinstance(frame, PassageFrame)}
        return ["SEVERAL_PEOPLE"] if "other_person" in statuses else []


class PassageSearch(Identification):
    """Identifies and verifies a person by the frames of a passage."""

    @retry_once
    async def search(self, images: Images, params: SearchParams, actor: str | None) -> PassageResponse:
        """Return the one decision on the person whom the images show.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound: no such collection. Conflict: its
            vectors are of another pipeline. Unprocessable: the embedder is not calibrated for passages.
        """
        target = await self._target(params)
        card = target.pipeline.embedder.card
        passage = await self._fuse(target.pipeline, target.thresholds, images, quality_gate=params.quality_gate)
        rule, decision = None, None
        if passage.vector is not None:
            rule = DecisionRule.for_comparisons(
                target.thresholds.passages[passage.fused - 1],
                params.fpir,
                target.comparisons,
                extrapolate=params.extrapolate,
            )
            vectors, decide = passage.vector[None], rule
            with conflict_as_pipeline_changed():
                (decision,) = await self._read(
                    lambda: self._decide(target, vectors, params, decide, actor, repeated=True)
                )
        beyond = rule is not None and not rule.can_match
        return PassageResponse(
            collection=target.size,
            status="rejected" if decision is None else "match" if decision.matched else "unknown",
            reasons=[*passage.reasons, "BEYOND_CALIBRATION"] if beyond else passage.reasons,
            candidates=list_candidates(decision, rule, params.limit) if decision and rule else [],
            frames=passage.fused,
            threshold=1 - rule.threshold.similarity if rule and rule.threshold else None,
            operating_point=rule_operating_point(rule) if rule else None,
            fpir=params.fpir,
            model=card.name,
            version=card.version,
            data=passage.frames,
        )

    @retry_once
    async def verify(
        self, name: str, key: str, images: Images, params: SubjectVerifyParams, actor: str | None
    ) -> PassageVerification:
        """Compare the person whom the images show with the subject of the collection `name`.

        Raises:
            VestibuleError: about the request, or about its only image. NotFound, Conflict: as `search`. NoFace: no
            frame has a face. Unprocessable: the subject has no face; the embedder is not calibrated for passages, or
            its calibration has no threshold for the rate.
        """
        target = await self._subject(name, key)
        passage = await self._fuse(target.pipeline, target.thresholds, images)
        if passage.vector is None:
            raise NoFace("no face was found in any of the images")
        matching = target.thresholds.passages[passage.fused - 1]
        threshold = threshold_at(matching, target.rate(params))
        vector = passage.vector
        with conflict_as_pipeline_changed():
            match, denied = await self._read(lambda: self._compare(target, vector, params.fusion, actor))
        return PassageVerification(
            verified=match.similarity >= threshold.similarity and not denied,
            denied=denied,
            probability=matching.probability(match.similarity),
            distance=distance(match),
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
            face_id=match.face,
            frames=passage.fused,
            reasons=passage.reasons,
            model=target.pipeline.embedder.card.name,
            version=target.pipeline.embedder.card.version,
            data=passage.frames,
        )

    async def _fuse(
        self,
        pipeline: EmbeddingPipeline,
        thresholds: CollectionThresholds,
        images: Images,
        *,
        quality_gate: bool = False,
    ) -> FusedPassage:
        """Return the passage whose frames are the images.

        Raises:
            Unprocessable: the embedder is not calibrated for passages. VestibuleError: about the only image.
        """
        card = pipeline.embedder.card
        matching = thresholds.matching
        if matching is None or len(thresholds.passages) < MAX_FRAMES:
            raise Unprocessable(
                f"{card.name} is not calibrated for passages: its card has no thresholds for fused frames, which"
                " `python -m training.calibrate` computes"
            )

        async def embed(index: int, data: bytes) -> EmbeddedFace | None:
            try:
                return await self._embedder.embed_most_prominent(pipeline, data)
            except NoFace:
                return None

        frames = await self._embedder.predictor.for_each_image(images, embed)
        return fuse_frames(frames, matching, quality_gate=quality_gate)


def fuse_frames(
    frames: Sequence[EmbeddedFace | Failed | None], matching: Matching, *, quality_gate: bool = False
) -> FusedPassage:
    """Return the passage of the frames' faces; None stands for a frame without a face.

    The faces that look like one person are fused, at most MAX_FRAMES of the highest quality. Faces that fail the
    quality gate are left out. `matching` is the embedder's calibration for single faces.
    """
    faces = {
        index: face
        for index, face in enumerate(frames)
        if isinstance(face, EmbeddedFace) and not rejection_reasons(face, quality_gate=quality_gate)
    }
    indices = np.array(list(faces), int)
    vectors = np.array([face.vector.numpy() for face in faces.values()], np.float64)
    weights = np.array([quality_weight(face.aligned.quality) for face in faces.values() if face.aligned])
    person = indices[same_person(vectors, weights, matching)] if faces else indices
    ranked = sorted(person.tolist(), key=dict(zip(faces, weights.tolist(), strict=True)).__getitem__, reverse=True)
    fused = np.isin(indices, ranked[:MAX_FRAMES])
    shares = dict(zip(indices[fused].tolist(), (weights[fused] / weights[fused].sum()).tolist(), strict=True))

    def describe(index: int, face: EmbeddedFace | Failed | None) -> PassageFrame | Failed:
        if isinstance(face, Failed):
            return face
        if face is None:
            return PassageFrame(index=index, status="no_face", face=None, reasons=[], weight=0)
        reasons = rejection_reasons(face, quality_gate=quality_gate)
        status: FrameStatus = "fused" if index in shares else "surplus" if index in ranked else "other_person"
        return PassageFrame(
            index=index,
            status="rejected" if reasons else status,
            face=face.detected,
            reasons=reasons,
            weight=shares.get(index, 0),
        )

    vector = fuse(vectors[fused], weights[fused]).astype(np.float32) if shares else None
    return FusedPassage(vector, len(shares), [describe(index, face) for index, face in enumerate(frames)])
