"""At which scales faces are looked for in a photo, how a large photo is cut into tiles, and how their faces are merged.

A detector finds faces from about SMALLEST pixels on. Reducing every photo to the detector's size (640 pixels) loses the
faces of a group photo of 24 megapixels, which then have 10 pixels. So the photo is looked at in levels, an image
pyramid: the coarsest is the whole photo at the detector's size, which shows the large faces; the finest has the scale
at which the smallest face that is looked for, `min_face` pixels of the photo, has SMALLEST pixels. By default that is
the smaller of 40 pixels and 1/40 of the photo's longer side, so that photos of up to 1,600 pixels have one level, the
detector's size, as they always had.

Levels larger than a tile are cut into tiles that overlap. A face counts where its centre lies in the part of a tile
that is the tile's own, and where it is small enough to lie wholly in that tile; larger ones are found at the next
coarser level. Of faces that overlap, at whichever levels they were found, the surest stays (non-maximum suppression).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from models.detector import COARSEST, NMS_OVERLAP, Detections, Face, Pixels, faces_within, padded
from models.preprocess import Preprocess

# The rules for detection scales: `scan` with its default `min_face`, and `whole`.
Scales = Literal["min-face", "whole"]

# In pixels of a level: what a face needs to be found.
SMALLEST = 16
# The default of `min_face`: the smaller of so many pixels and of this share of the longer side. At the share a face has
# SMALLEST pixels where the longer side has 640.
MIN_FACE, SHARE = 40, 40
# Sides of tiles in pixels, and how far neighbours overlap: a face of up to OVERLAP pixels lies wholly in one of them.
TILE, OVERLAP = 736, 96
# From level to level at most: a face too large for a tile's overlap has OVERLAP / STEP pixels or more at the next one,
# which must not be less than SMALLEST.
STEP = 5
# Of a photo's finest level; a scale that needs more is reduced until it fits.
MOST_PIXELS = 10_000_000
MOST_FACES = 1000
ROUNDING = 1e-6  # scales that differ by less are the same


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of its level: where it begins and ends, and the part that is its own."""

    start: int
    stop: int
    own_start: float
    own_stop: float


@dataclass(frozen=True)
class Level:
    """The photo reduced to `width` x `height` pixels, in tiles: each column with each row."""

    width: int
    height: int
    columns: tuple[Span, ...]
    rows: tuple[Span, ...]

    @property
    def tiles(self) -> Iterator[tuple[Span, Span]]:
        """(column, row) of each tile, row by row."""
        return ((column, row) for row in self.rows for column in self.columns)

    @property
    def is_whole(self) -> bool:
        """Whether the level is one tile."""
        return len(self.columns) == len(self.rows) == 1


@dataclass(frozen=True)
class Scan:
    """How faces are looked for in a photo of `width` x `height` pixels: at these levels, the coarsest first."""

    width: int
    height: int
    levels: tuple[Level, ...]

    @property
    def scale(self) -> float:
        """Pixels of the finest level for one of the photo, above 0, at most 1."""
        finest = self.levels[-1]
        return max(finest.width / self.width, finest.height / self.height)

    @property
    def min_face(self) -> float:
        """The side in pixels of the photo of the smallest faces that are looked for."""
        return SMALLEST / self.scale


def whole(size: tuple[int, int], preprocess: Preprocess) -> Scan:
    """The photo of `size` (width, height) at the detector's size and at no other."""
    return Scan(*size, (_level(*preprocess.fitted(*size), tiled=False),))


def scan(size: tuple[int, int], preprocess: Preprocess, min_face: float | None = None) -> Scan:
    """The levels that show faces of `min_face` pixels (None: the default) in a photo of `size` (width, height).

    Photos are never enlarged, and the finest level has at most MOST_PIXELS; `Scan.min_face` says what came of it.
    """
    width, height = size
    fitted = preprocess.fitted(width, height)
    coarse = min(1.0, preprocess.size[1] / width, preprocess.size[0] / height)
    smallest = min(MIN_FACE, max(size) / SHARE) if min_face is None else min_face
    scale = min(1.0, SMALLEST / smallest, math.sqrt(MOST_PIXELS / (width * height)))
    if min_face is None:
        scale = max(scale, coarse)
    if scale <= coarse * (1 + ROUNDING):
        reduced = fitted if scale >= coarse * (1 - ROUNDING) else _reduced(size, scale)
        return Scan(width, height, (_level(*reduced, tiled=False),))
    between = math.ceil(math.log(scale / coarse, STEP) - ROUNDING)
    scales = [coarse * (scale / coarse) ** (step / between) for step in range(1, between + 1)]
    finer = (_level(*_reduced(size, one), tiled=True) for one in scales)
    return Scan(width, height, (_level(*fitted, tiled=False), *finer))


def _reduced(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _level(width: int, height: int, *, tiled: bool) -> Level:
    if not tiled:
        return Level(width, height, (Span(0, width, 0, width),), (Span(0, height, 0, height),))
    return Level(width, height, _spans(width), _spans(height))


def _spans(length: int) -> tuple[Span, ...]:
    """As few tiles of one size as there can be, a multiple of the network's coarsest cell."""
    count = max(1, math.ceil((length - OVERLAP) / (TILE - OVERLAP)))
    if count == 1:
        return (Span(0, length, 0, length),)
    side = math.ceil((length + (count - 1) * OVERLAP) / count / COARSEST) * COARSEST
    starts = [round(number * (length - side) / (count - 1)) for number in range(count)]
    # Two tiles meet in the middle of what both have.
    edges = [0.0, *((start + before + side) / 2 for before, start in pairwise(starts)), length]
    return tuple(Span(start, start + side, *own) for start, own in zip(starts, pairwise(edges), strict=True))


def prepare(image: Image.Image, scan: Scan, preprocess: Preprocess) -> list[list[Pixels]]:
    """The tiles of each level as the detector takes them: uint8 [H, W, C], black to multiples of 32."""
    image = image if image.mode == preprocess.mode else image.convert(preprocess.mode)
    method = Image.Resampling[preprocess.interpolation.upper()]
    levels = []
    for level in scan.levels:
        pixels = np.asarray(image.resize((level.width, level.height), method), dtype=np.uint8)
        pixels = pixels.reshape(level.height, level.width, preprocess.channels)
        levels.append([padded(pixels[row.start : row.stop, column.start : column.stop]) for column, row in level.tiles])
    return levels


def merge(scan: Scan, found: Sequence[Sequence[Detections]]) -> list[Face]:
    """The faces of a photo, surest first, from what `detector.decode` found in each tile of each level."""
    parts = [
        _in_photo(scan, level, column, row, tile)
        for level, tiles in zip(scan.levels, found, strict=True)
        for (column, row), tile in zip(level.tiles, tiles, strict=True)
    ]
    boxes, scores, landmarks = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if len(parts) > 1:
        kept = nms(boxes, scores, NMS_OVERLAP)[:MOST_FACES]
        boxes, scores, landmarks = boxes[kept], scores[kept], landmarks[kept]
    return faces_within(Detections(boxes, scores, landmarks), (scan.width, scan.height))


def _in_photo(scan: Scan, level: Level, column: Span, row: Span, found: Detections) -> Detections:
    """The faces of a tile that are its own, in pixels of the photo."""
    boxes, scores, landmarks = (tensor.cpu() for tensor in found)
    shift = torch.tensor([float(column.start), float(row.start)])
    scale = torch.tensor([scan.width / level.width, scan.height / level.height])
    corners, points = boxes.reshape(-1, 2, 2) + shift, landmarks + shift
    if not level.is_whole:
        own = _own(corners, column, row)
        corners, points, scores = corners[own], points[own], scores[own]
    return Detections((corners * scale).reshape(-1, 4), scores, points * scale)


def _own(corners: Tensor, column: Span, row: Span) -> Tensor:
    """Which boxes [K, 2, 2], in pixels of the level, are a tile's own: bool [K]."""
    sides = corners[:, 1] - corners[:, 0]
    centres = corners.mean(dim=1)
    low = torch.tensor([column.own_start, row.own_start])
    high = torch.tensor([column.own_stop, row.own_stop])
    # The last tile's part has no end: a face at the photo's edge may have its centre beyond it.
    inside = ((centres >= low) | (low == 0)) & ((centres < high) | (high == torch.tensor([column.stop, row.stop])))
    return inside.all(dim=1) & (sides.amax(dim=1) <= OVERLAP)
