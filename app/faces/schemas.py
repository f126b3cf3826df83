"""Requests and responses for detecting, embedding and verifying faces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.schemas import Failed, ImageList, ModelResults, OpenAIRequest, OperatingPoint, Schema
from models.align import Reason

EncodingFormat = Literal["float", "base64"]


class DetectParams(Schema):
    """The query of `POST /faces/detect`."""

    model: str | None = Field(None, description="A detector from /models; by default the service's default.")
    threshold: Annotated[float, Field(ge=0.1, le=1, description="Faces of lower confidence are not returned.")] = 0.5
    min_face: Annotated[float, Field(ge=8, le=10_000)] | None = Field(
        None,
        description="The side in pixels of the smallest faces to detect; by default the smaller of 40 pixels and 1/40"
        " of the image's longer side. Smaller faces take longer. The response has the side that was used.",
    )


class Landmarks(Schema):
    """Five landmarks of a face, left and right as seen in the image: (x, y) in pixels from its top left corner."""

    left_eye: tuple[float, float]
    right_eye: tuple[float, float]
    nose: tuple[float, float]
    left_mouth: tuple[float, float]
    right_mouth: tuple[float, float]


class FaceQuality(Schema):
    """Quality measures of a face; yaw and pitch are null if the landmarks are implausible.

    `side`: the box's shorter side in pixels. `sharpness`: above 0; below 0.01 for blurred faces. `yaw`: 0 for a frontal
    face, positive to the image's right. `pitch`: about 0.5 for a frontal face, less when looking up. `brightness`:
    0..255.
    """

    side: float
    sharpness: float
    yaw: float | None
    pitch: float | None
    brightness: float


class DetectedFace(Schema):
    """A face: its box (left, top, right, bottom) in pixels of the upright image, and the detector's confidence.

    `reasons`: why the face should not be enrolled; empty for a face of good quality.
    """

    box: tuple[float, float, float, float]
    confidence: float
    landmarks: Landmarks
    quality: FaceQuality
    reasons: list[Reason]


class Detected(Schema):
    """The faces of one image, by descending confidence, and the upright image's size in pixels.

    `scale`, above 0 and at most 1, is the largest scale of detection. `min_face` is the side in pixels of the smallest
    faces detected at that scale, where they have 16 pixels. It exceeds the requested side if the image would have to be
    enlarged, or would have more than 10 million pixels at that scale.
    """

    index: int
    width: int
    height: int
    scale: float
    min_face: float
    faces: list[DetectedFace]


class DetectResponse(ModelResults[Detected]):
    """The results in the order of the request's images."""


class EmbedParams(Schema):
    """The query of `POST /embed`."""

    model: str | None = Field(
        None,
        description="An embedder from /models, by default the service's default; or a classifier, whose features of the"
        " whole image are returned.",
    )
    encoding_format: EncodingFormat = Field("float", description="`base64`: little-endian float32 numbers.")
    aligned: bool = Field(
        False, description="The images are aligned faces, like the model's training data: skip the detection."
    )


class EmbeddingsRequest(OpenAIRequest):
    """OpenAI's request for embeddings, with images instead of texts: each base64 or a data URI."""

    input: str | ImageList
    model: str | None = None
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = Field(None, description="Must be the model's number of dimensions.")
    user: str | None = Field(None, description="Not used.")


class Embedding(Schema):
    """An image's embedding, of length 1, and its most prominent face; null for an aligned or a whole image."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    face: DetectedFace | None = None


class Usage(Schema):
    """OpenAI's count of tokens; images have none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbedResponse(Schema):
    """OpenAI's list of embeddings, in the order of the request's images."""

    object: Literal["list"] = "list"
    model: str
    version: str
    data: list[Embedding | Failed]
    usage: Usage = Usage()


class VerifyParams(Schema):
    """The query of `POST /verify` and `POST /verify/embeddings`."""

    model: str | None = Field(None, description="An embedder from /models; by default the service's default.")
    fmr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.001, description="The accepted false match rate: the share of pairs of different persons that match."
    )


class Comparison(Schema):
    """The comparison of two faces. `probability`, 0..1: of being the same person.

    `distance` is 1 - cosine of their embeddings, 0..2; `verified`: it is at most the threshold.
    """

    verified: bool
    probability: float
    distance: float


class ComparedFace(Comparison):
    """A target face, compared with the source face."""

    face: DetectedFace


class VerifyResponse(Comparison):
    """Whether both images show the same person: the source's most prominent face against each target face.

    `verified`, `probability` and `distance` are those of the nearest target face.
    """

    threshold: float
    operating_point: OperatingPoint
    source_face: DetectedFace
    face_matches: list[ComparedFace]
    unmatched_faces: list[ComparedFace]
    model: str
    version: str


class PicturePair(Schema):
    """The JSON body of `POST /verify`: two images, each base64 or a data URI."""

    source: str
    target: str


Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False, strict=True)]],
    Field(min_length=1, max_length=4096, fail_fast=True),
]


class EmbeddingPair(Schema):
    """The body of `POST /verify/embeddings`: an embedding, and target embeddings of the same model."""

    source: Vector
    targets: Annotated[list[Vector], Field(min_length=1, max_length=1000, fail_fast=True)]


class ComparedEmbedding(Comparison):
    """A target's comparison; `index` is its position in the request."""

    index: int


class VerifyEmbeddingsResponse(Schema):
    """The comparison of each target with the source, in the request's order."""

    threshold: float
    operating_point: OperatingPoint
    model: str
    version: str
    data: list[ComparedEmbedding]
