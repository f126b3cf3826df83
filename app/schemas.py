"""What goes in and out over HTTP, as typed models; the OpenAPI document is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.settings import MOST_IMAGES
from models.align import Reason
from models.card import ModelCard, Name

ModelName = Name
EncodingFormat = Literal["float", "base64"]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class FieldError(_Schema):
    """One parameter that does not fit."""

    parameter: str
    detail: str


class Problem(_Schema):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:vestibule:problem:unknown-model"])
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldError] | None = None
    message: str | None = Field(
        None, exclude_if=lambda value: value is None, description="All of it in a line, under /v1: what OpenAI's show."
    )


# Of what a client sends, each list has `max_length` and `fail_fast`: without them pydantic validates every item, and
# creates an error for each bad one, before anything else can refuse the list. Lists of answers have neither.
Pictures = Annotated[list[str], Field(max_length=MOST_IMAGES, fail_fast=True)]


class ImageInput(_Schema):
    """The JSON body: one picture or a list of them, each base64 or a data URI."""

    input: str | Pictures


class NoisyInput(ImageInput):
    """The same with what the pictures should become, to measure against: one reference for each."""

    reference: str | Pictures | None = None


class ClassifyParams(_Schema):
    """The query of `POST /classify`."""

    model: str | None = Field(None, description="A name from /models; left out: the service's default classifier.")
    top_k: Annotated[int, Field(ge=1, le=1000, description="How many classes to name, the likeliest first.")] = 5
    tta: bool = Field(False, description="Test-time augmentation, where the model's card has one.")
    sequence: bool = Field(
        False, description="Read a string of digits, with a model of the ten digits; `top_k` has no meaning then."
    )


class Prediction(_Schema):
    """One class and how sure the model is of it, 0..1, after temperature scaling."""

    class_: str = Field(alias="class")
    class_id: int
    confidence: float


class Classified(_Schema):
    """The answer for one picture."""

    index: int
    predictions: list[Prediction]


class Digit(Prediction):
    """One digit of a string; `box` is (x0, y0, x1, y1) in the upright picture's pixels, x1 and y1 exclusive."""

    box: tuple[int, int, int, int]


class DigitString(_Schema):
    """The string of digits in one picture, empty where there is no ink.

    A digit's confidence takes its box for granted; the string's, 0..1, is over all ways to cut and read the picture.
    """

    index: int
    sequence: str = Field(examples=["4871"])
    digits: list[Digit]
    confidence: float


class Failed(_Schema):
    """One picture of a list that could not be answered; its neighbours were."""

    index: int
    problem: Problem


class ClassifyResponse(_Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Classified | DigitString | Failed]


class DetectParams(_Schema):
    """The query of `POST /faces/detect`."""

    model: str | None = Field(None, description="A detector from /models; left out: the service's default.")
    threshold: Annotated[float, Field(ge=0.1, le=1, description="Faces less sure than this are not told of.")] = 0.5
    min_face: Annotated[float, Field(ge=8, le=10_000)] | None = Field(
        None,
        description="The side in pixels of the smallest face to look for; left out: the smaller of 40 pixels and 1/40"
        " of the photo's longer side. Smaller faces take longer. The answer has the side that was looked for.",
    )


class Landmarks(_Schema):
    """Five points of a face, left and right as seen in the picture: (x, y) in pixels from its top left corner."""

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose: tuple[float, float]
    left_mouth: tuple[float, float]
    right_mouth: tuple[float, float]


class FaceQuality(_Schema):
    """Measures of a face; yaw and pitch are null where the landmarks show no face's shape.

    `side`: the box's shorter side in pixels. `sharpness`: above 0, blurred faces below 0.01. `yaw`: 0 from the front,
    positive to the picture's right. `pitch`: about 0.5 from the front, less looking up. `brightness`: 0..255.
    """

    side: float
    sharpness: float
    yaw: float | None
    pitch: float | None
    brightness: float


class DetectedFace(_Schema):
    """One face: its box (left, top, right, bottom) in the upright picture's pixels, how sure the detector is of it.

    `reasons` say why the face should not be enrolled; none for a good one.
    """

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Landmarks
    quality: FaceQuality
    reasons: list[Reason]


class Detected(_Schema):
    """The faces of one picture, the surest first, and the upright picture's size in pixels.

    `scale`, above 0 and at most 1, is the largest scale at which faces were looked for. `min_face` is the side in
    pixels of the smallest faces that show at that scale, where they have 16 pixels. It is more than was asked for where
    the photo would have to be enlarged, or would have more than 10 million pixels at that scale.
    """

    index: int
    width: int
    height: int
    scale: float
    min_face: float
    faces: list[DetectedFace]


class DetectResponse(_Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Detected | Failed]


class EmbedParams(_Schema):
    """The query of `POST /embed`."""

    model: str | None = Field(None, description="An embedder from /models; left out: the service's default.")
    encoding_format: EncodingFormat = Field("float", description="`base64`: the little-endian float32 numbers.")
    aligned: bool = Field(
        False, description="The pictures are aligned faces already, as the model was trained on: nothing is looked for."
    )


class OpenAIRequest(_Schema):
    """A request of OpenAI's API. Fields that are not known here are ignored: its clients send new ones at any time."""

    model_config = ConfigDict(extra="ignore")


class EmbeddingsRequest(OpenAIRequest):
    """OpenAI's request for embeddings, with pictures in place of texts: each base64 or a data URI."""

    input: str | Pictures
    model: str | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(None, description="Only what the model has.")
    user: str | None = Field(None, description="Not used.")


class Embedding(_Schema):
    """A picture's embedding, of length 1, and its face: the picture's most prominent; null for an aligned picture."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    face: DetectedFace | None = None


class Usage(_Schema):
    """OpenAI's count of tokens; pictures have none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbedResponse(_Schema):
    """OpenAI's list of embeddings, the pictures in the order they were sent."""

    object: Literal["list"] = "list"
    model: str
    version: str
    data: list[Embedding | Failed]
    usage: Usage = Usage()


class VerifyParams(_Schema):
    """The query of `POST /verify` and `POST /verify/embeddings`."""

    model: str | None = Field(None, description="An embedder from /models; left out: the service's default.")
    fmr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.001, description="The false match rate: the share of pairs of strangers that may be taken for one person."
    )


class OperatingPoint(_Schema):
    """Where is decided: the false match rate, by whose count, and whether it lies beyond what was counted.

    `prior` is the share of pairs of one person for which `probability` is meant.
    """

    fmr: float
    calibration: str
    extrapolated: bool
    prior: float


class Comparison(_Schema):
    """Two faces. `probability`, 0..1, that they are one person's; `distance` is 1 - cosine of their embeddings, 0..2.

    `verified`: the distance is at most the threshold.
    """

    verified: bool
    probability: float
    distance: float


class ComparedFace(Comparison):
    """A face of the target, compared with the source's."""

    face: DetectedFace


class VerifyResponse(Comparison):
    """Whether both pictures show one person: the source's most prominent face against every face of the target.

    `verified`, `probability` and `distance` are those of the nearest face of the target.
    """

    threshold: float
    operating_point: OperatingPoint
    source_face: DetectedFace
    face_matches: list[ComparedFace]
    unmatched_faces: list[ComparedFace]
    model: str
    version: str


class PicturePair(_Schema):
    """The JSON body of `POST /verify`: two pictures, each base64 or a data URI."""

    source: str
    target: str


Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False, strict=True)]],
    Field(min_length=1, max_length=4096, fail_fast=True),
]


class EmbeddingPair(_Schema):
    """The body of `POST /verify/embeddings`: one embedding against others of the same model."""

    source: Vector
    targets: Annotated[list[Vector], Field(min_length=1, max_length=1000, fail_fast=True)]


class ComparedEmbedding(Comparison):
    """A target by its place in the list."""

    index: int


class VerifyEmbeddingsResponse(_Schema):
    """Each target against the source, in the order they were sent."""

    threshold: float
    operating_point: OperatingPoint
    model: str
    version: str
    data: list[ComparedEmbedding]


class ModelSummary(_Schema):
    """One row of `GET /models`."""

    name: str
    version: str
    task: str
    description: str
    license: str
    parameters: int
    classes: int
    default: bool
    loaded: bool
    memory_bytes: int = Field(description="What its loaded parts take, about.")


class ModelMemory(_Schema):
    """What models take, about, in bytes."""

    used: int = Field(description="By those that are loaded.")
    leaving: int = Field(description="By those that were reloaded or evicted, and still have requests under way.")
    budget: int | None = Field(description="Beyond it the least recently used are evicted; null: there is none.")


class ModelList(_Schema):
    """Every model that can be asked for."""

    data: list[ModelSummary]
    memory: ModelMemory


class OpenAIModel(_Schema):
    """A model in OpenAI's form. `created` is 0: cards do not have a date."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["vestibule"] = "vestibule"


class OpenAIModelList(_Schema):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ModelReloaded(_Schema):
    """What became of a model whose files were read anew."""

    model: str
    change: Literal["added", "reloaded", "unchanged", "removed"]
    version: str | None = Field(description="What answers from now on; null: the model is gone.")
    previous: str | None = Field(description="What answered before; null: nothing did.")


class ModelDetail(_Schema):
    """A model's card as it lies beside its weights, and how it runs here."""

    version: str
    default: bool
    loaded: bool
    memory_bytes: int
    runtime: str | None
    choosing: bool = Field(description="Whether a faster runtime is still looked for, while this one answers.")
    card: ModelCard


class Health(_Schema):
    """Probes: `live` means the process answers, `ready` that its default classifier and its face pair do.

    `degraded`: they do, but within the last minute something did not fit into a device's memory or on the disk, or the
    last round of the gallery's maintenance failed.
    """

    status: Literal["live", "ready", "degraded"]
    reasons: list[str] = Field([], description="Why it is degraded.")
    maintained_at: AwareDatetime | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="When the last round of the gallery's maintenance ended in which no step failed.",
    )
    models: dict[str, str] = Field({}, description="The versions of the loaded models, by name.")
