"""Compare the faces that two runtimes of a detector find in the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.card import Tolerance
from models.detector import DETECTION_THRESHOLD, Detections, decode, overlap

# The least overlap of two boxes of one face, as a share of their union.
SAME_FACE = 0.5


class FaceAgreement(NamedTuple):
    """`share` of the images have the same faces: equally many, and each overlaps one of the others by `SAME_FACE`.

    `distances` [K] are those of the landmarks of such images, as shares of the distance of the face's eyes.
    """

    share: float
    distances: Tensor

    def percentile(self, share: float) -> float:
        """The distance that `share` of the landmarks do not exceed; 0 without landmarks."""
        return float(self.distances.quantile(share)) if len(self.distances) else 0.0


def compare_faces(expected: Sequence[Detections], others: Sequence[Detections]) -> FaceAgreement:
    """Compare the faces of at least one image, which `expected` and `others` have in the same order."""
    distances = [_landmark_distances(*pair) for pair in zip(expected, others, strict=True)]
    same = [distance for distance in distances if distance is not None]
    return FaceAgreement(len(same) / len(distances), torch.cat(same) if same else torch.zeros(0))


def compare_maps(expected: Sequence[Tensor], others: Sequence[Tensor]) -> FaceAgreement:
    """Compare the faces in two sequences of CenterFace's maps [N, 15, h, w], at the service's default threshold."""
    first, second = (
        [faces for maps in outputs for faces in decode(maps, DETECTION_THRESHOLD)] for outputs in (expected, others)
    )
    return compare_faces(first, second)


def disagreement(expected: Sequence[Tensor], others: Sequence[Tensor], tolerance: Tolerance) -> str | None:
    """The difference of the faces in maps [N, 15, h, w] from those in the expected; None within the tolerance."""
    if not all(maps.isfinite().all() for maps in others):
        return "an output is not finite"
    agreement = compare_maps(expected, others)
    if agreement.share < (tolerance.faces or 0):
        return f"the faces are the same in {agreement.share:.2%} of the images"
    distance = agreement.percentile(0.95)
    if distance > tolerance.landmarks:
        return f"the 95th percentile of the landmarks' distances is {distance:.4f} of the distance of the eyes"
    return None


def _landmark_distances(expected: Detections, others: Detections) -> Tensor | None:
    """The landmarks' distances, flat; None if the faces are not the same."""
    if len(expected.boxes) != len(others.boxes):
        return None
    if not len(expected.boxes):
        return torch.zeros(0)
    shares, match = overlap(expected.boxes[:, None], others.boxes).max(dim=1)
    if shares.min() < SAME_FACE or match.bincount().max() > 1:
        return None
    eyes = (expected.landmarks[:, 0] - expected.landmarks[:, 1]).norm(dim=1, keepdim=True)
    distances: Tensor = (expected.landmarks - others.landmarks[match]).norm(dim=2) / eyes
    return distances.flatten()
