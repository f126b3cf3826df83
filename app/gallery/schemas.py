"""What goes in and out of the gallery's routes, as typed models."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    Json,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from app.faces.schemas import DetectedFace
from app.schemas import Failed, OperatingPoint, Schema
from index.validation import check_object, check_timestamp, read_timestamp
from models.align import Reason

# Of names in paths: no slashes, no controls.
# Of any alphabet, joiners included: \w in OpenAPI's regular expressions is ASCII's alone.
_WORD = r"\p{L}\p{M}\p{N}_" + "\u200c\u200d"
_CHARACTER = rf"[{_WORD}.@:+ -]"
_MOST_CHARACTERS = 128
_CHARACTER_OF_KEY = TypeAdapter(Annotated[str, StringConstraints(pattern=rf"^{_CHARACTER}$")])


def _explained(sent: Any, check: ValidatorFunctionWrapHandler) -> str:
    """The key, or an error that names the first character that does not belong there."""
    try:
        return str(check(sent))
    except ValidationError:
        if not isinstance(sent, str):
            raise
        allowed = f"expected 1 to {_MOST_CHARACTERS} letters, digits, spaces and . _ @ : + -"
        found = _first_invalid(sent) or f"{len(sent)} characters"
        raise PydanticCustomError(
            "invalid_key", "{allowed}; got {found}", {"allowed": allowed, "found": found}
        ) from None


def _first_invalid(sent: str) -> str:
    """The first character that is not allowed, as U+002F (SOLIDUS); empty where there is none."""
    for character in sent[:_MOST_CHARACTERS]:
        try:
            _CHARACTER_OF_KEY.validate_python(character)
        except ValidationError:
            name = unicodedata.name(character, "")
            return f"U+{ord(character):04X}" + (f" ({name})" if name else "")
    return ""


# What a caller names things by. In the ledger it is in Unicode form C (index/unicode_forms.py).
Key = Annotated[str, StringConstraints(pattern=rf"^{_CHARACTER}{{1,{_MOST_CHARACTERS}}}$"), WrapValidator(_explained)]

moment = read_timestamp


def _no_number(value: object) -> object:
    """Text, as the schema says: seconds since 1970 would be accepted, too, and milliseconds by their size."""
    if isinstance(value, int | float):
        raise ValueError("expected a date and time as text")
    return value


def _universal(sent: datetime) -> datetime:
    """In UTC, where its year must be one of 1 to 9999, too."""
    try:
        universal = sent.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time in UTC's years 1 to 9999") from error
    check_timestamp(universal.timestamp(), "it")
    return universal


def _plain(sent: dict[str, Any]) -> dict[str, Any]:
    check_object(sent, "metadata")
    return sent


Metadata = Annotated[dict[str, Any], AfterValidator(_plain)]
Moment = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_universal)]


RejectedReason = Literal["EXCEEDS_MAX_FACES"] | Reason


class NewCollection(Schema):
    """The body of `PUT /collections/{c}`."""

    embedder: str | None = Field(
        None,
        description=(
            "A face embedder, or any classifier: its features of whole pictures. null: the default, or the embedder of"
            " the collection that is there already."
        ),
    )
    keep_crops: StrictBool = Field(
        False, description="Keep each aligned face, so that a later embedder can embed it anew."
    )
    encrypted: StrictBool = Field(
        False, description="Write nothing of who is in it openly, but sealed by the operator's key. Stays so for good."
    )


class CollectionInfo(Schema):
    """A collection: `fingerprint` names the whole way from picture to vector; vectors of another are refused."""

    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    keep_crops: bool
    encrypted: bool
    created_at: AwareDatetime


class NewEmbedder(Schema):
    """The body of `POST /collections/{c}/reembed`."""

    embedder: str | None = Field(None, description="A face embedder; null: the same, whose weights are others now.")


class ReembeddingInfo(Schema):
    """What a collection is to become, and how far that is: `done` of its `faces` have a new vector.

    Of its `feedback`, `feedback_lost` has no crop, and is forgotten when the new vectors take the place of the old.
    From then on `/erasures/{erasure}` says when nothing of those is left in any file. `blocked`: see `problem`; it goes
    on by itself when that is gone.
    """

    embedder: str
    fingerprint: str
    dimensions: int
    state: Literal["queued", "running", "blocked", "cancelled"]
    problem: str | None
    faces: int
    done: int
    feedback: int
    feedback_lost: int
    requested_at: AwareDatetime
    erasure: str


class CollectionDetail(CollectionInfo):
    """With how much is in it, and whether a search compares every face (`exact`)."""

    subjects: int
    faces: int
    exact: bool
    reembedding: ReembeddingInfo | None


class CollectionPage(Schema):
    """Some collections in the order of names; `next` is the `after` of the following page."""

    data: list[CollectionInfo]
    next: str | None


class SubjectProperties(Schema):
    """The body of `PUT /collections/{c}/subjects/{s}`: what the subject has from now on."""

    name: Annotated[str, Field(max_length=256)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    expires_at: Moment | None = Field(None, description="From then on it is not found, and then erased.")


class SubjectInfo(Schema):
    """Someone, or something, by the caller's own `id`."""

    # Without the limits of what is sent: rows of older versions may be beyond them, and to check 16 KiB of metadata
    # takes 5 ms, in the event loop, for each subject of a page.
    name: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    expires_at: AwareDatetime | None = Field(None, description="From then on it is not found, and then erased.")
    id: str
    created_at: AwareDatetime
    faces: int


class SubjectPage(Schema):
    """Some subjects in the order of ids; `next` is the `after` of the following page.

    Those of an encrypted collection come in an order that means nothing, and stays.
    """

    data: list[SubjectInfo]
    next: str | None


class EnrolledFace(Schema):
    """A face in the gallery: `details` has what was measured of it when it was enrolled."""

    id: str
    created_at: AwareDatetime
    details: dict[str, Any]


class FaceList(Schema):
    """A subject's faces in the order they were enrolled; `next` is the `after` of the following page."""

    data: list[EnrolledFace]
    next: int | None


class EnrolParams(Schema):
    """The query of `POST /collections/{c}/subjects/{s}/faces`."""

    max_faces: Annotated[int, Field(ge=1, le=100, description="Of one picture, the most prominent first.")] = 1
    quality_gate: bool = Field(True, description="Reject faces that have something against them.")


class IndexedFace(Schema):
    """A face that was enrolled from picture `index`; `face` is null where pictures are taken whole."""

    index: int
    face_id: str
    face: DetectedFace | None


class RejectedFace(Schema):
    """A face of picture `index` that was not enrolled, and why."""

    index: int
    face: DetectedFace
    reasons: list[RejectedReason]


class EnrolResponse(Schema):
    """What became of each picture: faces `indexed`, faces `rejected`, or `failed` as a whole."""

    indexed: list[IndexedFace]
    rejected: list[RejectedFace]
    failed: list[Failed]


class ErasureReceipt(Schema):
    """What is erased. `scrubbing` while files still hold some of it, `erased` when none does."""

    id: str
    status: Literal["scrubbing", "erased"]
    subjects: int
    faces: int
    requested_at: AwareDatetime
    erased_at: AwareDatetime | None


Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = bool | int | Finite | str


class OneOf(Schema):
    """Any of these values."""

    in_: Annotated[list[Value], Field(alias="in", min_length=1, max_length=1000, fail_fast=True)]


Wanted = Annotated[dict[str, Value | OneOf], Field(min_length=1, max_length=16)]


class SearchParams(Schema):
    """The query of `POST /search`."""

    collection: str
    limit: Annotated[int, Field(ge=1, le=100, description="How many candidates to name for each face.")] = 5
    fpir: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.01, description="The false positive identification rate: of searches for somebody who is not enrolled."
    )
    fusion: Literal["best", "mean"] = Field("best", description="How several faces of a subject count.")
    quality_gate: bool = Field(False, description="Do not search with faces that have something against them.")
    extrapolate: bool = Field(False, description="Decide beyond what the calibration can vouch for.")
    repeated: bool = Field(False, description="Several faces of one picture may be the same subject.")
    where: Json[Wanted] | None = Field(
        None,
        description=(
            "Search only subjects with these values in the first level of their metadata, as JSON: "
            '`{"site": "north", "level": {"in": [1, 2]}}`.'
        ),
    )

    @property
    def chosen(self) -> dict[str, list[Value]] | None:
        """`where`, as the values allowed of each key."""
        if self.where is None:
            return None
        return {key: value.in_ if isinstance(value, OneOf) else [value] for key, value in self.where.items()}


class Candidate(Schema):
    """A subject that may be the one: its nearest face, at `distance` 1 - cosine, 0..2.

    `probability`, 0..1, is that two pictures show one person, at the operating point's prior; null without calibration.
    """

    subject_id: str
    name: str | None
    face_id: str
    probability: float | None
    distance: float


SearchReason = Literal["BEYOND_CALIBRATION", "NOT_CALIBRATED"] | Reason


class SearchedFace(Schema):
    """One face (null: the whole picture) and who it may be, likest first.

    `match`: the first candidate is near enough for the promised rate. `unknown`: none is. `rejected`: not searched.
    """

    face: DetectedFace | None
    status: Literal["match", "unknown", "rejected"]
    reasons: list[SearchReason]
    candidates: list[Candidate]


class Searched(Schema):
    """The faces of one picture, the surest first."""

    index: int
    faces: list[SearchedFace]


class Chosen(Schema):
    """The subjects to which `where` applies."""

    subjects: int
    faces: int


class SearchedCollection(Schema):
    """What was searched: how many faces of how many subjects; `exact` where every one was compared.

    `chosen`: how many of them `where` leaves; null without it. The threshold follows the number of comparisons: of
    faces by the fusion `best`, of subjects by `mean`.
    """

    name: str
    subjects: int
    faces: int
    exact: bool
    chosen: Chosen | None


class SearchResponse(Schema):
    """The pictures in the order they were sent; `threshold` is the largest distance of a match, null for none."""

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
        0.001, description="The false match rate: of claims by somebody else, however many faces the subject has."
    )
    fusion: Literal["best", "mean"] = Field("best", description="How several faces of the subject count.")


class SubjectVerification(Schema):
    """Whether the picture's most prominent face (null: the whole picture) is the subject; `face_id` is the nearest of
    the subject's faces.

    `denied`: feedback says that it is somebody else; then it is not verified, however near it is.
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
    """A face that is not the subject's."""

    id: str
    created_at: AwareDatetime


class FeedbackList(Schema):
    """What was said of a subject, in the order of time; `next` is the `after` of the following page."""

    data: list[FeedbackInfo]
    next: str | None
