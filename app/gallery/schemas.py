"""Requests and responses about collections, subjects, faces and erasures."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from app.faces.schemas import DetectedFace
from app.schemas import Failed, Schema
from index.types import CountedSubject, Receipt
from index.validation import check_object, check_timestamp, read_timestamp
from models.align import Reason

# Letters of any alphabet and joiners: \w in OpenAPI's regular expressions is ASCII only. No slashes and no control
# characters, since keys are parts of URLs.
_SIGNS = "_\u200c\u200d.@:+ -"
_CHARACTER = rf"[\p{{L}}\p{{M}}\p{{N}}{_SIGNS}]"
_MAX_CHARACTERS = 128
DAY_S = 86_400


def _validate_key(value: Any, validate: ValidatorFunctionWrapHandler) -> str:
    """Return the key, or raise an error that names its first invalid character."""
    try:
        return str(validate(value))
    except ValidationError:
        if not isinstance(value, str):
            raise
        allowed = f"expected 1 to {_MAX_CHARACTERS} letters, digits, spaces and . _ @ : + -"
        invalid = next(
            (c for c in value[:_MAX_CHARACTERS] if unicodedata.category(c)[0] not in "LMN" and c not in _SIGNS), None
        )
        actual = f"{len(value)} characters"
        if invalid is not None:
            name = unicodedata.name(invalid, "")
            actual = f"U+{ord(invalid):04X}" + (f" ({name})" if name else "")
        raise PydanticCustomError(
            "invalid_key", "{allowed}; got {actual}", {"allowed": allowed, "actual": actual}
        ) from None


# An id that the caller chose. The ledger stores it in Unicode normalisation form C (index/validation.py).
Key = Annotated[str, StringConstraints(pattern=rf"^{_CHARACTER}{{1,{_MAX_CHARACTERS}}}$"), WrapValidator(_validate_key)]


def _require_text(value: object) -> object:
    """Refuse numbers: pydantic would read them as seconds or, by their size, as milliseconds since 1970."""
    if isinstance(value, int | float):
        raise ValueError("expected a date and time as text")
    return value


def _to_utc(value: datetime) -> datetime:
    """Convert the time to UTC, in which its year must be one of 1 to 9999, too."""
    try:
        utc = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("expected a time in UTC's years 1 to 9999") from error
    check_timestamp(utc.timestamp(), "it")
    return utc


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    check_object(metadata, "metadata")
    return metadata


Metadata = Annotated[dict[str, Any], AfterValidator(_check_metadata)]
Timestamp = Annotated[AwareDatetime, BeforeValidator(_require_text), AfterValidator(_to_utc)]

RejectedReason = Literal["EXCEEDS_MAX_FACES"] | Reason


Row = TypeVar("Row")
Position = TypeVar("Position")


class Page(Schema, Generic[Row, Position]):
    """A page of a list; `next` is the `after` of the following page, null on the last page."""

    data: list[Row]
    next: Position | None


class NewCollection(Schema):
    """The body of `PUT /collections/{c}`."""

    embedder: str | None = Field(
        None,
        description=(
            "A face embedder, or any classifier: its features of whole images. null: the default embedder, or that of"
            " the existing collection."
        ),
    )
    keep_crops: StrictBool = Field(
        False,
        description="Store the crop of each aligned face, so that another embedder can re-embed the collection.",
    )
    encrypted: StrictBool = Field(
        False, description="Encrypt all that identifies a subject with the operator's key. Cannot be changed later."
    )
    allow_int8: StrictBool = Field(
        False,
        description=(
            "Allow vectors of the embedder's quantised network (8-bit integers), which is faster and less exact. Cannot"
            " be changed later."
        ),
    )


class CollectionInfo(Schema):
    """A collection. `fingerprint` identifies its embedding pipeline; vectors of another pipeline are refused."""

    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    keep_crops: bool
    encrypted: bool
    allow_int8: bool
    created_at: AwareDatetime


class NewEmbedder(Schema):
    """The body of `POST /collections/{c}/reembed`."""

    embedder: str | None = Field(
        None, description="A face embedder; null: the collection's embedder, with its current weights."
    )


class ReembeddingInfo(Schema):
    """The progress of a re-embedding: `done` of the `faces` have a new vector.

    `feedback_lost` of the `feedback` has no crop and is deleted when the new vectors replace the old. From then on
    `/erasures/{erasure}` says when no file contains the old vectors any more. `blocked`: see `problem`; the
    re-embedding continues once that is solved.
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
    """A collection with its size, and whether a search compares every face (`exact`)."""

    subjects: int
    faces: int
    exact: bool
    reembedding: ReembeddingInfo | None


class CollectionPage(Page[CollectionInfo, str]):
    """A page of collections, ordered by name; `next` is the `after` of the following page."""


class SubjectProperties(Schema):
    """The body of `PUT /collections/{c}/subjects/{s}`: the properties that replace those of the subject."""

    name: Annotated[str, Field(max_length=256)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    expires_at: Timestamp | None = Field(
        None, description="From this time on the subject is not found; it is erased soon after."
    )


class SubjectInfo(Schema):
    """A person or a thing, identified by the caller's own `id`."""

    # Without the limits of requests: rows of older versions may exceed them, and checking 16 KiB of metadata takes 5 ms
    # of the event loop for each subject of a page.
    name: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    expires_at: AwareDatetime | None = Field(
        None, description="From this time on the subject is not found; it is erased soon after."
    )
    id: str
    created_at: AwareDatetime
    faces: int

    @classmethod
    def from_subject(cls, subject: CountedSubject) -> SubjectInfo:
        """Return the subject as responses show it."""
        return cls(
            id=subject.key,
            name=subject.name,
            metadata=subject.metadata,
            expires_at=None if subject.expires_at is None else read_timestamp(subject.expires_at),
            created_at=read_timestamp(subject.created_at),
            faces=subject.faces,
        )


class SubjectPage(Page[SubjectInfo, str]):
    """A page of subjects, ordered by id; `next` is the `after` of the following page.

    The subjects of an encrypted collection come in an arbitrary order that does not change.
    """


class EnrolledFace(Schema):
    """A face in the gallery; `details` are measurements of the enrolled image."""

    id: str
    created_at: AwareDatetime
    details: dict[str, Any]


class FaceList(Page[EnrolledFace, int]):
    """A page of a subject's faces, in the order of enrolment; `next` is the `after` of the following page."""


class EnrolParams(Schema):
    """The query of `POST /collections/{c}/subjects/{s}/faces`."""

    max_faces: Annotated[
        int, Field(ge=1, le=100, description="The most faces to enrol per image; the most prominent come first.")
    ] = 1
    quality_gate: bool = Field(True, description="Reject faces of insufficient quality.")


class IndexedFace(Schema):
    """A face enrolled from image `index`; `face` is null if the collection holds whole images."""

    index: int
    face_id: str
    face: DetectedFace | None


class RejectedFace(Schema):
    """A face of image `index` that was not enrolled, and why."""

    index: int
    face: DetectedFace
    reasons: list[RejectedReason]


class EnrolResponse(Schema):
    """The faces of all images that were `indexed` or `rejected`, and the images that `failed`."""

    indexed: list[IndexedFace]
    rejected: list[RejectedFace]
    failed: list[Failed]


class ErasureReceipt(Schema):
    """An erasure: `scrubbing` while files still contain the data, `erased` when none does.

    `backups_until`: when the last backup that may contain the data is deleted, as the operator has stated how long
    backups are kept; null while `scrubbing`, and where the operator has not.
    """

    id: str
    status: Literal["scrubbing", "erased"]
    subjects: int
    faces: int
    sightings: int
    requested_at: AwareDatetime
    erased_at: AwareDatetime | None
    backups_until: AwareDatetime | None

    @classmethod
    def from_receipt(cls, receipt: Receipt, backup_days: float | None) -> ErasureReceipt:
        """Return the receipt as responses show it. `backup_days`: how long a backup is kept at most."""
        erased_at = receipt.erased_at
        until = None if erased_at is None or backup_days is None else erased_at + backup_days * DAY_S
        return cls(
            id=receipt.token,
            status="scrubbing" if erased_at is None else "erased",
            subjects=receipt.subjects,
            faces=receipt.faces,
            sightings=receipt.sightings,
            requested_at=read_timestamp(receipt.requested_at),
            erased_at=None if erased_at is None else read_timestamp(erased_at),
            backups_until=None if until is None else read_timestamp(until),
        )
