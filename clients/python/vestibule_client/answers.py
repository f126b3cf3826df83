"""The service's responses as typed models.

Unknown fields of later versions are ignored; open enumerations are `str`.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vestibule_client.errors import ProblemDocument


class Answer(BaseModel):
    """Base of all responses."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=())


class Failed(Answer):
    """An image of several that could not be processed; the others were."""

    index: int
    problem: ProblemDocument


Item = TypeVar("Item", bound=Answer)


class Answers(Answer, Generic[Item]):
    """The results of the images, in the order of the request; `model` and `version` are of the weights used."""

    model: str
    version: str
    data: list[Item | Failed]

    @property
    def first(self) -> Item:
        """The result of the first image.

        Raises:
            Problem: the image could not be processed.
        """
        item = self.data[0]
        if isinstance(item, Failed):
            raise item.problem.error()
        return item


class Prediction(Answer):
    """A class and the model's confidence in it, 0..1. `class_` is `class` in the JSON."""

    class_: str = Field(alias="class")
    class_id: int
    confidence: float


class Classified(Answer):
    """The classes of an image, the most probable first.

    `rejected`: whether it shows none of the model's classes; None without `reject`.
    """

    index: int
    predictions: list[Prediction]
    rejected: bool | None = None


class Classification(Answers[Classified]):
    """The response of `classify`."""


class Digit(Prediction):
    """A digit of a string; `box` is (left, top, right, bottom) in pixels, right and bottom exclusive."""

    box: tuple[int, int, int, int]


class DigitString(Answer):
    """The string of digits in an image; `confidence` is relative to all segmentations and readings."""

    index: int
    sequence: str
    digits: list[Digit]
    confidence: float


class DigitStrings(Answers[DigitString]):
    """The response of `classify_sequence`."""


class Landmarks(Answer):
    """Five points of a face, left and right as seen in the image: (x, y) in pixels from its top left corner."""

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose: tuple[float, float]
    left_mouth: tuple[float, float]
    right_mouth: tuple[float, float]


class FaceQuality(Answer):
    """Measures of a face: `side` in pixels, `sharpness` above 0, `yaw` 0 and `pitch` 0.5 from the front, `brightness`
    0..255; yaw and pitch are None if the landmarks do not have the shape of a face.
    """

    side: float
    sharpness: float
    yaw: float | None
    pitch: float | None
    brightness: float


class Face(Answer):
    """A face: `box` is (left, top, right, bottom) in pixels; `reasons` are the reasons not to enrol it."""

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Landmarks
    quality: FaceQuality
    reasons: list[str]


class DetectedFaces(Answer):
    """The faces of an image, the most confident first, and the upright image's size in pixels.

    `scale` is the largest scale at which faces were detected, `min_face` the side in pixels of the smallest faces that
    are detectable at it; None from older services.
    """

    index: int
    width: int
    height: int
    scale: float | None = None
    min_face: float | None = None
    faces: list[Face]


class Detection(Answers[DetectedFaces]):
    """The response of `detect`."""


class Embedding(Answer):
    """An image's vector, of length 1, and its most prominent face, from which it is; None for an aligned image."""

    index: int
    embedding: list[float]
    face: Face | None = None


class Embeddings(Answers[Embedding]):
    """The response of `embed`."""


class OperatingPoint(Answer):
    """The false match rate of a decision, the data of its calibration, and whether it is extrapolated.

    `prior` is the share of mated pairs that `probability` assumes.
    """

    fmr: float
    calibration: str
    extrapolated: bool
    prior: float


class Comparison(Answer):
    """Whether two faces are accepted as the same person's, the probability, and their distance, 1 - cosine, 0..2."""

    verified: bool
    probability: float
    distance: float


class ComparedFace(Comparison):
    """The comparison of a face of the target with the source's."""

    face: Face


class Verification(Comparison):
    """The source's most prominent face compared with every face of the target; the top fields are of the nearest."""

    threshold: float
    operating_point: OperatingPoint
    source_face: Face
    face_matches: list[ComparedFace]
    unmatched_faces: list[ComparedFace]
    model: str
    version: str


class ComparedEmbedding(Comparison):
    """The comparison of the target at `index`."""

    index: int


class EmbeddingVerification(Answer):
    """Each target compared with the source, in the order of the request."""

    threshold: float
    operating_point: OperatingPoint
    model: str
    version: str
    data: list[ComparedEmbedding]


class _Image(Answer):
    """An image as PNG in base64."""

    b64_json: str = Field(repr=False)

    @property
    def png(self) -> bytes:
        """The bytes of the PNG file."""
        return base64.b64decode(self.b64_json)


class GeneratedImage(_Image):
    """A sample, and its class if the model is conditional."""

    label: str | None = None


class GeneratedImages(Answer):
    """Generated images; `seed` generates them again, and is None if latents were given."""

    created: int
    data: list[GeneratedImage]
    model: str
    version: str
    seed: int | None = None


class DenoisedImage(_Image):
    """A denoised image of the input's size.

    `psnr` is its peak signal-to-noise ratio against the reference in dB, `psnr_before` that of the input: None without
    a reference, and if no pixel differs.
    """

    index: int
    width: int
    height: int
    psnr: float | None = None
    psnr_before: float | None = None


class DenoisedImages(Answers[DenoisedImage]):
    """The response of `denoise`."""


class ReconstructedImage(_Image):
    """An image reconstructed from its latent, of the network's size."""

    index: int
    width: int
    height: int


class ReconstructedImages(Answers[ReconstructedImage]):
    """The response of `reconstruct`."""


class Encoding(Answer):
    """An image's latent."""

    index: int
    latent: list[float]


class Encodings(Answers[Encoding]):
    """The response of `encode`."""


class ModelSummary(Answer):
    """An available model; `memory_bytes` is the approximate memory of its loaded submodels."""

    name: str
    version: str
    task: str
    description: str
    license: str
    parameters: int
    classes: int
    default: bool
    loaded: bool
    memory_bytes: int


class ModelMemory(Answer):
    """Approximate memory of models in bytes: of loaded models, of models being evicted, and the budget, if any."""

    used: int
    leaving: int
    budget: int | None


class ModelList(Answer):
    """The response of `models`."""

    data: list[ModelSummary]
    memory: ModelMemory


class Metric(Answer):
    """A figure, the data it was measured on, and whether it was measured here or reported by the weights' source."""

    name: str
    value: float
    data: str
    origin: str = "measured"


class ModelCard(Answer):
    """The description of a model's weights: architecture, training data, metrics, licence."""

    name: str
    description: str
    task: str
    architecture: str
    config: dict[str, Any]
    classes: list[str] = Field([])
    parameters: int
    metrics: list[Metric] = Field([])
    data: str
    source: str
    license: str
    sha256: str


class ModelDetail(Answer):
    """A model's card and its runtime; `choosing` is true while faster runtimes are compared."""

    version: str
    default: bool
    loaded: bool
    memory_bytes: int
    runtime: str | None
    runtimes: dict[str, str] = Field(default_factory=dict)
    choosing: bool
    card: ModelCard


class ModelReloaded(Answer):
    """`change` is `added`, `reloaded`, `unchanged` or `removed`; with the versions after and before, or None."""

    model: str
    change: str
    version: str | None
    previous: str | None


class Health(Answer):
    """`status` is `live`, `ready` or `degraded`, with `reasons`; `models` are the loaded models' versions.

    `maintained_at` is the end of the gallery's last maintenance in which no step failed.
    """

    status: str
    reasons: list[str] = Field([])
    models: dict[str, str] = Field({})
    maintained_at: datetime | None = None
