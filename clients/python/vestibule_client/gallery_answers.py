"""What the gallery answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from vestibule_client.answers import Answer, Answers, Face, Failed, OperatingPoint
from vestibule_client.errors import ProblemDocument


class CollectionInfo(Answer):
    """A collection; `fingerprint` names the whole way from picture to vector."""

    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    keep_crops: bool
    encrypted: bool
    created_at: datetime


class Reembedding(Answer):
    """What a collection is to become: `done` of its `faces` have a new vector.

    `state` is `queued`, `running`, `blocked` (see `problem`) or `cancelled`.
    """

    embedder: str
    fingerprint: str
    dimensions: int
    state: str
    problem: str | None
    faces: int
    done: int
    feedback: int
    feedback_lost: int
    requested_at: datetime
    erasure: str


class CollectionDetail(CollectionInfo):
    """With how much is in it, and whether a search compares every face (`exact`)."""

    subjects: int
    faces: int
    exact: bool
    reembedding: Reembedding | None


class CollectionPage(Answer):
    """Some collections; `next` is the `after` of the following page, None at the end."""

    data: list[CollectionInfo]
    next: str | None


class SubjectInfo(Answer):
    """Someone, or something, by the caller's own `id`."""

    id: str
    name: str | None = None
    metadata: dict[str, Any] = Field({})
    expires_at: datetime | None = None
    created_at: datetime
    faces: int


class SubjectPage(Answer):
    """Some subjects; `next` is the `after` of the following page, None at the end."""

    data: list[SubjectInfo]
    next: str | None


class EnrolledFace(Answer):
    """A face in the gallery, and what was measured of it when it was enrolled."""

    id: str
    created_at: datetime
    details: dict[str, Any]


class FaceList(Answer):
    """A subject's faces in the order they were enrolled; `next` is the `after` of the following page, if any."""

    data: list[EnrolledFace]
    next: int | None = None


class IndexedFace(Answer):
    """A face that was enrolled from picture `index`; `face` is None where pictures are taken whole."""

    index: int
    face_id: str
    face: Face | None


class RejectedFace(Answer):
    """A face of picture `index` that was not enrolled, and why."""

    index: int
    face: Face
    reasons: list[str]


class Enrolment(Answer):
    """What became of each picture: faces `indexed`, faces `rejected`, or `failed` as a whole."""

    indexed: list[IndexedFace]
    rejected: list[RejectedFace]
    failed: list[Failed]


class ErasureReceipt(Answer):
    """What is erased: `status` is `scrubbing` while files still hold some of it, then `erased`."""

    id: str
    status: str
    subjects: int
    faces: int
    requested_at: datetime
    erased_at: datetime | None


class Candidate(Answer):
    """A subject that may be the one, by its nearest face; `probability` is None without calibration."""

    subject_id: str
    name: str | None
    face_id: str
    probability: float | None
    distance: float


class SearchedFace(Answer):
    """A face (None: the whole picture) and who it may be, the likeliest first.

    `status` is `match` where the first candidate is near enough for the promised rate, `unknown` where none is, and
    `rejected` where the face was not searched.
    """

    face: Face | None
    status: str
    reasons: list[str]
    candidates: list[Candidate]


class Searched(Answer):
    """The faces of a picture, the surest first."""

    index: int
    faces: list[SearchedFace]


class Chosen(Answer):
    """How many subjects, and faces, `where` applies to."""

    subjects: int
    faces: int


class SearchedCollection(Answer):
    """What was searched; `exact` where every face was compared."""

    name: str
    subjects: int
    faces: int
    exact: bool
    chosen: Chosen | None


class SearchResult(Answers[Searched]):
    """Who is in the pictures; `threshold` is the largest distance of a match, None without calibration."""

    collection: SearchedCollection
    threshold: float | None
    operating_point: OperatingPoint | None
    fpir: float


class SubjectVerification(Answer):
    """Whether the picture's most prominent face is the subject; `denied`: feedback says that it is somebody else."""

    verified: bool
    denied: bool
    probability: float
    distance: float
    threshold: float
    operating_point: OperatingPoint
    face: Face | None
    face_id: str
    model: str
    version: str


class FeedbackInfo(Answer):
    """A face that is not the subject's."""

    id: str
    created_at: datetime


class FeedbackList(Answer):
    """What was said of a subject, in the order of time; `next` is the `after` of the following page, if any."""

    data: list[FeedbackInfo]
    next: str | None = None


class JobInfo(Answer):
    """A bulk job, which is `queued`, `running`, `done`, `failed` or `cancelled`; how many items are of each status."""

    id: str
    collection: str
    state: str
    problem: str | None
    created_at: datetime
    finished_at: datetime | None
    total: int
    items: dict[str, int]


class JobPage(Answer):
    """Some jobs; `next` is the `after` of the following page, None at the end."""

    data: list[JobInfo]
    next: int | None


class JobItem(Answer):
    """What became of line or file `index`: `pending`, `enrolled`, `rejected`, `failed`, `erased` or `cancelled`."""

    index: int
    status: str
    faces: list[str] = Field([])
    reasons: list[str] = Field([])
    problem: ProblemDocument | None = None


class JobItemPage(Answer):
    """Some items; `next` is the `after` of the following page, None at the end."""

    data: list[JobItem]
    next: int | None
