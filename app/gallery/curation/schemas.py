"""Requests and responses of merges and moved faces."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, Field

from app.gallery.schemas import Key, Page, SubjectInfo
from app.schemas import Schema


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
