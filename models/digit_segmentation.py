"""Over-segmentation of an image of a digit string: LeNet's pre-processing.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998,
sections IV and V: heuristic over-segmentation and the segmentation graph, here called a lattice.

Deviation: cuts are bent paths that cross little ink (a straight line cuts slanted neighbours), as well as minima of the
projection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Box = tuple[int, int, int, int]

SIDE = 28  # of an MNIST image
BOX = 20  # of the square that contains an MNIST digit

MAX_SEGMENTS = 64
MAX_ASPECT = 40  # width of a string's ink, in heights of the ink; about 50 digits
MAX_ROWS = 512  # taller images are first reduced by averaging
MAX_COLUMNS = 32_768  # after the averaging

MIN_CONTRAST = 24  # grey levels between ink and paper; with less, the image is empty
INK = 0.12  # share of full ink above which a pixel belongs to a stroke

WORKING_ROWS = (12, 24, 40)  # ink lower than the first is enlarged to the second, ink higher than the third reduced

# Lengths are in heights of the string's ink, areas of ink in squared heights.
CUT_SPACING = 0.09
CUT_REACH = 0.22  # maximal horizontal distance of a cut from its middle
MAX_CROSSED = 0.6  # maximal ink that a cut crosses
CUT_DRIFT = 0.025  # cost of a sideways step of a cut, as ink crossed
MIN_SEGMENT_INK = 0.005
SPECK = 0.02  # less ink between blank columns is a speck
MAX_WIDTH = 1.5  # of a candidate of several segments


@dataclass(frozen=True)
class DigitCandidate:
    """A run of segments, `start` <= i < `stop`, that may be a digit.

    `box` is (x0, y0, x1, y1) of its ink in pixels of the image, x1 and y1 exclusive. `width` and `height` of the crop
    and the ink `crossed` by its two cuts are in heights of the string's ink.
    """

    start: int
    stop: int
    box: Box
    width: float
    height: float
    crossed: float


@dataclass(frozen=True)
class Lattice:
    """The segmentation graph: `segments` + 1 nodes, and an arc from node `start` to node `stop` for each candidate.

    Candidates are sorted by `start`. `crops` is uint8 [len(candidates), 28, 28] in MNIST's form. For drawings, `cuts`
    is float32 [segments + 1, R]: the x of each cut at the R heights `rows`, all in pixels of the image.
    """

    segments: int
    candidates: tuple[DigitCandidate, ...]
    crops: Grey
    cuts: Floats
    rows: Floats


EMPTY = Lattice(0, (), np.zeros((0, SIDE, SIDE), np.uint8), np.zeros((1, 0), np.float32), np.zeros(0, np.float32))


def ink(image: Grey) -> Floats:
    """The share of ink in each pixel: grey uint8 [H, W] -> float32 [H, W] in 0..1, bright on dark or dark on light.

    The border counts as paper. Ink is darker or brighter than paper, whichever is more frequent, by more than the
    border's noise. An image without contrast gives zeros.

    Raises:
        ValueError: not uint8, not two-dimensional, or without pixels.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected a grey image, uint8 [H, W], got {image.dtype} {list(image.shape)}")
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.float32)
    paper = np.median(border)
    noise = 4 * 1.4826 * np.median(np.abs(border - paper))
    difference = image.astype(np.float32) - paper
    difference[np.abs(difference) <= noise] = 0
    bright, dark = np.square(difference.clip(0)).sum(), np.square(difference.clip(None, 0)).sum()
    strength: Floats = (difference if bright >= dark else -difference).clip(0)
    top = np.percentile(strength[strength > 0], 99) if strength.any() else 0.0
    if top < MIN_CONTRAST:
        return np.zeros_like(strength)
    full = np.percentile(strength[strength > top / 2], 90)
    return (strength / full).clip(0, 1).astype(np.float32)


def resize(image: Floats, height: int, width: int) -> Floats:
    """The image resampled bilinearly with anti-aliasing, [H, W] -> [height, width]."""
    if image.shape == (height, width):
        return image
    scaled = F.interpolate(torch.from_numpy(image)[None, None], (height, width), mode="bilinear", antialias=True)
    return scaled[0, 0].numpy()


def bounds(image: Floats) -> Box | None:
    """The bounding box of the ink, (x0, y0, x1, y1), x1 and y1 exclusive; None without ink."""
    mask = image > INK
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalise(digit: Floats) -> Grey:
    """Ink [H, W] in 0..1 -> uint8 [28, 28] in MNIST's form; zeros without ink.

    The ink's box is scaled to 20 pixels on its longer side, and placed so that the rounded centre of mass is (14, 14).
    """
    canvas = np.zeros((3 * SIDE, 3 * SIDE), np.float32)
    box = bounds(digit)
    if box is None:
        return np.zeros((SIDE, SIDE), np.uint8)
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    height, width = (max(1, round(side * BOX / longer)) for side in (y1 - y0, x1 - x0))
    scaled = resize(np.ascontiguousarray(digit[y0:y1, x0:x1]), height, width)
    mass = scaled.sum()
    top = round(SIDE / 2 - float((scaled.sum(axis=1) @ np.arange(height)) / mass))
    left = round(SIDE / 2 - float((scaled.sum(axis=0) @ np.arange(width)) / mass))
    canvas[SIDE + top : SIDE + top + height, SIDE + left : SIDE + left + width] = scaled
    return (canvas[SIDE : 2 * SIDE, SIDE : 2 * SIDE] * 255).round().astype(np.uint8)


def build_lattice(image: Grey) -> Lattice:
    """The over-segmentation of an image of a digit string: more cuts than digits, and a candidate for every plausible
    run of segments.

    The cost is bounded: strings are scaled to at most 40 rows of ink, and at most `MAX_SEGMENTS` segments are kept, by
    the cuts that cross the least ink. An image without ink gives a lattice of no segments.

    Raises:
        ValueError: see `ink`; an image or a string too wide for digits.
    """
    reduced, step = _downscaled(image)
    strength = ink(reduced)
    box = bounds(strength)
    if box is None:
        return EMPTY
    x0, y0, x1, y1 = box
    if x1 - x0 > MAX_ASPECT * (y1 - y0):
        raise ValueError(f"the ink is {x1 - x0} wide and {y1 - y0} high; a string of digits is at most {MAX_ASPECT}:1")
    line = _clean(_working_size(np.ascontiguousarray(strength[y0:y1, x0:x1])))
    origin = step * np.array([x0, y0])
    # Size in the image of a pixel of `line`: x, y.
    scale = step * np.array([(x1 - x0) / line.shape[1], (y1 - y0) / line.shape[0]])
    cuts, ink_crossed = _cuts(line)
    candidates, crops = [], []
    for start, stop in _runs(cuts):
        crop, left = _between(line, cuts[start], cuts[stop])
        inside = np.array(bounds(crop)).reshape(2, 2)
        near, far = origin + (inside + np.array([left, 0])) * scale
        width, height = (inside[1] - inside[0]) / len(line)
        crossed = (ink_crossed[start] + ink_crossed[stop]) / len(line)
        candidates.append(DigitCandidate(start, stop, _outward(near, far), float(width), float(height), float(crossed)))
        crops.append(normalise(crop))
    return Lattice(
        segments=len(cuts) - 1,
        candidates=tuple(candidates),
        crops=np.stack(crops),
        cuts=(origin[0] + cuts * scale[0]).astype(np.float32),
        rows=(origin[1] + (np.arange(len(line)) + 0.5) * scale[1]).astype(np.float32),
    )


def _outward(near: Doubles, far: Doubles) -> Box:
    """The box between two corners (x, y), rounded outward to whole pixels with a tolerance of 1e-6."""
    (x0, y0), (x1, y1) = np.floor(near + 1e-6), np.ceil(far - 1e-6)
    return int(x0), int(y0), int(x1), int(y1)


def _downscaled(image: Grey) -> tuple[Grey, int]:
    """The image averaged down to at most `MAX_ROWS` rows, and the factor."""
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"expected a grey image [H, W], got {list(image.shape)}")
    factor = -(-image.shape[0] // MAX_ROWS)
    height, width = image.shape[0] // factor, image.shape[1] // factor
    if not 0 < width <= MAX_COLUMNS:
        raise ValueError(f"an image of {image.shape[1]} x {image.shape[0]} pixels is too wide for a string of digits")
    if factor == 1:
        return image, 1
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor)
    reduced: Grey = blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(image.dtype)
    return reduced, factor


def _working_size(line: Floats) -> Floats:
    """The string's ink, scaled so that its height is within `WORKING_ROWS`."""
    least, enlarged, most = WORKING_ROWS
    height, width = line.shape
    rows = enlarged if height < least else min(height, most)
    resized = resize(line, rows, max(1, round(width * rows / height)))
    full: Floats = resized / resized.max()  # restores thin strokes, which resizing blends with paper
    return full


def _clean(line: Floats) -> Floats:
    """The ink without specks, which are blocks between blank columns with too little ink for a digit."""
    filled = np.concatenate([[False], (line > INK).any(axis=0), [False]])
    edges = np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2)
    cleaned = line.copy()
    for start, stop in edges:
        if line[:, start:stop].sum() < SPECK * len(line) ** 2:
            cleaned[:, start:stop] = 0
    return cleaned if bounds(cleaned) else line


def _cuts(line: Floats) -> tuple[Ints, Floats]:
    """The two outer edges and the cuts between them, left to right, with ink between neighbours: [K, H] and [K].

    In row r, the pixels left of cuts[k, r] are left of cut k. The second array is the ink that each cut crosses.
    """
    height, width = line.shape
    costs, paths = _paths(line)
    spacing = max(1, round(CUT_SPACING * height))
    free = costs <= MAX_CROSSED * height
    chosen = []
    for column in np.argsort(costs, kind="stable"):
        if free[column]:
            chosen.append(column)
            free[max(0, column - spacing + 1) : column + spacing] = False
    edges = np.zeros((1, height), np.int64), np.full((1, height), width)
    # Neighbouring paths may cross; the maximum keeps each cut right of its predecessor.
    ordered = np.maximum.accumulate(np.concatenate([edges[0], paths[sorted(chosen)], edges[1]]), axis=0)
    crossed = _crossed(line, ordered)
    kept = _with_ink_between(line, ordered, crossed)
    inner = np.array(kept[1:-1], dtype=np.int64)
    cheapest = np.sort(inner[np.argsort(crossed[inner], kind="stable")[: MAX_SEGMENTS - 1]])
    final = np.array([kept[0], *cheapest, kept[-1]])
    return ordered[final], crossed[final]


def _with_ink_between(line: Floats, paths: Ints, crossed: Floats) -> list[int]:
    """The indices of the cuts to keep: of two cuts without ink between them, the one that crosses less."""
    min_ink = MIN_SEGMENT_INK * len(line) ** 2
    last = len(paths) - 1
    kept = [0]
    for index in range(1, last + 1):
        if (_between(line, paths[kept[-1]], paths[index])[0] > INK).sum() >= max(min_ink, 1):
            kept.append(index)
        elif len(kept) > 1 and (index == last or crossed[index] < crossed[kept[-1]]):
            kept[-1] = index
    return kept if kept[-1] == last else [0, last]


def _paths(line: Floats) -> tuple[Floats, Ints]:
    """The cheapest cut through the middle of each boundary between columns, 0..W: costs [W + 1], paths [W + 1, H].

    A cut runs from top to bottom and moves by at most one column a row and `CUT_REACH` in all. Its cost is the ink that
    it separates: the fainter of the two pixels on either side, summed.
    """
    height, width = line.shape
    reach = max(1, round(CUT_REACH * height))
    beside = np.pad(np.minimum(line[:, :-1], line[:, 1:]), ((0, 0), (reach + 1, reach + 1)))  # [H, W + 1 + 2 reach]
    below = np.pad(np.minimum(line[:-1], line[1:]), ((0, 0), (reach, reach + 1)))  # [H - 1, W + 1 + 2 reach]
    middle = height // 2
    up, down = np.arange(middle, -1, -1), np.arange(middle, height)
    costs_up, paths_up = _half_cuts(beside, below, up, reach)
    costs_down, paths_down = _half_cuts(beside, below, down, reach)
    paths = np.concatenate([paths_up[:, :0:-1], paths_down], axis=1)
    costs: Floats = costs_up + costs_down + beside[middle, reach : reach + width + 1]
    return costs, paths.clip(0, width)


def _half_cuts(beside: Floats, below: Floats, rows: Ints, reach: int) -> tuple[Floats, Ints]:
    """Half of each cut, from its middle row to an end: dynamic programming over offsets -reach..reach, all columns."""
    count, offsets = beside.shape[1] - 2 * reach, 2 * reach + 1
    windows = np.arange(count)[:, None] + np.arange(offsets)  # [columns, offsets] -> padded column
    drift = np.float32(CUT_DRIFT * len(beside))
    costs = np.full((count, offsets), np.inf, np.float32)
    costs[:, reach] = 0
    steps = np.zeros((len(rows), count, offsets), np.int8)
    for index in range(1, len(rows)):
        row, previous = rows[index], rows[index - 1]
        crossed = below[min(row, previous)][windows] + drift  # by a step right from here, or left to here
        options = np.full((3, count, offsets), np.inf, np.float32)
        options[0] = costs
        options[1, :, 1:] = costs[:, :-1] + crossed[:, :-1]  # from the left
        options[2, :, :-1] = costs[:, 1:] + crossed[:, :-1]  # from the right
        steps[index] = options.argmin(axis=0)
        costs = options.min(axis=0) + beside[row][windows]
    columns = np.arange(count)
    offset = costs.argmin(axis=1)
    total: Floats = costs[columns, offset]
    paths = np.empty((count, len(rows)), np.int64)
    for index in range(len(rows) - 1, -1, -1):
        paths[:, index] = columns + offset - reach
        offset = offset + np.array([0, -1, 1])[steps[index, columns, offset]]
    return total, paths


def _crossed(line: Floats, paths: Ints) -> Floats:
    """The ink that each path crosses, without the cost of sideways steps: [K]."""
    beside = np.pad(np.minimum(line[:, :-1], line[:, 1:]), ((0, 0), (1, 1)))  # [H, W + 1]
    below = np.minimum(line[:-1], line[1:])  # [H - 1, W]
    sideways = np.pad(below.cumsum(axis=1), ((0, 0), (1, 0)))  # [H - 1, W + 1]
    rows = np.arange(len(line))
    along = beside[rows, paths].sum(axis=1)
    ends = sideways[rows[:-1], paths[:, 1:]] - sideways[rows[:-1], paths[:, :-1]]
    result: Floats = along + np.abs(ends).sum(axis=1)
    return result


def _between(line: Floats, left: Ints, right: Ints) -> tuple[Floats, int]:
    """The part of `line` between two cuts, [H, W'], and its first column."""
    start, stop = int(left.min()), int(right.max())
    columns = np.arange(start, stop)
    inside = (columns >= left[:, None]) & (columns < right[:, None])
    return np.where(inside, line[:, start:stop], np.float32(0)), start


def _runs(cuts: Ints) -> Iterator[tuple[int, int]]:
    """(start, stop) of every single segment, and of every run of neighbours that is not too wide for a digit."""
    middles = cuts.mean(axis=1)
    widest = MAX_WIDTH * cuts.shape[1]
    for start in range(len(middles) - 1):
        yield start, start + 1
        for stop in range(start + 2, len(middles)):
            if middles[stop] - middles[start] > widest:
                break
            yield start, stop
