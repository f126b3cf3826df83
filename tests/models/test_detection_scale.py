"""Scales, tiles and merging: properties of the plan, and real faces too small for the detector's size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.settings import PROJECT
from models import checkpoint
from models.detection_scale import (
    MAX_PIXELS,
    OVERLAP,
    STEP,
    TILE,
    Level,
    Scan,
    Span,
    merge,
    prepare,
    scan,
    whole,
)
from models.detector import CenterFace, Detections, Face, decode
from models.preprocess import Preprocess
from tests.app.face_pictures import small_faces

WITHIN = Preprocess(size=(640, 640), fit="within", mean=(0.0,) * 3, std=(1.0,) * 3)
SIDES = st.integers(1, 12_000)


@pytest.fixture(scope="module")
def network() -> CenterFace:
    module, card = checkpoint.load(PROJECT / "weights" / "centerface")
    assert isinstance(module, CenterFace)
    assert card.preprocess.size == WITHIN.size
    return module.eval()


@torch.inference_mode()
def faces(network: CenterFace, image: Image.Image, plan: Scan) -> list[Face]:
    maps = [
        torch.cat([network(WITHIN.normalise(torch.from_numpy(tile[None]))) for tile in tiles])
        for tiles in prepare(image, plan, WITHIN)
    ]
    return merge(plan, [decode(level, 0.5) for level in maps])


@given(st.integers(1, 1600), st.integers(1, 1600))
def test_photos_of_up_to_1600_pixels_have_one_level(width: int, height: int) -> None:
    plan = scan((width, height), WITHIN)
    assert plan == whole((width, height), WITHIN)
    (level,) = plan.levels
    assert (level.width, level.height) == WITHIN.fitted_size(width, height)


@pytest.mark.parametrize(
    ("size", "min_face", "scale", "smallest"),
    [
        ((4000, 3000), None, 0.4, 40),
        ((8000, 6000), None, 0.4, 40),
        ((2000, 1000), None, 0.4, 40),
        ((1000, 1000), None, 0.64, 25),
        ((1000, 1000), 16, 1.0, 16),
        ((1000, 1000), 8, 1.0, 16),  # never enlarged
        ((4000, 3000), 200, 0.08, 200),
        ((8000, 6000), 16, (MAX_PIXELS / 48_000_000) ** 0.5, 35.05),  # limited by MAX_PIXELS
        ((640, 480), 64, 0.25, 64),
    ],
)
def test_scale_for_the_smallest_face(
    size: tuple[int, int], min_face: float | None, scale: float, smallest: float
) -> None:
    plan = scan(size, WITHIN, min_face)
    assert plan.scale == pytest.approx(scale, rel=2e-3)
    assert plan.min_face == pytest.approx(smallest, rel=2e-3)
    finest = plan.levels[-1]
    assert finest.width * finest.height <= MAX_PIXELS * 1.001


@given(SIDES, SIDES, st.none() | st.floats(8, 10_000))
def test_every_plan_is_within_its_bounds(width: int, height: int, min_face: float | None) -> None:
    plan = scan((width, height), WITHIN, min_face)
    for coarser, finer in pairwise(plan.levels):
        assert max(finer.width, finer.height) <= STEP * max(coarser.width, coarser.height) + STEP
    for level in plan.levels:
        for spans, length in ((level.columns, level.width), (level.rows, level.height)):
            assert (spans[0].own_start, spans[-1].own_stop) == (0, length)
            assert all(left.own_stop == right.own_start for left, right in pairwise(spans))
            for span in spans:
                assert 0 <= span.start < span.stop <= length
                assert span.stop - span.start <= TILE
                # A face with its centre in a tile's own part lies entirely in the tile, or reaches beyond the photo.
                assert span.start == 0 or span.own_start - span.start >= OVERLAP / 2 - 1
                assert span.stop == length or span.stop - span.own_stop >= OVERLAP / 2 - 1


def detections_of(*rows: tuple[float, float, float, float, float]) -> Detections:
    """Detections of (left, top, right, bottom, score)."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Detections(values[:, :4], values[:, 4], values[:, :2, None].movedim(1, 2).expand(-1, 5, 2))


def test_merge_keeps_the_most_confident_in_the_photos_pixels() -> None:
    halves = (Span(0, 500, 0, 450), Span(400, 900, 450, 900))
    plan = Scan(
        1800,
        400,
        (
            Level(450, 100, (Span(0, 450, 0, 450),), (Span(0, 100, 0, 100),)),
            Level(900, 200, halves, (Span(0, 200, 0, 200),)),
        ),
    )
    coarse = detections_of((100, 20, 120, 40, 0.7), (200, 10, 290, 100, 0.8))
    left = detections_of((200, 40, 240, 80, 0.9), (440, 40, 480, 80, 0.95), (10, 10, 190, 190, 0.99))
    right = detections_of((40, 40, 80, 80, 0.6), (450, 150, 490, 199, 0.5))
    merged = merge(plan, [[coarse], [left, right]])
    assert [(face.box, round(face.score, 2)) for face in merged] == [
        ((400, 80, 480, 160), 0.9),  # twice its box in the finer level, which replaces the coarser level's
        ((800, 40, 1160, 400), 0.8),  # larger than the overlap of tiles: from the coarser level only
        ((880, 80, 960, 160), 0.6),  # its centre, 460, belongs to the right tile
        ((1700, 300, 1780, 398), 0.5),
    ]
    assert merged[0].landmarks[0] == (400, 80)


def test_each_small_face_of_a_large_photo_is_detected_once(network: CenterFace) -> None:
    """Also faces on the edges of tiles. At the detector's size they have 11 pixels and are mostly missed."""
    image, centres = small_faces()
    plan = scan(image.size, WITHIN)
    assert len(plan.levels[-1].columns) == 2
    boxes = np.array([face.box for face in faces(network, image, plan)])
    assert len(centres) - 3 <= len(boxes) <= len(centres)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    nearest = np.linalg.norm(middles[:, None] - np.array(centres), axis=2)
    assert len(set(nearest.argmin(axis=1))) == len(boxes)
    assert nearest.min(axis=1).max() < 20
    assert len(faces(network, image, whole(image.size, WITHIN))) < 5
