"""Requests and responses about bulk jobs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from app.faces.schemas import Vector
from app.gallery.schemas import EnrolParams, Key, Page, RejectedReason, SubjectProperties
from app.schemas import Problem, Schema
from index.types import ItemStatus


class BulkParams(EnrolParams):
    """The query of `POST /collections/{c}/faces:bulk`."""

    fingerprint: str | None = Field(
        None, description="The fingerprint of the vectors' pipeline, as the collection has it; required for vectors."
    )


class BulkLine(SubjectProperties):
    """A line of NDJSON: an image or a vector of a subject.

    If it has any of `name`, `metadata` and `expires_at`, the three replace those of the subject.
    """

    subject_id: Key
    image: str | None = Field(None, description="Base64 or a data URI.")
    vector: Vector | str | None = Field(None, description="Numbers, or base64 of little-endian float32.")

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if (self.image is None) == (self.vector is None):
            raise ValueError("expected either an image or a vector")
        return self


class JobInfo(Schema):
    """A job and its progress: the number of its items in total and of each status."""

    id: str
    collection: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    problem: str | None = Field(description="Why it failed.")
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    total: int
    items: dict[ItemStatus, int]


class JobPage(Page[JobInfo, int]):
    """A page of jobs, in the order they were sent; `next` is the `after` of the following page."""


class JobItem(Schema):
    """The outcome of line or file `index`, counted from 0; it does not identify the subject.

    `rejected`: its faces are of insufficient quality. `failed`: it has no face, or cannot be read. `erased`: its
    subject was erased before it was enrolled.
    """

    index: int
    status: ItemStatus
    faces: list[str] = Field(default_factory=list, description="Ids of the enrolled faces.")
    reasons: list[RejectedReason] = Field(default_factory=list)
    problem: Problem | None = None


class JobItemPage(Page[JobItem, int]):
    """A page of items, in the order they were sent; `next` is the `after` of the following page."""
