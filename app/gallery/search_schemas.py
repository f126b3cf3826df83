"""Requests and responses of searches, of the verification of one subject, and of feedback about either."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, Field, Json, model_validator

from app.faces.schemas import DetectedFace, Vector
from app.gallery.schemas import Key, Page
from app.schemas import Failed, OperatingPoint, Schema
from models.align import Reason

Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = bool | int | Finite | str


class OneOf(Schema):
    """Any of these values matches."""

    in_: Annotated[list[Value], Field(alias="in", min_length=1, max_length=1000, fail_fast=True)]


MetadataConditions = Annotated[dict[str, Value | OneOf], Field(min_length=1, max_length=16)]


class CandidateParams(Schema):
    """How candidates are found and decided, of all searches."""

    collection: str
    limit: Annotated[int, Field(ge=1, le=100, description="The most candidates to return for each face.")] = 5
    fpir: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.01,
        description="The false positive identification rate: the share of searches for people not enrolled that match.",
    )
    fusion: Literal["best", "mean"] = Field(
        "best", description="Compare with a subject's nearest face, or with the mean of its similarities."
    )
    extrapolate: bool = Field(
        False, description="Decide at false match rates below those that the calibration measured."
    )
    where: Json[MetadataConditions] | None = Field(
        None,
        description=(
            "Search only subjects whose metadata have these values in their first level, as JSON: "
            '`{"site": "north", "level": {"in": [1, 2]}}`.'
        ),
    )


class SearchParams(CandidateParams):
    """The query of `POST /search`."""

    quality_gate: bool = Field(False, description="Do not search for faces of insufficient quality.")
    repeated: bool = Field(False, description="Several faces of one image may be the same subject.")
    passage: bool = Field(
        False,
        description="The images are frames of one person who passes by: one decision for all, see `PassageResponse`."
        " `fpir` is per passage, and `repeated` has no effect.",
    )


class VectorSearchParams(CandidateParams):
    """The query of `POST /search/embeddings`."""

    fingerprint: str | None = Field(
        None, description="The pipeline of the embeddings; 409 if the collection's is another. null: the collection's."
    )


class SearchedVectors(Schema):
    """The body of `POST /search/embeddings`: embeddings of the collection's pipeline, or ids of enrolled faces.

    The subject that has an enrolled face is no candidate for it.
    """

    embeddings: Annotated[list[Vector], Field(min_length=1, max_length=64, fail_fast=True)] | None = None
    faces: Annotated[list[Key], Field(min_length=1, max_length=64, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.embeddings is None) == (self.faces is None):
            raise ValueError("expected either embeddings or faces")
        return self


class Candidate(Schema):
    """A subject similar to the face. `distance` is 1 - cosine, 0..2, to `face_id`, its nearest face.

    `probability`, 0..1: that both images show the same person, given the operating point's prior; null without
    calibration.
    """

    subject_id: str
    name: str | None
    face_id: str
    probability: float | None
    distance: float


SearchReason = Literal["BEYOND_CALIBRATION", "NOT_CALIBRATED"] | Reason


class SearchedFace(Schema):
    """A face (null: the whole image) and its candidates, most similar first.

    `match`: the first candidate is within the threshold. `unknown`: none is. `rejected`: not searched, see `reasons`.
    """

    face: DetectedFace | None
    status: Literal["match", "unknown", "rejected"]
    reasons: list[SearchReason]
    candidates: list[Candidate]


class Searched(Schema):
    """The faces of one image, most confident first."""

    index: int
    faces: list[SearchedFace]


class Chosen(Schema):
    """The number of subjects that match `where`, and of their faces."""

    subjects: int
    faces: int


class SearchedCollection(Schema):
    """The collection that was searched and its size; `exact`: every face was compared.

    `chosen`: the part that matches `where`; null without it. The threshold depends on the number of comparisons: of
    faces with the fusion `best`, of subjects with `mean`.
    """

    name: str
    subjects: int
    faces: int
    exact: bool
    chosen: Chosen | None


class SearchResponse(Schema):
    """The images in the order of the request; `threshold` is the largest distance of a match, null for none."""

    collection: SearchedCollection
    threshold: float | None
    operating_point: OperatingPoint | None
    fpir: float
    model: str
    version: str
    data: list[Searched | Failed]


class SubjectVerifyParams(Schema):
    """The query of `POST /collections/{c}/subjects/{s}/verify`."""

    fmr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.001,
        description="The false match rate: the share of other people who are verified, for any number of faces.",
    )
    fusion: Literal["best", "mean"] = Field(
        "best", description="Compare with the subject's nearest face, or with the mean of its similarities."
    )
    passage: bool = Field(
        False,
        description="The images, of which there may be several, are frames of one person who passes by: one decision"
        " for all, see `PassageVerification`. `fmr` is per passage.",
    )


class SubjectVerification(Schema):
    """Whether the image's most prominent face (null: the whole image) is the subject's; `face_id` is the subject's
    nearest face.

    `denied`: feedback says that it is another person's; then `verified` is false at any distance.
    """

    verified: bool
    denied: bool
    probability: float
    distance: float
    threshold: float
    operating_point: OperatingPoint
    face: DetectedFace | None
    face_id: str
    model: str
    version: str


class FeedbackInfo(Schema):
    """Feedback that a face is not the subject's."""

    id: str
    created_at: AwareDatetime


class FeedbackList(Page[FeedbackInfo, str]):
    """A page of feedback on a subject, ordered by time; `next` is the `after` of the following page."""
