"""The gallery's responses as typed models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from vestibule_client.answers import Answer, Answers, Face, Failed, OperatingPoint
from vestibule_client.errors import ProblemDocument


class CollectionInfo(Answer):
    """A collection; `fingerprint` identifies the pipeline from image to vector."""

    name: str
    embedder: str
    fingerprint: str
    dimensions: int
    keep_crops: bool
    encrypted: bool
    allow_int8: bool = False
    created_at: datetime


class Reembedding(Answer):
    """The re-embedding of a collection: `done` of its `faces` have a new vector.

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
    """A collection with its counts, and whether a search compares every face (`exact`)."""

    subjects: int
    faces: int
    exact: bool
    reembedding: Reembedding | None


class CollectionPage(Answer):
    """A page of collections; `next` is the `after` of the next page, None on the last."""

    data: list[CollectionInfo]
    next: str | None


class SubjectInfo(Answer):
    """A subject with the caller's `id`."""

    id: str
    name: str | None = None
    metadata: dict[str, Any] = Field({})
    expires_at: datetime | None = None
    created_at: datetime
    faces: int


class SubjectPage(Answer):
    """A page of subjects; `next` is the `after` of the next page, None on the last."""

    data: list[SubjectInfo]
    next: str | None


class EnrolledFace(Answer):
    """A face in the gallery, with its measures at enrolment."""

    id: str
    created_at: datetime
    details: dict[str, Any]


class FaceList(Answer):
    """A page of a subject's faces in the order of enrolment; `next` is the `after` of the next page, if any."""

    data: list[EnrolledFace]
    next: int | None = None


class IndexedFace(Answer):
    """A face that was enrolled from image `index`; `face` is None if images are embedded whole."""

    index: int
    face_id: str
    face: Face | None


class RejectedFace(Answer):
    """A face of image `index` that was not enrolled, with the reasons."""

    index: int
    face: Face
    reasons: list[str]


class Enrolment(Answer):
    """The results of an enrolment: faces `indexed`, faces `rejected`, and images that `failed`."""

    indexed: list[IndexedFace]
    rejected: list[RejectedFace]
    failed: list[Failed]


class ErasureReceipt(Answer):
    """An erasure; `status` is `scrubbing` until no file contains the data any more, then `erased`.

    `backups_until` is when the last backup that may contain the data is deleted; None while `scrubbing`, or if the
    operator has not stated how long backups are kept.
    """

    id: str
    status: str
    subjects: int
    faces: int
    sightings: int = 0
    requested_at: datetime
    erased_at: datetime | None
    backups_until: datetime | None = None


class Candidate(Answer):
    """A candidate subject by its nearest face; `probability` is None without calibration."""

    subject_id: str
    name: str | None
    face_id: str
    probability: float | None
    distance: float


class SearchedFace(Answer):
    """A face (None: the whole image) and its candidates, the most probable first.

    `status` is `match` if the first candidate is within the threshold, `unknown` if none is, and `rejected` if the face
    was not searched.
    """

    face: Face | None
    status: str
    reasons: list[str]
    candidates: list[Candidate]


class Searched(Answer):
    """The faces of an image, the most confident first."""

    index: int
    faces: list[SearchedFace]


class Chosen(Answer):
    """How many subjects and faces match `where`."""

    subjects: int
    faces: int


class SearchedCollection(Answer):
    """The searched collection; `exact` if every face was compared."""

    name: str
    subjects: int
    faces: int
    exact: bool
    chosen: Chosen | None


class SearchResult(Answers[Searched]):
    """The response of `search`; `threshold` is the largest distance of a match, None without calibration."""

    collection: SearchedCollection
    threshold: float | None
    operating_point: OperatingPoint | None
    fpir: float


class SubjectVerification(Answer):
    """Whether the image's most prominent face is the subject; `denied`: feedback says that it is not."""

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


class PassageFrame(Answer):
    """A frame and its most prominent face, whose share of the decision is `weight`, 0..1.

    `status` is `fused`, `no_face`, `rejected` (see `reasons`), `other_person` if the face does not look like the person
    of the other frames, or `surplus` if enough frames have a higher quality.
    """

    index: int
    status: str
    face: Face | None
    reasons: list[str]
    weight: float


class FusedFrames(Answers[PassageFrame]):
    """The frames of a passage; `frames` of them were fused.

    `reasons` may have `SEVERAL_PEOPLE`, if frames of another person were left out, and `BEYOND_CALIBRATION`.
    """

    frames: int
    reasons: list[str]


class PassageResult(FusedFrames):
    """The response of `search_passage`: one decision.

    `status` is `match` if the first candidate is within the threshold, `unknown` if none is, and `rejected` if no frame
    has a face to search for. `fpir` is promised per passage.
    """

    collection: SearchedCollection
    status: str
    candidates: list[Candidate]
    threshold: float | None
    operating_point: OperatingPoint | None
    fpir: float


class PassageVerification(FusedFrames):
    """The response of `verify_passage`; `denied`: feedback says that it is not the subject."""

    verified: bool
    denied: bool
    probability: float
    distance: float
    threshold: float
    operating_point: OperatingPoint
    face_id: str


class FeedbackInfo(Answer):
    """A face that was reported not to be the subject's."""

    id: str
    created_at: datetime


class FeedbackList(Answer):
    """A page of the feedback about a subject, oldest first; `next` is the `after` of the next page, if any."""

    data: list[FeedbackInfo]
    next: str | None = None


class FaceMove(Answer):
    """The subject, and the ids of the faces that were moved to it.

    `withdrawn`: the erasure of feedback that contradicted the move, None if there was none.
    """

    subject: SubjectInfo
    faces: list[str]
    withdrawn: str | None = None


class MergeInfo(Answer):
    """A merge: `subject` has the faces of the `absorbed` ones. It can be undone until `undo_until`."""

    id: str
    subject: str
    absorbed: list[str]
    faces: int
    created_at: datetime
    undo_until: datetime
    undone_at: datetime | None = None


class MergePage(Answer):
    """A page of merges that can be undone; `next` is the `after` of the next page, None on the last."""

    data: list[MergeInfo]
    next: int | None


class LikelyDuplicate(Answer):
    """Two subjects that may be one person, by the means of their faces, with the ids of the nearest faces of both."""

    subjects: tuple[str, str]
    names: tuple[str | None, str | None]
    faces: tuple[str, str]
    distance: float


class DuplicatePage(Answer):
    """The likely duplicates of a page of subjects, nearest first; `next` is the `after` of the next page, if any."""

    data: list[LikelyDuplicate]
    next: str | None
    threshold: float
    operating_point: OperatingPoint


class Clusters(Answer):
    """Proposed clusters as positions of embeddings in the call, the largest first; `single`: those in no cluster."""

    clusters: list[list[int]]
    single: list[int]
    model: str
    version: str


class JobInfo(Answer):
    """A bulk job, which is `queued`, `running`, `done`, `failed` or `cancelled`; `items` counts items by status."""

    id: str
    collection: str
    state: str
    problem: str | None
    created_at: datetime
    finished_at: datetime | None
    total: int
    items: dict[str, int]


class JobPage(Answer):
    """A page of jobs; `next` is the `after` of the next page, None on the last."""

    data: list[JobInfo]
    next: int | None


class JobItem(Answer):
    """The status of line or file `index`: `pending`, `enrolled`, `rejected`, `failed`, `erased` or `cancelled`."""

    index: int
    status: str
    faces: list[str] = Field([])
    reasons: list[str] = Field([])
    problem: ProblemDocument | None = None


class JobItemPage(Answer):
    """A page of items; `next` is the `after` of the next page, None on the last."""

    data: list[JobItem]
    next: int | None


class RateChange(Answer):
    """An error rate at a requested rate before and after a calibration, with 95 % intervals; `after` may be None."""

    requested: float
    comparisons: int
    before: float
    before_low: float
    before_high: float
    after: float | None
    after_low: float | None
    after_high: float | None


class GroupErrors(Answer):
    """The FMR at a requested 0.01 of the strangers whose metadata have this value."""

    field: str
    value: str
    people: int
    comparisons: int
    before: float
    after: float | None


class CalibrationReport(Answer):
    """What a calibration changes: FMR per comparison, FPIR per photo of a stranger, FNIR per mated photo."""

    people: int
    photos: int
    comparisons: int
    mated: int
    fmr: list[RateChange]
    fpir: list[RateChange]
    fnir: list[RateChange]
    groups: list[GroupErrors]


class CalibrationInfo(Answer):
    """A calibration of a collection; `in_use` if its searches use it."""

    id: str
    version: int
    fingerprint: str
    created_at: datetime
    in_use: bool
    report: CalibrationReport


class CalibrationPage(Answer):
    """A page of calibrations, oldest first; `next` is the `after` of the next page, None on the last."""

    data: list[CalibrationInfo]
    next: int | None


class CalibrationInUse(Answer):
    """The calibration that searches of a collection use; None: the embedder's own."""

    calibration: CalibrationInfo | None
