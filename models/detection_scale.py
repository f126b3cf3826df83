"""Plan the scales at which faces are detected in a photo, cut large scales into tiles, and merge the tiles' faces.

A detector finds faces of at least about SMALLEST pixels. Reducing every photo to the detector's size (640 pixels) loses
the faces of a group photo of 24 megapixels, which then have 10 pixels. So faces are detected on the levels of an image
pyramid: the coarsest is the whole photo at the detector's size, for large faces; the finest has the scale at which the
smallest face to detect, `min_face` pixels of the photo, has SMALLEST pixels. By default that is the smaller of 40
pixels and 1/40 of the photo's longer side, so that photos of up to 1,600 pixels have one level, the detector's size.

Levels larger than a tile are cut into overlapping tiles. A tile keeps the faces whose centre lies in the tile's own
part and which fit entirely into the tile; larger faces are detected at the next coarser level. If faces overlap, on any
levels, the most confident is kept (non-maximum suppression).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.detector import (
    COARSEST,
    DETECTION_THRESHOLD,
    Detections,
    Face,
    Pixels,
    decode,
    faces_within,
    padded,
    strongest,
)
from models.preprocess import Preprocess

# The rules for detection scales: `scan` with its default `min_face`, and `whole`.
Scales = Literal["min-face", "whole"]

# The side of a detectable face in pixels of a level.
SMALLEST = 16
# The default of `min_face`: the smaller of MIN_FACE pixels and the longer side divided by SHARE, at which a face has
# SMALLEST pixels if the longer side has 640.
MIN_FACE, SHARE = 40, 40
# Side and overlap of tiles in pixels; a face of up to OVERLAP pixels lies entirely in a tile.
TILE, OVERLAP = 736, 96
# The largest factor between levels: a face too large for the overlap has at least OVERLAP / STEP pixels at the next
# level, which must be at least SMALLEST.
STEP = 5
# The most pixels of a photo's finest level; larger scales are reduced to it.
MAX_PIXELS = 10_000_000
MAX_FACES = 1000
ROUNDING = 1e-6  # scales that differ by less are equal


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of its level: start and stop, and its own part without the overlaps."""

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


@dataclass(frozen=True)
class Scan:
    """The levels at which faces are detected in a photo of `width` x `height` pixels, the coarsest first."""

    width: int
    height: int
    levels: tuple[Level, ...]

    @property
    def scale(self) -> float:
        """Scale of the finest level relative to the photo, above 0, at most 1."""
        finest = self.levels[-1]
        return max(finest.width / self.width, finest.height / self.height)

    @property
    def min_face(self) -> float:
        """Side in pixels of the photo of the smallest detectable faces."""
        return SMALLEST / self.scale


def whole(size: tuple[int, int], preprocess: Preprocess) -> Scan:
    """The plan with the detector's size as the only level, for a photo of `size` (width, height)."""
    return Scan(*size, (_level(*preprocess.fitted_size(*size), tiled=False),))


def scan(size: tuple[int, int], preprocess: Preprocess, min_face: float | None = None) -> Scan:
    """The plan to detect faces of `min_face` pixels (None: the default) in a photo of `size` (width, height).

    Photos are never enlarged, and the finest level has at most MAX_PIXELS, so `Scan.min_face` may be larger.
    """
    width, height = size
    fitted = preprocess.fitted_size(width, height)
    coarse = min(1.0, preprocess.size[1] / width, preprocess.size[0] / height)
    smallest = min(MIN_FACE, max(size) / SHARE) if min_face is None else min_face
    scale = min(1.0, SMALLEST / smallest, math.sqrt(MAX_PIXELS / (width * height)))
    if min_face is None:
        scale = max(scale, coarse)
    if scale <= coarse * (1 + ROUNDING):
        reduced = fitted if scale >= coarse * (1 - ROUNDING) else _reduced(size, scale)
        return Scan(width, height, (_level(*reduced, tiled=False),))
    count = math.ceil(math.log(scale / coarse, STEP) - ROUNDING)
    scales = [coarse * (scale / coarse) ** (step / count) for step in range(1, count + 1)]
    finer = (_level(*_reduced(size, factor), tiled=True) for factor in scales)
    return Scan(width, height, (_level(*fitted, tiled=False), *finer))


def _reduced(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _level(width: int, height: int, *, tiled: bool) -> Level:
    if not tiled:
        return Level(width, height, (Span(0, width, 0, width),), (Span(0, height, 0, height),))
    return Level(width, height, _spans(width), _spans(height))


def _spans(length: int) -> tuple[Span, ...]:
    """The fewest tiles of equal size that cover `length`, a multiple of the network's coarsest cell."""
    count = max(1, math.ceil((length - OVERLAP) / (TILE - OVERLAP)))
    if count == 1:
        return (Span(0, length, 0, length),)
    side = math.ceil((length + (count - 1) * OVERLAP) / count / COARSEST) * COARSEST
    starts = [round(number * (length - side) / (count - 1)) for number in range(count)]
    # The own parts of neighbours meet in the middle of their overlap.
    edges = [0.0, *((start + previous + side) / 2 for previous, start in pairwise(starts)), length]
    return tuple(Span(start, start + side, *own) for start, own in zip(starts, pairwise(edges), strict=True))


def prepare(image: Image.Image, scan: Scan, preprocess: Preprocess) -> list[list[Pixels]]:
    """The tiles of each level as inputs of the detector: uint8 [H, W, C], padded with black to multiples of 32."""
    image = image if image.mode == preprocess.mode else image.convert(preprocess.mode)
    method = Image.Resampling[preprocess.interpolation.upper()]
    levels = []
    for level in scan.levels:
        pixels = np.asarray(image.resize((level.width, level.height), method), dtype=np.uint8)
        pixels = pixels.reshape(level.height, level.width, preprocess.channels)
        levels.append([padded(pixels[row.start : row.stop, column.start : column.stop]) for column, row in level.tiles])
    return levels


def merge(scan: Scan, detections: Sequence[Sequence[Detections]]) -> list[Face]:
    """The faces of a photo, the most confident first, from the detections in each tile of each level."""
    in_photo = [
        _in_photo(scan, level, column, row, tile)
        for level, tiles in zip(scan.levels, detections, strict=True)
        for (column, row), tile in zip(level.tiles, tiles, strict=True)
    ]
    boxes, scores, landmarks = (torch.cat(tensors) for tensors in zip(*in_photo, strict=True))
    if len(in_photo) > 1:
        kept = strongest(boxes, scores, MAX_FACES)
        boxes, scores, landmarks = boxes[kept], scores[kept], landmarks[kept]
    return faces_within(Detections(boxes, scores, landmarks), (scan.width, scan.height))


def _in_photo(scan: Scan, level: Level, column: Span, row: Span, detections: Detections) -> Detections:
    """The faces in a tile's own part, in pixels of the photo."""
    boxes, scores, landmarks = (tensor.cpu() for tensor in detections)
    shift = torch.tensor([float(column.start), float(row.start)])
    scale = torch.tensor([scan.width / level.width, scan.height / level.height])
    corners, points = boxes.reshape(-1, 2, 2) + shift, landmarks + shift
    if len(level.columns) * len(level.rows) > 1:
        own = _own(corners, column, row)
        corners, points, scores = corners[own], points[own], scores[own]
    return Detections((corners * scale).reshape(-1, 4), scores, points * scale)


class CenterFaceDetector:
    """Detects faces with CenterFace at the detector's size only, see `whole`.

    `run` is the network or its runtime: float32 [N, 3, H, W] -> [N, 15, H/4, W/4]. `preprocess` is that of its card.
    Faces with a score up to `threshold` are left out.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], preprocess: Preprocess, threshold: float = DETECTION_THRESHOLD):
        if preprocess.fit != "within":
            raise ValueError("a detector needs uncropped images: its preprocessing must have fit='within'")
        self._run = run
        self._preprocess = preprocess
        self._threshold = threshold

    @torch.inference_mode()
    def __call__(self, image: Image.Image | Pixels) -> list[Face]:
        """See `Detector`."""
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        plan = whole(image.size, self._preprocess)
        ((pixels,),) = prepare(image, plan, self._preprocess)
        batch = self._preprocess.normalise(torch.from_numpy(pixels))[None]
        return merge(plan, [decode(self._run(batch), self._threshold)])


def _own(corners: Tensor, column: Span, row: Span) -> Tensor:
    """Return whether each of the boxes [K, 2, 2], in pixels of the level, belongs to a tile: bool [K]."""
    sides = corners[:, 1] - corners[:, 0]
    centres = corners.mean(dim=1)
    low = torch.tensor([column.own_start, row.own_start])
    high = torch.tensor([column.own_stop, row.own_stop])
    # At the photo's edges the part is unbounded, since a face's centre may lie beyond the edge.
    inside = ((centres >= low) | (low == 0)) & ((centres < high) | (high == torch.tensor([column.stop, row.stop])))
    return inside.all(dim=1) & (sides.amax(dim=1) <= OVERLAP)
