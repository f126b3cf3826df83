"""Requests and responses of merges, moved faces, likely duplicates and clusters."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from app.faces.schemas import Vector
from app.gallery.schemas import Key, Page, SubjectInfo
from app.schemas import OperatingPoint, Schema


class MergeRequest(Schema):
    """The body of `POST /collections/{c}/subjects/{s}/merge`: the subjects that the subject absorbs."""

    from_: Annotated[list[Key], Field(alias="from", min_length=1, max_length=100, fail_fast=True)]


class MergeInfo(Schema):
    """A merge: `subject` has the faces and the feedback of the `absorbed` subjects, which do not exist any more.

    `faces`: how many moved. Until `undo_until` the merge can be undone; `undone_at`: when it was.
    """

    id: str
    subject: str
    absorbed: list[str]
    faces: int
    created_at: AwareDatetime
    undo_until: AwareDatetime
    undone_at: AwareDatetime | None


class MergePage(Page[MergeInfo, int]):
    """A page of the merges that can be undone, oldest first; `next` is the `after` of the following page."""


class FaceMove(Schema):
    """The body of `POST /collections/{c}/faces/move`: ids of faces, and the subject that is to have them."""

    faces: Annotated[list[Key], Field(min_length=1, max_length=1000, fail_fast=True)]
    to: Key


class FaceMoveResponse(Schema):
    """The subject, and the ids of the faces that were another one's before.

    `withdrawn`: the erasure of feedback that said that a moved face is not the subject's; null if there was none.
    """

    subject: SubjectInfo
    faces: list[str]
    withdrawn: str | None


class DuplicateParams(Schema):
    """The query of `GET /collections/{c}/duplicates`."""

    fmr: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.00003,
        description="The false match rate of the threshold: the share of pairs of different people that are listed.",
    )
    after: Annotated[
        str, Field(max_length=128, description="Where the page begins: the `next` of the previous page.")
    ] = ""
    limit: Annotated[int, Field(ge=1, le=1000, description="The most subjects to compare with all others.")] = 100


class LikelyDuplicate(Schema):
    """Two subjects that may be one person, with the ids of the nearest faces of both.

    `distance`: 1 - cosine of the means of their faces' vectors, 0..2.
    """

    subjects: tuple[str, str]
    names: tuple[str | None, str | None]
    faces: tuple[str, str]
    distance: float


class DuplicatePage(Page[LikelyDuplicate, str]):
    """The likely duplicates of a page of subjects, nearest first; each pair is on one page only.

    `threshold` is the largest distance; `next` is the `after` of the following page, null on the last page.
    """

    threshold: float
    operating_point: OperatingPoint


class ClusterParams(Schema):
    """The query of `POST /cluster/embeddings`."""

    model: str | None = Field(None, description="The embedder of the embeddings; by default the service's default.")
    prior: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = Field(
        0.01, description="The share of all pairs of faces that are expected to show one person."
    )


class ClusterRequest(Schema):
    """The body of `POST /cluster/embeddings`: up to 5,000 embeddings of one model.

    Either lists of numbers, at most 16,384 in all, or one base64 text of all embeddings, one after the other, as
    little-endian float32.
    """

    embeddings: Annotated[list[Vector], Field(min_length=1, max_length=5000, fail_fast=True)] | str


class ClusterResponse(Schema):
    """Proposed clusters, each of one person, as positions in the request; the largest cluster first.

    `single`: the positions of the faces that are in no cluster.
    """

    clusters: list[list[int]]
    single: list[int]
    model: str
    version: str
