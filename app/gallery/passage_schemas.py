"""Responses to searches and verifications whose images are frames of one passage."""

from __future__ import annotations

from typing import Literal

from app.faces.schemas import DetectedFace
from app.gallery.search_schemas import Candidate, SearchedCollection
from app.schemas import Failed, OperatingPoint, Schema
from models.align import Reason

FrameStatus = Literal["fused", "no_face", "rejected", "other_person", "surplus"]
PassageReason = Literal["BEYOND_CALIBRATION", "SEVERAL_PEOPLE"]


class PassageFrame(Schema):
    """A frame and its most prominent face; `weight`, 0..1, is the face's share of the fused vector.

    `fused`: the face is part of the decision. `no_face`: there is none. `rejected`: it fails the quality gate, see
    `reasons`. `other_person`: it does not look like the person of the other frames. `surplus`: enough frames have a
    higher quality.
    """

    index: int
    status: FrameStatus
    face: DetectedFace | None
    reasons: list[Reason]
    weight: float


class FusedFrames(Schema):
    """The frames of one passage in the order of the request; `frames` is the number of those that were fused.

    `reasons`: `SEVERAL_PEOPLE` if frames were left out because their faces look like another person's;
    `BEYOND_CALIBRATION` if the false match rate is below those that the calibration can confirm, so nothing matches.
    """

    frames: int
    reasons: list[PassageReason]
    model: str
    version: str
    data: list[PassageFrame | Failed]


class PassageResponse(FusedFrames):
    """The one decision on a passage. `fpir` is promised per passage, whatever the number of its frames.

    `match`: the first candidate is within the threshold. `unknown`: none is. `rejected`: no frame has a face to search
    for; then `threshold` and `operating_point` are null. `threshold` is the largest distance of a match for this number
    of frames.
    """

    collection: SearchedCollection
    status: Literal["match", "unknown", "rejected"]
    candidates: list[Candidate]
    threshold: float | None
    operating_point: OperatingPoint | None
    fpir: float


class PassageVerification(FusedFrames):
    """Whether the frames show the subject; fields as in `SubjectVerification`, the false match rate per passage."""

    verified: bool
    denied: bool
    probability: float
    distance: float
    threshold: float
    operating_point: OperatingPoint
    face_id: str
