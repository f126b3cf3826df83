"""The face service: detect, embed and verify faces."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from app.errors import NoFace, Unprocessable, VestibuleError
from app.faces.schemas import (
    ComparedEmbedding,
    ComparedFace,
    Comparison,
    Detected,
    DetectedFace,
    DetectParams,
    DetectResponse,
    Embedding,
    EmbeddingPair,
    EmbeddingsRequest,
    EmbedParams,
    EmbedResponse,
    FaceQuality,
    Landmarks,
    VerifyEmbeddingsResponse,
    VerifyParams,
    VerifyResponse,
)
from app.images.uploads import Images
from app.inference.loaded_model import LoadedModel
from app.inference.predictor import Predictor
from app.schemas import OperatingPoint
from index.errors import InvalidError
from index.validation import unit_vectors
from models import align, detection_scale, detector
from models.align import Quality
from models.card import ModelCard
from models.detection_scale import Scan, scan
from models.detector import DETECTION_THRESHOLD, Face, Pixels
from models.matching import Matching, Threshold
from models.preprocess import Preprocess
from models.tta import views

# Tiles of a large image that are queued at a time. A tile takes about 0.1 s on a core.
TILES_AT_ONCE = 2

# Returns the scales of detection for an image's size, (width, height), and the detector's preprocessing.
ScaleRule: TypeAlias = Callable[[tuple[int, int], Preprocess], Scan]


@dataclass(frozen=True)
class AlignedFace:
    """A detected face, its aligned crop, uint8 [112, 112, 3], and its quality."""

    face: Face
    crop: Pixels
    quality: Quality
    prominence: float  # see `detector.prominence`

    @classmethod
    def of(cls, image: Image.Image, face: Face) -> AlignedFace | None:
        """Align and measure a face of the image, which takes milliseconds; None if its landmarks cannot be aligned."""
        try:
            crop = align.align(image, face.landmarks)
        except align.NoAlignmentError:
            return None
        return cls(face, crop, align.measure(face, crop), detector.prominence(face, image.size))

    def describe(self) -> DetectedFace:
        """Return the face for a response, with the reasons against enrolling it."""
        measures = {name: value if math.isfinite(value) else None for name, value in asdict(self.quality).items()}
        return DetectedFace(
            box=self.face.box,
            confidence=measures.pop("confidence"),
            landmarks=Landmarks(**dict(zip(Landmarks.model_fields, self.face.landmarks, strict=True))),
            quality=FaceQuality(**measures),
            reasons=list(align.reasons(self.quality)),
        )


@dataclass(frozen=True)
class DetectionResult:
    """The upright image in RGB, the scales of detection, and the faces by descending confidence."""

    image: Image.Image
    scan: Scan
    faces: list[AlignedFace]


class Faces:
    """Detects, embeds and verifies faces."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager

    async def detect(self, images: Images, params: DetectParams) -> DetectResponse:
        """Return the faces in each image, with the reasons against enrolling them.

        Raises:
            VestibuleError: about the request or its only image. In a list, an image's error becomes its item.
        """
        model = await self._model_manager.load(params.model, "detect")

        async def detect_faces(index: int, data: bytes) -> Detected:
            result = await self.find(model, data, params.threshold, partial(scan, min_face=params.min_face))
            return Detected(
                index=index,
                width=result.image.width,
                height=result.image.height,
                scale=result.scan.scale,
                min_face=result.scan.min_face,
                faces=[face.describe() for face in result.faces],
            )

        data = await self._predictor.for_each_image(images, detect_faces)
        return DetectResponse(model=model.card.name, version=model.card.version, data=data)

    async def embed(self, images: Images, params: EmbedParams) -> EmbedResponse:
        """Return the embedding of each image's most prominent face; of the whole image if the model is a classifier.

        Raises:
            VestibuleError: as `detect`; NoFace for an image without a face.
        """
        model = await self._model_manager.load_embedder(params.model)
        is_whole = params.aligned or model.card.task == "classify"
        face_detector = None if is_whole else await self._model_manager.load(None, "detect")

        async def embed_image(index: int, data: bytes) -> Embedding:
            if face_detector is None:
                return Embedding(index=index, embedding=_encode(await self.embed_whole_image(model, data), params))
            face = most_prominent((await self.find(face_detector, data, DETECTION_THRESHOLD)).faces)
            (vector,) = await self.embed_faces(model, [face])
            return Embedding(index=index, embedding=_encode(vector, params), face=face.describe())

        data = await self._predictor.for_each_image(images, embed_image)
        return EmbedResponse(model=model.card.name, version=model.card.version, data=data)

    async def embed_openai(self, request: EmbeddingsRequest, images: Images) -> EmbedResponse:
        """`embed` with OpenAI's request.

        Raises:
            VestibuleError: as `embed`; Unprocessable: if the model does not have the requested number of dimensions.
        """
        params = EmbedParams(model=request.model, encoding_format=request.encoding_format)
        if request.dimensions is not None:
            model = await self._model_manager.load_embedder(params.model)
            if request.dimensions != model.dimensions:
                raise Unprocessable(f"{model.card.name} only supports {model.dimensions} dimensions")
        return await self.embed(images, params)

    async def verify(self, images: tuple[bytes, bytes], params: VerifyParams) -> VerifyResponse:
        """Compare the most prominent face of the first image, the source, with each face of the second, the target.

        Raises:
            VestibuleError: about the request or one of its images; NoFace for an image without a face.
        """
        model = await self._model_manager.load(params.model, "embed")
        face_detector = await self._model_manager.load(None, "detect")
        matching, threshold = operating_threshold(model.card, params.fmr)
        await self._predictor.check_pixels(images)

        async def find_faces(name: str, data: bytes) -> list[AlignedFace]:
            try:
                faces = (await self.find(face_detector, data, DETECTION_THRESHOLD)).faces
                most_prominent(faces)
            except VestibuleError as error:
                error.detail = f"{name}: {error.detail or error.title}"
                raise
            return faces

        async def embed_pair() -> tuple[AlignedFace, list[AlignedFace], Tensor]:
            sources, targets = await asyncio.gather(find_faces("source", images[0]), find_faces("target", images[1]))
            source = most_prominent(sources)
            return source, targets, await self.embed_faces(model, [source, *targets])

        source, targets, vectors = await self._predictor.with_deadline(embed_pair())
        similarities = (vectors[1:] @ vectors[0]).tolist()
        faces = [
            ComparedFace(face=target.describe(), **_compare(similarity, matching, threshold).model_dump())
            for target, similarity in zip(targets, similarities, strict=True)
        ]
        faces.sort(key=lambda face: face.distance)
        return VerifyResponse(
            verified=faces[0].verified,
            probability=faces[0].probability,
            distance=faces[0].distance,
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
            source_face=source.describe(),
            face_matches=[face for face in faces if face.verified],
            unmatched_faces=[face for face in faces if not face.verified],
            model=model.card.name,
            version=model.card.version,
        )

    async def verify_embeddings(self, pair: EmbeddingPair, params: VerifyParams) -> VerifyEmbeddingsResponse:
        """Compare each target embedding with the source; vectors of any length are normalised.

        Raises:
            UnknownModel; Unprocessable: if vectors have another dimension than the model's, or are zero or infinite.
        """
        model = await self._model_manager.load(params.model, "embed")
        matching, threshold = operating_threshold(model.card, params.fmr)
        dimensions = model.card.config["dimensions"]
        vectors = [pair.source, *pair.targets]
        if any(len(vector) != dimensions for vector in vectors):
            raise Unprocessable(f"an embedding of {model.card.name} has {dimensions} numbers")
        matrix = _normalise(vectors, dimensions)
        data = [
            ComparedEmbedding(index=index, **_compare(similarity, matching, threshold).model_dump())
            for index, similarity in enumerate((matrix[1:] @ matrix[0]).tolist())
        ]
        return VerifyEmbeddingsResponse(
            threshold=1 - threshold.similarity,
            operating_point=operating_point(params.fmr, matching, threshold),
            model=model.card.name,
            version=model.card.version,
            data=data,
        )

    async def find(self, model: LoadedModel, data: bytes, threshold: float, rule: ScaleRule = scan) -> DetectionResult:
        """Detect and align the faces of an image at the scales of the rule."""
        preprocess = model.card.preprocess

        def prepare(image: Image.Image) -> tuple[Image.Image, Scan, list[list[Pixels]]]:
            scales = rule(image.size, preprocess)
            return image, scales, detection_scale.prepare(image, scales, preprocess)

        image, scales, levels = await self._predictor.decode(data, prepare)
        maps = [await self._detector_maps(model, tiles) for tiles in levels]

        def decode_faces() -> list[Face]:
            return detection_scale.merge(
                scales, [[tile for batch in level for tile in detector.decode(batch, threshold)] for level in maps]
            )

        faces = await self._predictor.map(
            partial(AlignedFace.of, image), await self._predictor.executors.run_cpu(decode_faces)
        )
        return DetectionResult(image, scales, [face for face in faces if face is not None])

    async def _detector_maps(self, model: LoadedModel, tiles: Sequence[Pixels]) -> list[Tensor]:
        """Run the detector on a level's tiles and return its maps in batches [N, 15, h, w].

        Few tiles are queued at a time, so that other requests can run in between. The tiles of all large images share
        the predictor's slots; an image of a single tile does not need one.
        """
        slots = self._predictor.tile_slots if len(tiles) > 1 else None
        return [
            await self._predictor.run(model, tiles[first : first + TILES_AT_ONCE], "detect", slots)
            for first in range(0, len(tiles), TILES_AT_ONCE)
        ]

    async def embed_faces(self, model: LoadedModel, faces: Sequence[AlignedFace]) -> Tensor:
        """Return the faces' embeddings [N, D], each of length 1."""
        preprocess = model.card.preprocess
        inputs = await self._predictor.map(lambda face: preprocess(Image.fromarray(face.crop)), faces)
        return await self._embed(model, inputs)

    async def embed_whole_image(self, model: LoadedModel, data: bytes) -> Tensor:
        """Return the embedding [D], of length 1, of a whole image without face detection."""
        preprocess = model.card.preprocess
        # Aligned faces are small; only images for classifiers may be decoded at a lower resolution.
        min_side = preprocess.max_useful_side if model.card.task == "classify" else None
        item = await self._predictor.decode(data, preprocess, min_side, grey=preprocess.is_grey)
        return (await self._embed(model, [item]))[0]

    async def _embed(self, model: LoadedModel, inputs: Sequence[Tensor]) -> Tensor:
        """Return embeddings [N, D] of length 1: the mean direction over the views of the card's augmentation."""
        card = model.card
        all_views = [view for item in inputs for view in views(item, card.tta, card.preprocess)]
        outputs = await self._predictor.run(model, all_views, stage="embed")
        summed = outputs.reshape(len(inputs), -1, outputs.shape[1]).sum(dim=1)
        return torch.from_numpy(_normalise(summed.numpy(), outputs.shape[1]))


def _normalise(vectors: npt.ArrayLike, dimensions: int) -> npt.NDArray[np.float32]:
    """Scale vectors [N, D] to length 1.

    Raises:
        Unprocessable: see `unit_vectors`.
    """
    try:
        return unit_vectors(vectors, dimensions)
    except InvalidError as error:
        raise Unprocessable(str(error)) from error


class Prominent(Protocol):
    """A face that has a prominence."""

    @property
    def prominence(self) -> float:
        """See `detector.prominence`."""
        ...


P = TypeVar("P", bound=Prominent)


def by_prominence(faces: Sequence[P]) -> list[P]:
    """Sort the faces of one image by descending prominence."""
    return sorted(faces, key=lambda face: face.prominence, reverse=True)


def most_prominent(faces: Sequence[P]) -> P:
    """Return the most prominent face of an image.

    Raises:
        NoFace: there are no faces.
    """
    if not faces:
        raise NoFace("no face was found")
    return by_prominence(faces)[0]


def _encode(vector: Tensor, params: EmbedParams) -> list[float] | str:
    if params.encoding_format == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return list(vector.tolist())


def operating_threshold(card: ModelCard, fmr: float) -> tuple[Matching, Threshold]:
    """Return the embedder's calibration and its similarity threshold for a false match rate.

    Raises:
        Unprocessable: there is no calibration, or it has no threshold for the rate.
    """
    matching = calibrated(card, card.matching)
    return matching, threshold_at(matching, fmr)


def calibrated(card: ModelCard, matching: Matching | None) -> Matching:
    """Return the calibration of the embedder's vectors.

    Raises:
        Unprocessable: there is none.
    """
    if matching is None:
        raise Unprocessable(
            f"{card.name} is not calibrated: there is no similarity threshold for its embeddings. `python -m"
            f" training.calibrate weights/{card.name} --data faces` writes thresholds into its card, and"
            f" POST /models/{card.name}/reload loads them"
        )
    return matching


def threshold_at(matching: Matching, fmr: float) -> Threshold:
    """Return the calibration's similarity threshold for a false match rate.

    Raises:
        Unprocessable: it has none for the rate.
    """
    try:
        return matching.threshold(fmr)
    except ValueError as error:
        raise Unprocessable(str(error)) from error


def operating_point(fmr: float, matching: Matching, threshold: Threshold) -> OperatingPoint:
    """Return the operating point of decisions by this threshold, for a response."""
    return OperatingPoint(fmr=fmr, calibration=matching.data, extrapolated=threshold.extrapolated, prior=matching.prior)


def _compare(similarity: float, matching: Matching, threshold: Threshold) -> Comparison:
    similarity = min(1.0, similarity)  # rounding may exceed 1 for equal vectors
    return Comparison(
        verified=similarity >= threshold.similarity,
        probability=matching.probability(similarity),
        distance=1 - similarity,
    )
