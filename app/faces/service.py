"""The use cases about faces: where they are, what they are like, and whether two are one person's."""

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
from app.faces.request_bodies import Pair
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
    EncodingFormat,
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
from models.detector import Face, Pixels
from models.matching import Matching, Threshold
from models.preprocess import Preprocess
from models.tta import views

# Less sure faces are not told of unless a caller asks for them.
DETECTION_THRESHOLD = 0.5
# Of a large photo that are queued at once. A tile takes about 0.1 s on a core.
TILES_AT_ONCE = 2

# Of a photo's size, (width, height), and the detector's preprocessing: at which scales faces are looked for.
Rule: TypeAlias = Callable[[tuple[int, int], Preprocess], Scan]


@dataclass(frozen=True)
class FoundFace:
    """A detected face, the aligned crop of it, uint8 [112, 112, 3], and its quality."""

    face: Face
    crop: Pixels
    quality: Quality
    prominence: float  # see `detector.prominence`

    @classmethod
    def of(cls, image: Image.Image, face: Face) -> FoundFace | None:
        """Align and measure a face of this picture; takes some milliseconds. None: its landmarks have no alignment."""
        try:
            crop = align.align(image, face.landmarks)
        except align.NoAlignmentError:
            return None
        return cls(face, crop, align.measure(face, crop), detector.prominence(face, image.size))

    def described(self) -> DetectedFace:
        """The face as an answer has it, with the reasons against enrolling it."""
        measures = {name: value if math.isfinite(value) else None for name, value in asdict(self.quality).items()}
        return DetectedFace(
            box=self.face.box,
            confidence=measures.pop("confidence"),
            landmarks=Landmarks(**dict(zip(Landmarks.model_fields, self.face.landmarks, strict=True))),
            quality=FaceQuality(**measures),
            reasons=list(align.reasons(self.quality)),
        )


@dataclass(frozen=True)
class Found:
    """The upright picture in RGB, how faces were looked for in it, and those that were found, surest first."""

    image: Image.Image
    scan: Scan
    faces: list[FoundFace]


class Faces:
    """Detect, embed, verify."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors

    async def detect(self, pictures: Images, params: DetectParams) -> DetectResponse:
        """The faces in each picture, with what speaks against enrolling them.

        Raises:
            VestibuleError: about the request, or about its only picture. In a list, each picture answers for itself.
        """
        model = await self._model_manager.load(params.model, "detect")

        async def one(index: int, data: bytes) -> Detected:
            found = await self.find(model, data, params.threshold, partial(scan, min_face=params.min_face))
            return Detected(
                index=index,
                width=found.image.width,
                height=found.image.height,
                scale=found.scan.scale,
                min_face=found.scan.min_face,
                faces=[face.described() for face in found.faces],
            )

        data = await self._predictor.for_each_image(pictures, one)
        return DetectResponse(model=model.card.name, version=model.card.version, data=data)

    async def embed(self, pictures: Images, params: EmbedParams) -> EmbedResponse:
        """The embedding of each picture's most prominent face.

        Raises:
            VestibuleError: as `detect`; NoFace for a picture without one.
        """
        model = await self._model_manager.load(params.model, "embed")
        finder = None if params.aligned else await self._model_manager.load(None, "detect")

        async def one(index: int, data: bytes) -> Embedding:
            if finder is None:
                return Embedding(index=index, embedding=_encoded(await self.whole(model, data), params))
            found = await self.find(finder, data, DETECTION_THRESHOLD)
            meant = most_prominent(found.faces)
            (vector,) = await self.embedded(model, [meant])
            return Embedding(index=index, embedding=_encoded(vector, params), face=meant.described())

        data = await self._predictor.for_each_image(pictures, one)
        return EmbedResponse(model=model.card.name, version=model.card.version, data=data)

    async def embed_like_openai(self, asked: EmbeddingsRequest, pictures: Images) -> EmbedResponse:
        """`embed`, asked for in OpenAI's words.

        Raises:
            VestibuleError: as `embed`; Unprocessable: another number of dimensions than the model has.
        """
        params = EmbedParams(model=asked.model, encoding_format=asked.encoding_format)
        if asked.dimensions is not None:
            model = await self._model_manager.load(params.model, "embed")
            if asked.dimensions != model.card.config["dimensions"]:
                raise Unprocessable(f"{model.card.name} has {model.card.config['dimensions']} dimensions, no others")
        return await self.embed(pictures, params)

    async def verify(self, pair: Pair, params: VerifyParams) -> VerifyResponse:
        """The most prominent face of the source against every face of the target.

        Raises:
            VestibuleError: about the request or one of its pictures; NoFace for a picture without one.
        """
        model = await self._model_manager.load(params.model, "embed")
        finder = await self._model_manager.load(None, "detect")
        matching, threshold = _operating(model.card, params.fmr)
        await self._predictor.check_pixels([pair.source, pair.target])

        async def found(name: str, data: bytes) -> list[FoundFace]:
            try:
                faces = (await self.find(finder, data, DETECTION_THRESHOLD)).faces
                most_prominent(faces)
            except VestibuleError as error:
                error.detail = f"{name}: {error.detail or error.title}"
                raise
            return faces

        async def compared() -> tuple[FoundFace, list[FoundFace], Tensor]:
            sources, targets = await asyncio.gather(found("source", pair.source), found("target", pair.target))
            source = most_prominent(sources)
            return source, targets, await self.embedded(model, [source, *targets])

        source, targets, vectors = await self._predictor.with_deadline(compared())
        similarities = (vectors[1:] @ vectors[0]).tolist()
        faces = [
            ComparedFace(face=target.described(), **_compared(similarity, matching, threshold).model_dump())
            for target, similarity in zip(targets, similarities, strict=True)
        ]
        faces.sort(key=lambda face: face.distance)
        return VerifyResponse(
            verified=faces[0].verified,
            probability=faces[0].probability,
            distance=faces[0].distance,
            threshold=1 - threshold.similarity,
            operating_point=_operating_point(params.fmr, matching, threshold),
            source_face=source.described(),
            face_matches=[face for face in faces if face.verified],
            unmatched_faces=[face for face in faces if not face.verified],
            model=model.card.name,
            version=model.card.version,
        )

    async def verify_embeddings(self, pair: EmbeddingPair, params: VerifyParams) -> VerifyEmbeddingsResponse:
        """Each target against the source, whatever the vectors' lengths.

        Raises:
            UnknownModel; Unprocessable: vectors that the model cannot have made.
        """
        model = await self._model_manager.load(params.model, "embed")
        matching, threshold = _operating(model.card, params.fmr)
        dimensions = model.card.config["dimensions"]
        vectors = [pair.source, *pair.targets]
        if any(len(vector) != dimensions for vector in vectors):
            raise Unprocessable(f"an embedding of {model.card.name} has {dimensions} numbers")
        matrix = _of_length_1(vectors, dimensions)
        data = [
            ComparedEmbedding(index=index, **_compared(similarity, matching, threshold).model_dump())
            for index, similarity in enumerate((matrix[1:] @ matrix[0]).tolist())
        ]
        return VerifyEmbeddingsResponse(
            threshold=1 - threshold.similarity,
            operating_point=_operating_point(params.fmr, matching, threshold),
            model=model.card.name,
            version=model.card.version,
            data=data,
        )

    async def find(self, model: LoadedModel, data: bytes, threshold: float, rule: Rule = scan) -> Found:
        """The faces of a picture, looked for at the scales that the rule says."""
        preprocess = model.card.preprocess

        def prepare(picture: Image.Image) -> tuple[Image.Image, Scan, list[list[Pixels]]]:
            chosen = rule(picture.size, preprocess)
            return picture, chosen, detection_scale.prepare(picture, chosen, preprocess)

        image, chosen, levels = await self._predictor.decode(data, prepare)
        maps = [await self._maps(model, tiles) for tiles in levels]

        def faces() -> list[Face]:
            found = [[tile for batch in level for tile in detector.decode(batch, threshold)] for level in maps]
            return detection_scale.merge(chosen, found)

        found = await self._predictor.map(partial(FoundFace.of, image), await self._executors.run_cpu(faces))
        return Found(image, chosen, [face for face in found if face is not None])

    async def _maps(self, model: LoadedModel, tiles: Sequence[Pixels]) -> list[Tensor]:
        """The detector's maps of a level's tiles, in batches [N, 15, h, w]: few tiles at a time, so that others get in
        between.
        """
        return [
            await self._predictor.run(model, tiles[first : first + TILES_AT_ONCE], "detect", self._room(tiles))
            for first in range(0, len(tiles), TILES_AT_ONCE)
        ]

    def _room(self, tiles: Sequence[Pixels]) -> asyncio.Semaphore | None:
        """Tiles of all requests share few places in the detector's queue; a picture that is one tile has its own."""
        return self._predictor.tile_slots if len(tiles) > 1 else None

    async def embedded(self, model: LoadedModel, faces: Sequence[FoundFace]) -> Tensor:
        """The faces' embeddings [N, D], each of length 1."""
        preprocess = model.card.preprocess
        pictures = await self._predictor.map(lambda face: preprocess(Image.fromarray(face.crop)), faces)
        return await self._embeddings(model, pictures)

    async def whole(self, model: LoadedModel, data: bytes) -> Tensor:
        """What a model makes of the picture as it is, [D], of length 1."""
        preprocess = model.card.preprocess
        # A face that was aligned is as large as it should be, or taken at its word.
        enough = preprocess.enough if model.card.task == "classify" else None
        picture = await self._predictor.decode(data, preprocess, enough)
        vectors = await self._embeddings(model, [picture])
        return vectors[0]

    async def _embeddings(self, model: LoadedModel, pictures: Sequence[Tensor]) -> Tensor:
        """[N, D], each of length 1: the mean direction over the views that the card names."""
        card = model.card
        seen = [view for picture in pictures for view in views(picture, card.tta, card.preprocess)]
        outputs = await self._predictor.run(model, seen, stage="embed")
        summed = outputs.reshape(len(pictures), -1, outputs.shape[1]).sum(dim=1)
        return torch.from_numpy(_of_length_1(summed.numpy(), outputs.shape[1]))


def _of_length_1(vectors: npt.ArrayLike, dimensions: int) -> npt.NDArray[np.float32]:
    """The vectors [N, D] scaled to length 1.

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
    """The faces of one picture, the one that the picture is most likely of first."""
    return sorted(faces, key=lambda face: face.prominence, reverse=True)


def most_prominent(faces: Sequence[P]) -> P:
    """The face that is meant where a picture stands for one person.

    Raises:
        NoFace: there is none.
    """
    if not faces:
        raise NoFace("no face was found")
    return by_prominence(faces)[0]


def _encoded(vector: Tensor, params: EmbedParams) -> list[float] | str:
    encoding: EncodingFormat = params.encoding_format
    if encoding == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values


def _operating(card: ModelCard, fmr: float) -> tuple[Matching, Threshold]:
    if card.matching is None:
        raise Unprocessable(f"{card.name} is not calibrated: it has embeddings, but nothing says which are near enough")
    try:
        return card.matching, card.matching.threshold(fmr)
    except ValueError as error:
        raise Unprocessable(str(error)) from error


def _operating_point(fmr: float, matching: Matching, threshold: Threshold) -> OperatingPoint:
    return OperatingPoint(fmr=fmr, calibration=matching.data, extrapolated=threshold.extrapolated, prior=matching.prior)


def _compared(similarity: float, matching: Matching, threshold: Threshold) -> Comparison:
    similarity = min(1.0, similarity)  # of two equal vectors it may be a rounding error more
    return Comparison(
        verified=similarity >= threshold.similarity,
        probability=matching.probability(similarity),
        distance=1 - similarity,
    )
