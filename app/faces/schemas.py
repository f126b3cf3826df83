"""Requests and responses about faces: detect, embed, verify."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import Failed, ImageList, OpenAIRequest, OperatingPoint, Schema
from models.align import Reason

EncodingFormat = Literal["float", "base64"]


class DetectParams(Schema):
    """The query of `POST /faces/detect`."""

    model: str | None = Field(None, description="A detector from /models; left out: the service's default.")
    threshold: Annotated[float, Field(ge=0.1, le=1, description="Faces less sure than this are not told of.")] = 0.5
    min_face: Annotated[float, Field(ge=8, le=10_000)] | None = Field(
        None,
        description="The side in pixels of the smallest face to look for; left out: the smaller of 40 pixels and 1/40"
        " of the photo's longer side. Smaller faces take longer. The answer has the side that was looked for.",
    )


class Landmarks(Schema):
    """Five points of a face, left and right as seen in the picture: (x, y) in pixels from its top left corner."""

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose: tuple[float, float]
    left_mouth: tuple[float, float]
    right_mouth: tuple[float, float]


class FaceQuality(Schema):
    """Measures of a face; yaw and pitch are null where the landmarks show no face's shape.

    `side`: the box's shorter side in pixels. `sharpness`: above 0, blurred faces below 0.01. `yaw`: 0 from the front,
    positive to the picture's right. `pitch`: about 0.5 from the front, less looking up. `brightness`: 0..255.
    """

    side: float
    sharpness: float
    yaw: float | None
    pitch: float | None
    brightness: float


class DetectedFace(Schema):
    """One face: its box (left, top, right, bottom) in the upright picture's pixels, how sure the detector is of it.

    `reasons` say why the face should not be enrolled; none for a good one.
    """

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Landmarks
    quality: FaceQuality
    reasons: list[Reason]


class Detected(Schema):
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


class DetectResponse(Schema):
    """The pictures in the order they were sent."""

    model: str
    version: str
    data: list[Detected | Failed]


class EmbedParams(Schema):
    """The query of `POST /embed`."""

    model: str | None = Field(None, description="An embedder from /models; left out: the service's default.")
    encoding_format: EncodingFormat = Field("float", description="`base64`: the little-endian float32 numbers.")
    aligned: bool = Field(
        False, description="The pictures are aligned faces already, as the model was trained on: nothing is looked for."
    )


class EmbeddingsRequest(OpenAIRequest):
    """OpenAI's request for embeddings, with pictures in place of texts: each base64 or a data URI."""

    input: str | ImageList
    model: str | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(None, description="Only what the model has.")
    user: str | None = Field(None, description="Not used.")


class Embedding(Schema):
    """A picture's embedding, of length 1, and its face: the picture's most prominent; null for an aligned picture."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    face: DetectedFace | None = None


class Usage(Schema):
    """OpenAI's count of tokens; pictures have none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbedResponse(Schema):
    """OpenAI's list of embeddings, the pictures in the order they were sent."""

    object: Literal["list"] = "list"
    model: str
    version: str
    data: list[Embedding | Failed]
    usage: Usage = Usage()


class VerifyParams(Schema):
    """The query of `POST /verify` and `POST /verify/embeddings`."""

    model: str | None = Field(None, description="An embedder from /models; left out: the service's default.")
    fmr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.001, description="The false match rate: the share of pairs of strangers that may be taken for one person."
    )


class Comparison(Schema):
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


class PicturePair(Schema):
    """The JSON body of `POST /verify`: two pictures, each base64 or a data URI."""

    source: str
    target: str


Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False, strict=True)]],
    Field(min_length=1, max_length=4096, fail_fast=True),
]


class EmbeddingPair(Schema):
    """The body of `POST /verify/embeddings`: one embedding against others of the same model."""

    source: Vector
    targets: Annotated[list[Vector], Field(min_length=1, max_length=1000, fail_fast=True)]


class ComparedEmbedding(Comparison):
    """A target by its place in the list."""

    index: int


class VerifyEmbeddingsResponse(Schema):
    """Each target against the source, in the order they were sent."""

    threshold: float
    operating_point: OperatingPoint
    model: str
    version: str
    data: list[ComparedEmbedding]
