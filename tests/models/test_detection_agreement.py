"""The same faces in two sequences of detections, against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.card import Tolerance
from models.detection_agreement import compare_faces, compare_maps, disagreement
from models.detector import CHANNELS, Detections


def faces(*centres: tuple[float, float], side: float = 40, shift: float = 0) -> Detections:
    """Faces of `side` pixels; the eyes are half a side apart, and `shift` moves all landmarks to the right."""
    corners = torch.tensor(centres).reshape(-1, 2)
    boxes = torch.cat([corners - side / 2, corners + side / 2], dim=1)
    points = torch.tensor([(-0.25, -0.2), (0.25, -0.2), (0.0, 0.0), (-0.2, 0.3), (0.2, 0.3)]) * side
    landmarks = corners[:, None] + points + torch.tensor([shift, 0.0])
    return Detections(boxes, torch.linspace(0.9, 0.8, len(corners)), landmarks)


@pytest.mark.parametrize(
    ("expected", "others", "same"),
    [
        (faces(), faces(), True),
        (faces((50, 50)), faces(), False),
        (faces(), faces((50, 50)), False),
        (faces((50, 50), (150, 50)), faces((150, 50), (50, 50)), True),  # in another order
        (faces((50, 50)), faces((63, 50)), True),  # IoU (40 - 13) / (40 + 13) = 0.51
        (faces((50, 50)), faces((64, 50)), False),  # 0.48
        (faces((50, 50), (150, 50)), faces((50, 50), (50, 50)), False),
        (faces((50, 50), (52, 50)), faces((51, 50), (150, 50)), False),
    ],
)
def test_faces_are_the_same_if_each_overlaps_one(expected: Detections, others: Detections, *, same: bool) -> None:
    assert compare_faces([expected], [others]).share == same
    assert compare_faces([expected, faces()], [others, faces()]).share == (1 if same else 0.5)


def test_distances_of_landmarks_are_shares_of_the_distance_of_the_eyes() -> None:
    expected = [faces((50, 50), (150, 50)), faces((60, 60), side=80), faces((50, 50))]
    others = [faces((150, 50), (50, 50), shift=1), faces((60, 60), side=80, shift=1), faces((90, 50))]
    agreement = compare_faces(expected, others)
    assert agreement.share == pytest.approx(2 / 3)
    assert sorted(agreement.distances.tolist()) == pytest.approx([1 / 40] * 5 + [1 / 20] * 10)
    assert agreement.percentile(0.95) == pytest.approx(1 / 20)
    assert compare_faces([faces()], [faces()]).percentile(0.95) == 0


def maps(score: float, shift: float = 0) -> Tensor:
    """CenterFace's maps of 80x80 pixels with one face of 40 pixels; `shift` is that of the landmarks in pixels."""
    outputs = torch.zeros(1, CHANNELS, 20, 20)
    outputs[0, :, 10, 8] = torch.tensor(
        [score, math.log(10), math.log(10), 0, 0]
        + [
            value
            for x, y in ((0.25, 0.3), (0.75, 0.3), (0.5, 0.5), (0.3, 0.8), (0.7, 0.8))
            for value in (y, x + shift / 40)
        ]
    )
    return outputs


def test_maps_are_compared_at_the_services_threshold() -> None:
    expected = [maps(0.9), maps(0.4)]
    assert compare_maps(expected, [maps(0.6), maps(0.1)]).share == 1
    assert compare_maps(expected, [maps(0.6), maps(0.51)]).share == 0.5
    assert compare_maps(expected, [maps(0.9, shift=1), maps(0.4)]).distances.tolist() == pytest.approx([0.05] * 5)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([maps(0.8), maps(0.4)], None),
        ([maps(0.8, shift=1), maps(0.4)], None),
        ([maps(0.8, shift=2), maps(0.4)], "the 95th percentile of the landmarks' distances is 0.1000 of the"),
        ([maps(0.8), maps(0.6)], "the faces are the same in 50.00% of the images"),
        ([maps(0.8), maps(math.nan)], "an output is not finite"),
    ],
)
def test_disagreement(others: list[Tensor], message: str | None) -> None:
    reason = disagreement([maps(0.9), maps(0.4)], others, Tolerance(faces=0.9, landmarks=0.06))
    assert reason is None if message is None else (reason or "").startswith(message)
