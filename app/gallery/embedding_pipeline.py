"""Compute the vectors that a collection stores for an image: of each face in it, or of the whole image."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from PIL import Image
from torch import Tensor

from app.errors import BadRequest, Conflict, DeadlineExceeded, NotReady, Overloaded, VestibuleError
from app.faces.schemas import DetectedFace
from app.faces.service import AlignedFace, Faces, by_prominence, calibrated, most_prominent
from app.gallery.schemas import EnrolParams, RejectedFace, RejectedReason
from app.images.uploads import Images
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Predictor
from app.inference.submodels import INT8
from index.types import Collection, NewFace
from models import align, detection_scale
from models.detection_scale import Scales
from models.detector import DETECTION_THRESHOLD

CROP_QUALITY = 90  # of WebP
# Temporary errors: background work that raises one is retried.
TRANSIENT = (Overloaded, DeadlineExceeded, NotReady)


@dataclass(frozen=True)
class EmbeddedFace:
    """A vector, float32 [D] of length 1, and the face it is of: aligned, and as responses describe it.

    Both are None for the vector of a whole image.
    """

    aligned: AlignedFace | None
    detected: DetectedFace | None
    vector: Tensor

    @property
    def prominence(self) -> float:
        """See `detector.prominence`; 0 for a whole image."""
        return self.aligned.prominence if self.aligned else 0.0

    @property
    def details(self) -> dict[str, object]:
        """Measurements of the face that the gallery stores."""
        face = self.detected
        return {} if face is None else {"confidence": face.confidence, **face.quality.model_dump()}


@dataclass(frozen=True)
class EmbeddingPipeline:
    """An embedder, and the detector before it if it embeds faces.

    A request that holds a pipeline keeps the same two models, even if one is reloaded meanwhile. The embedder may be
    `submodels.INT8`. `scales` names the rule for detection scales: "whole" detects at the detector's size only, as in
    the oldest collections; "min-face" is `detection_scale.scan` with its default.
    """

    embedder: LoadedModel
    detector: LoadedModel | None
    scales: Scales = "min-face"

    @property
    def fingerprint(self) -> str:
        """Return the pipeline's id, which depends on everything that affects the vector of an image."""
        card = self.embedder.card
        parts: dict[str, object] = {
            "weights": card.sha256,
            "preprocess": card.preprocess.model_dump(mode="json"),
            "tta": card.tta,
        }
        if self.embedder.submodel == INT8 and card.int8 is not None:
            parts["int8"] = card.int8.sha256
        if self.detector is not None:
            parts |= {"detector": self.detector.card.sha256, "alignment": [align.TEMPLATE, align.SIDE]}
            # The first rule is left out, so that the fingerprints of collections that use it do not change.
            if self.scales != "whole":
                parts["detection_scale"] = [
                    self.scales,
                    detection_scale.SMALLEST,
                    detection_scale.MIN_FACE,
                    detection_scale.SHARE,
                ]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return f"{card.name}:{digest[:16]}"

    def check_calibration(self) -> None:
        """Check that faces can be compared: that an embedder of faces has thresholds.

        Raises:
            Unprocessable: it has none; the message names the command that computes them.
        """
        if self.detector is not None:
            calibrated(self.embedder.card, self.embedder.card.matching)


class ImageEmbedder:
    """Loads pipelines, and embeds images with them."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self.faces = Faces(predictor)

    async def pipeline(self, embedder: str | None, *, allow_int8: bool = False) -> EmbeddingPipeline:
        """Return the pipeline of the embedder (None: the default) with its current weights.

        Raises:
            UnknownModel: no such model, or it does not embed. NotReady: its files do not match each other.
        """
        models = self.predictor.model_manager
        model = await models.load_embedder(embedder, allow_int8=allow_int8)
        detector = await models.load(None, "detect") if model.card.task == "embed" else None
        return EmbeddingPipeline(model, detector)

    async def pipeline_with_fingerprint(
        self, embedder: str, fingerprint: str, *, allow_int8: bool
    ) -> EmbeddingPipeline | None:
        """Return the embedder's pipeline with this fingerprint, or None if its current weights have another.

        Raises:
            UnknownModel, NotReady: see `pipeline`.
        """
        # A collection that allows int8 has vectors of torch if the embedder was quantised after its creation.
        for allowed in (True, False) if allow_int8 else (False,):
            pipeline = await self.pipeline(embedder, allow_int8=allowed)
            for variant in (pipeline, replace(pipeline, scales="whole")):
                if variant.fingerprint == fingerprint:
                    return variant
        return None

    async def collection_pipeline(self, collection: Collection) -> EmbeddingPipeline:
        """Return the pipeline that computed the collection's vectors.

        Raises:
            Conflict: the embedder's current weights are not those of the collection.
        """
        pipeline = await self.pipeline_with_fingerprint(
            collection.embedder, collection.fingerprint, allow_int8=allows_int8(collection)
        )
        if pipeline is None:
            raise Conflict(
                f"{collection.name!r} holds vectors of another version of {collection.embedder};"
                f" POST /collections/{quote(collection.name)}/reembed computes them again from the stored crops"
            )
        return pipeline

    async def embed_image(self, pipeline: EmbeddingPipeline, data: bytes) -> list[EmbeddedFace]:
        """Return the image's faces, most confident first; or the whole image if the pipeline has no detector."""
        if pipeline.detector is None:
            vector = await self.faces.embed_whole_image(pipeline.embedder, data)
            return [EmbeddedFace(None, None, vector)]
        faces = await self._find(pipeline.detector, pipeline.scales, data)
        return await self._embed(pipeline.embedder, faces) if faces else []

    async def _find(self, detector: LoadedModel, scales: Scales, data: bytes) -> list[AlignedFace]:
        rule = detection_scale.whole if scales == "whole" else detection_scale.scan
        return (await self.faces.find(detector, data, DETECTION_THRESHOLD, rule)).faces

    async def _embed(self, embedder: LoadedModel, faces: Sequence[AlignedFace]) -> list[EmbeddedFace]:
        vectors = await self.faces.embed_faces(embedder, faces)
        return [EmbeddedFace(face, face.describe(), vector) for face, vector in zip(faces, vectors, strict=True)]

    async def embed_most_prominent(self, pipeline: EmbeddingPipeline, data: bytes) -> EmbeddedFace:
        """Return the image's most prominent face; or the whole image if the pipeline has no detector.

        Raises:
            NoFace. VestibuleError: about the image.
        """
        if pipeline.detector is None:
            return (await self.embed_image(pipeline, data))[0]
        face = most_prominent(await self._find(pipeline.detector, pipeline.scales, data))
        return (await self._embed(pipeline.embedder, [face]))[0]

    async def embed_only_image(self, pipeline: EmbeddingPipeline, images: Images) -> EmbeddedFace:
        """Return the most prominent face of a request that has exactly one image.

        Raises:
            BadRequest: it has more than one image. NoFace. VestibuleError: about the image.
        """
        if len(images.items) != 1:
            raise BadRequest("send exactly one image")
        (data,) = images.items
        if isinstance(data, VestibuleError):
            raise data
        await self.predictor.check_pixels([data])
        return await self.predictor.with_deadline(self.embed_most_prominent(pipeline, data))

    async def new_faces(self, subject: str, faces: Sequence[EmbeddedFace], *, keep_crops: bool) -> list[NewFace]:
        """Return the faces to enrol for the subject, with their crops if the collection keeps those."""
        crops = await self.predictor.map(encode_crop, faces) if keep_crops else [None] * len(faces)
        return [
            NewFace(subject, face.vector.numpy(), face.details, crop) for face, crop in zip(faces, crops, strict=True)
        ]


def encode_crop(face: EmbeddedFace) -> bytes | None:
    """Return the aligned face as WebP of 112x112 pixels, or None for a whole image."""
    return None if face.aligned is None else encode_photo(Image.fromarray(face.aligned.crop))


def encode_photo(image: Image.Image) -> bytes:
    """Return an RGB image as WebP, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=CROP_QUALITY)
    return buffer.getvalue()


def select_faces(
    index: int, faces: Sequence[EmbeddedFace], params: EnrolParams
) -> tuple[list[EmbeddedFace], list[RejectedFace]]:
    """Split the faces of image `index` into those to enrol and those to reject.

    Faces that fail the quality gate are rejected; of the others the `max_faces` most prominent are enrolled.
    """
    accepted: list[EmbeddedFace] = []
    rejected: list[RejectedFace] = []
    for face in by_prominence(faces):
        if face.detected is None:
            accepted.append(face)
            continue
        reasons: list[RejectedReason] = list(face.detected.reasons) if params.quality_gate else []
        if not reasons and len(accepted) == params.max_faces:
            reasons = ["EXCEEDS_MAX_FACES"]
        if reasons:
            rejected.append(RejectedFace(index=index, face=face.detected, reasons=reasons))
        else:
            accepted.append(face)
    return accepted, rejected


def keeps_crops(collection: Collection) -> bool:
    """Return whether the collection stores the crop of each face; imported collections may have no such setting."""
    return collection.settings.get("keep_crops") is True


def allows_int8(collection: Collection) -> bool:
    """Return whether the collection may have vectors of quantised networks; older collections have no such setting."""
    return collection.settings.get("allow_int8") is True
