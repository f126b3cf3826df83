"""What goes in and out of bulk jobs, as typed models."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from app.faces.schemas import Vector
from app.gallery.schemas import EnrolParams, Key, RejectedReason, SubjectProperties
from app.schemas import Problem, Schema
from index.types import ItemStatus


class BulkParams(EnrolParams):
    """The query of `POST /collections/{c}/faces:bulk`."""

    fingerprint: str | None = Field(
        None, description="Of the pipeline that made the vectors, as the collection tells it; needed to send vectors."
    )


class BulkLine(SubjectProperties):
    """A line of NDJSON: a picture or a vector of a subject.

    Where one of `name`, `metadata` and `expires_at` is there, the three are what the subject has from then on.
    """

    subject_id: Key
    image: str | None = Field(None, description="Base64 or a data URI.")
    vector: Vector | str | None = Field(None, description="Numbers, or base64 of little-endian float32.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.image is None) == (self.vector is None):
            raise ValueError("expected either an image or a vector")
        return self


class JobInfo(Schema):
    """A job, and how far it is: `total` items, and how many of them are of each status."""

    id: str
    collection: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    problem: str | None = Field(description="Why it failed.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    total: int
    items: dict[ItemStatus, int]


class JobPage(Schema):
    """Some jobs in the order they were sent; `next` is the `after` of the following page."""

    data: list[JobInfo]
    next: int | None


class JobItem(Schema):
    """What became of line or file `index`, counted from 0.

    `rejected`: its faces have something against them. `failed`: it has no face, or cannot be read. `erased`: its
    subject was erased before it was enrolled. Nothing here says whose it is.
    """

    index: int
    status: ItemStatus
    faces: list[str] = Field(default_factory=list, description="Ids of the faces enrolled.")
    reasons: list[RejectedReason] = Field(default_factory=list)
    problem: Problem | None = None


class JobItemPage(Schema):
    """Some items in the order they were sent; `next` is the `after` of the following page."""

    data: list[JobItem]
    next: int | None
