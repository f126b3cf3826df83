"""What the service answers, as typed models. What a later version adds is ignored, and words of open sets are `str`."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vestibule_client.errors import ProblemDocument


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=())


class Failed(Answer):
    """A picture of several that could not be answered; its neighbours were."""

    index: int
    problem: ProblemDocument


Item = TypeVar("Item", bound=Answer)


class Answers(Answer, Generic[Item]):
    """The pictures in the order they were given; `model` is what answered, and `version` of which weights."""

    model: str
    version: str
    data: list[Item | Failed]

    @property
    def first(self) -> Item:
        """What is said of the first picture, which is often the only one.

        Raises:
            Problem: it could not be answered.
        """
        item = self.data[0]
        if isinstance(item, Failed):
            raise item.problem.error()
        return item


class Prediction(Answer):
    """A class and how sure the model is of it, 0..1. In the service's words `class_` is `class`."""

    class_: str = Field(alias="class")
    class_id: int
    confidence: float


class Classified(Answer):
    """The classes of a picture, the likeliest first."""

    index: int
    predictions: list[Prediction]


class Classification(Answers[Classified]):
    """What is in the pictures."""


class Digit(Prediction):
    """A digit of a string; `box` is (left, top, right, bottom) in pixels, right and bottom exclusive."""

    box: tuple[int, int, int, int]


class DigitString(Answer):
    """The string of digits in a picture; `confidence` is over all ways to cut and read it."""

    index: int
    sequence: str
    digits: list[Digit]
    confidence: float


class DigitStrings(Answers[DigitString]):
    """Which digits are in the pictures."""


class Landmarks(Answer):
    """Five points of a face, left and right as seen in the picture: (x, y) in pixels from its top left corner."""

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose: tuple[float, float]
    left_mouth: tuple[float, float]
    right_mouth: tuple[float, float]


class FaceQuality(Answer):
    """Measures of a face: `side` in pixels, `sharpness` above 0, `yaw` 0 and `pitch` 0.5 from the front, `brightness`
    0..255; yaw and pitch are None where the landmarks show no face's shape.
    """

    side: float
    sharpness: float
    yaw: float | None
    pitch: float | None
    brightness: float


class Face(Answer):
    """A face: `box` is (left, top, right, bottom) in pixels; `reasons` say why it should not be enrolled."""

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Landmarks
    quality: FaceQuality
    reasons: list[str]


class DetectedFaces(Answer):
    """The faces of a picture, the surest first, and the upright picture's size in pixels.

    `scale` is the largest scale at which faces were looked for, `min_face` the side in pixels of the smallest faces
    that show at it; None of a service that does not say so.
    """

    index: int
    width: int
    height: int
    scale: float | None = None
    min_face: float | None = None
    faces: list[Face]


class Detection(Answers[DetectedFaces]):
    """Where faces are."""


class Embedding(Answer):
    """A picture's vector, of length 1, and the face that it is of, the most prominent; None for an aligned picture."""

    index: int
    embedding: list[float]
    face: Face | None = None


class Embeddings(Answers[Embedding]):
    """The pictures as vectors."""


class OperatingPoint(Answer):
    """Where is decided: the false match rate, by whose count, and whether it lies beyond what was counted.

    `prior` is the share of pairs of one person for which `probability` is meant.
    """

    fmr: float
    calibration: str
    extrapolated: bool
    prior: float


class Comparison(Answer):
    """Two faces: whether they count as one person's, how probable that is, and their distance, 1 - cosine, 0..2."""

    verified: bool
    probability: float
    distance: float


class ComparedFace(Comparison):
    """A face of the target, compared with the source's."""

    face: Face


class Verification(Comparison):
    """The source's most prominent face against every face of the target; first of all, against the nearest."""

    threshold: float
    operating_point: OperatingPoint
    source_face: Face
    face_matches: list[ComparedFace]
    unmatched_faces: list[ComparedFace]
    model: str
    version: str


class ComparedEmbedding(Comparison):
    """A target by its place in the list."""

    index: int


class EmbeddingVerification(Answer):
    """Each target against the source, in the order they were given."""

    threshold: float
    operating_point: OperatingPoint
    model: str
    version: str
    data: list[ComparedEmbedding]


class _Image(Answer):
    """A picture as PNG in base64."""

    b64_json: str = Field(repr=False)

    @property
    def png(self) -> bytes:
        """The bytes of the file."""
        return base64.b64decode(self.b64_json)


class GeneratedImage(_Image):
    """A sample, and its class where the model is conditional."""

    label: str | None = None


class GeneratedImages(Answer):
    """Samples one by one; `seed` draws them again, and is None where latents were given."""

    created: int
    data: list[GeneratedImage]
    model: str
    version: str
    seed: int | None = None


class DenoisedImage(_Image):
    """A picture without its noise, of the size that was given.

    `psnr` is its peak signal-to-noise ratio against the reference in dB, `psnr_before` that of the picture as given:
    None without a reference, and where not one pixel differs.
    """

    index: int
    width: int
    height: int
    psnr: float | None = None
    psnr_before: float | None = None


class DenoisedImages(Answers[DenoisedImage]):
    """Clean pictures."""


class ReconstructedImage(_Image):
    """What is left of a picture that went through the latent space, of the network's size."""

    index: int
    width: int
    height: int


class ReconstructedImages(Answers[ReconstructedImage]):
    """Reconstructed pictures."""


class Encoding(Answer):
    """A picture as a point of the latent space."""

    index: int
    latent: list[float]


class Encodings(Answers[Encoding]):
    """Pictures as points of the latent space."""


class ModelSummary(Answer):
    """One model that can be asked for; `memory_bytes` is about what its loaded parts take."""

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
    """Bytes that models take, about: loaded ones, those that leave, and the budget, where there is one."""

    used: int
    leaving: int
    budget: int | None


class ModelList(Answer):
    """Every model that can be asked for."""

    data: list[ModelSummary]
    memory: ModelMemory


class Metric(Answer):
    """A figure, on which data it was taken, and whether it was measured or reported by the weights' source."""

    name: str
    value: float
    data: str
    origin: str = "measured"


class ModelCard(Answer):
    """What lies beside a model's weights: what it is, what it was trained on, how good it measured, its licence."""

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
    """A model's card and how it runs: `choosing` tells that a faster runtime is still looked for."""

    version: str
    default: bool
    loaded: bool
    memory_bytes: int
    runtime: str | None
    choosing: bool
    card: ModelCard


class ModelReloaded(Answer):
    """`change` is `added`, `reloaded`, `unchanged` or `removed`; the versions now and before, None for no model."""

    model: str
    change: str
    version: str | None
    previous: str | None


class Health(Answer):
    """`status` is `live`, `ready` or `degraded`, and `reasons` say why; the versions of the loaded models by name.

    `maintained_at` is when the last round of the gallery's maintenance ended in which no step failed.
    """

    status: str
    reasons: list[str] = Field([])
    models: dict[str, str] = Field({})
    maintained_at: datetime | None = None
