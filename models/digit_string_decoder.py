"""Reading a string of digits with a network that knows single ones: LeNet's post-processing.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998,
sections IV to VI: heuristic over-segmentation, the segmentation graph, Viterbi over the interpretation graph.

    picture uint8 [H, W] -> `lattice`: ink, cuts, every plausible run of segments as a crop uint8 [28, 28]
    crops -> the network's logits [N, 10], which the caller computes
    lattice, logits -> `read`: the path of least penalty, its digits, and how sure they are

A path's penalty is the sum of its candidates' penalties, and candidates of different widths must be comparable: two
halves of a zero must not beat the zero. Here a candidate of class c costs -log p(c | crop) plus a rejection, which is
the negative log-odds that the crop is one whole digit. The sum over a path is then, up to a constant that all paths
share, -log P(these runs are digits and no others are), however many there are.

Deviations from the paper: cuts are bent paths that cross little ink (an upright line cuts slanted neighbours), as well
as minima of the projection; the network was trained on digits alone, so that the "none of them" of its garbage class
is taken from the size of its logits, the crop's measures and the ink its cuts crossed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Box = tuple[int, int, int, int]
Arcs = Sequence[tuple[int, int]]

SIDE = 28  # of MNIST's pictures
BOX = 20  # of the square that MNIST's digits fill

MAX_SEGMENTS = 64
MAX_ASPECT = 40  # width of a string's ink in heights; about 50 digits
MAX_ROWS = 512  # taller pictures are averaged down before anything else
MAX_COLUMNS = 32_768  # of what that leaves

MIN_CONTRAST = 24  # grey levels between ink and paper; less is an empty picture
INK = 0.12  # of full ink: a pixel above it belongs to a stroke

WORKING_ROWS = (12, 24, 40)  # ink less tall than the first is enlarged to the second, taller than the third reduced

# In heights of the string's ink, or (ink) in squares of them.
CUT_SPACING = 0.09
CUT_REACH = 0.22  # how far a cut may wander from its middle
CUT_MOST = 0.6  # the most ink that a cut crosses
CUT_DRIFT = 0.025  # what it costs a cut to step to the side, as ink crossed
SEGMENT_LEAST = 0.005  # the least ink of a segment
SPECK = 0.02  # less ink than that, with blank columns on both sides, is dirt
MAX_WIDTH = 1.5  # of a candidate of several segments


@dataclass(frozen=True)
class Candidate:
    """One run of segments, `start` <= i < `stop`, that may be a digit.

    `box` is (x0, y0, x1, y1) of its ink in the picture's pixels, x1 and y1 exclusive. The measures are in heights of
    the string's ink: the crop's `width` and `height`, the ink `crossed` by its two cuts.
    """

    start: int
    stop: int
    box: Box
    width: float
    height: float
    crossed: float


@dataclass(frozen=True)
class Lattice:
    """The segmentation graph: `segments` + 1 nodes and a candidate from node `start` to node `stop` for each run.

    `crops` is uint8 [len(candidates), 28, 28] in MNIST's form. `cuts` is float32 [segments + 1, R]: the x of each cut
    at the R heights `rows`, all in the picture's pixels, for whoever wants to draw them.
    """

    segments: int
    candidates: tuple[Candidate, ...]
    crops: Grey
    cuts: Floats
    rows: Floats


EMPTY = Lattice(0, (), np.zeros((0, SIDE, SIDE), np.uint8), np.zeros((1, 0), np.float32), np.zeros(0, np.float32))


def ink(picture: Grey) -> Floats:
    """How much of a pixel is ink: grey uint8 [H, W] -> float32 [H, W] in 0..1, bright on dark or dark on light.

    The border is taken for paper, and ink for what differs from it by more than the border's own noise, towards the
    side on which more does. A picture without contrast comes out all zero.

    Raises:
        ValueError: not uint8, not two-dimensional, or without pixels.
    """
    if picture.ndim != 2 or picture.dtype != np.uint8 or picture.size == 0:
        raise ValueError(f"expected a grey picture, uint8 [H, W], got {picture.dtype} {list(picture.shape)}")
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]).astype(np.float32)
    paper = np.median(border)
    noise = 4 * 1.4826 * np.median(np.abs(border - paper))
    difference = picture.astype(np.float32) - paper
    difference[np.abs(difference) <= noise] = 0
    bright, dark = np.square(difference.clip(0)).sum(), np.square(difference.clip(None, 0)).sum()
    strength: Floats = (difference if bright >= dark else -difference).clip(0)
    top = np.percentile(strength[strength > 0], 99) if strength.any() else 0.0
    if top < MIN_CONTRAST:
        return np.zeros_like(strength)
    full = np.percentile(strength[strength > top / 2], 90)
    result: Floats = (strength / full).clip(0, 1).astype(np.float32)
    return result


def resize(image: Floats, height: int, width: int) -> Floats:
    """Anti-aliased bilinear resampling, [H, W] -> [height, width]."""
    if image.shape == (height, width):
        return image
    scaled = F.interpolate(torch.from_numpy(image)[None, None], (height, width), mode="bilinear", antialias=True)
    result: Floats = scaled[0, 0].numpy()
    return result


def bounds(image: Floats) -> Box | None:
    """(x0, y0, x1, y1) of the pixels that are ink, x1 and y1 exclusive; None where there are none."""
    mask = image > INK
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalise(digit: Floats) -> Grey:
    """Ink [H, W] in 0..1 -> uint8 [28, 28] in MNIST's form.

    The ink's box is brought to 20 pixels on its longer side, its proportions kept, and put down so that its centre of
    mass lies at (14, 14), to the pixel. Without ink, all zero.
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


@dataclass(frozen=True)
class _Cuts:
    """`paths` int [K, H]: of row r, the pixels left of paths[k, r] are left of cut k. `crossed` [K]: ink, in pixels."""

    paths: Ints
    crossed: Floats


def lattice(picture: Grey) -> Lattice:
    """Over-segment a picture of a digit string: more cuts than digits, and a candidate for every plausible run.

    The cost is bounded: strings are brought to at most 40 rows of ink, and to at most `MAX_SEGMENTS` segments, for
    which those cuts stay that cross the least. A picture without ink gives a lattice of no segments.

    Raises:
        ValueError: see `ink`; a picture or a string too wide to be one of digits.
    """
    reduced, step = _reduced(picture)
    strength = ink(reduced)
    box = bounds(strength)
    if box is None:
        return EMPTY
    x0, y0, x1, y1 = box
    if x1 - x0 > MAX_ASPECT * (y1 - y0):
        raise ValueError(f"the ink is {x1 - x0} wide and {y1 - y0} high; a string of digits is at most {MAX_ASPECT}:1")
    line = _clean(_working_size(np.ascontiguousarray(strength[y0:y1, x0:x1])))
    origin = step * np.array([x0, y0])
    scale = step * np.array([(x1 - x0) / line.shape[1], (y1 - y0) / line.shape[0]])  # a pixel of `line` in the picture
    cuts = _cuts(line)
    candidates, crops = [], []
    for start, stop in _runs(cuts):
        crop, left = _between(line, cuts.paths[start], cuts.paths[stop])
        inside = np.array(bounds(crop)).reshape(2, 2)
        near, far = origin + (inside + np.array([left, 0])) * scale
        width, height = (inside[1] - inside[0]) / len(line)
        crossed = (cuts.crossed[start] + cuts.crossed[stop]) / len(line)
        candidates.append(Candidate(start, stop, _whole(near, far), float(width), float(height), float(crossed)))
        crops.append(normalise(crop))
    return Lattice(
        segments=len(cuts.paths) - 1,
        candidates=tuple(candidates),
        crops=np.stack(crops),
        cuts=(origin[0] + cuts.paths * scale[0]).astype(np.float32),
        rows=(origin[1] + (np.arange(len(line)) + 0.5) * scale[1]).astype(np.float32),
    )


def _whole(near: Doubles, far: Doubles) -> Box:
    """The whole pixels that two corners (x, y) enclose; a hair over an edge is rounding."""
    (x0, y0), (x1, y1) = np.floor(near + 1e-6), np.ceil(far - 1e-6)
    return int(x0), int(y0), int(x1), int(y1)


def _reduced(picture: Grey) -> tuple[Grey, int]:
    """The picture averaged down to `MAX_ROWS` before anything of its size is made of it, and by what factor."""
    if picture.ndim != 2 or picture.size == 0:
        raise ValueError(f"expected a grey picture [H, W], got {list(picture.shape)}")
    factor = -(-picture.shape[0] // MAX_ROWS)
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    if not 0 < width <= MAX_COLUMNS:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels holds no string of digits")
    if factor == 1:
        return picture, 1
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor)
    reduced: Grey = blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(picture.dtype)
    return reduced, factor


def _working_size(line: Floats) -> Floats:
    least, enlarged, most = WORKING_ROWS
    height, width = line.shape
    rows = enlarged if height < least else min(height, most)
    resized = resize(line, rows, max(1, round(width * rows / height)))
    full: Floats = resized / resized.max()  # a thin stroke that was averaged with paper is full ink again
    return full


def _clean(line: Floats) -> Floats:
    """Without specks: what stands between blank columns and is too little ink for any digit."""
    filled = np.concatenate([[False], (line > INK).any(axis=0), [False]])
    edges = np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2)
    cleaned = line.copy()
    for start, stop in edges:
        if line[:, start:stop].sum() < SPECK * len(line) ** 2:
            cleaned[:, start:stop] = 0
    return cleaned if bounds(cleaned) else line


def _cuts(line: Floats) -> _Cuts:
    """The two outer edges and the cuts between them, left to right; there is ink between any two."""
    height, width = line.shape
    costs, paths = _paths(line)
    spacing = max(1, round(CUT_SPACING * height))
    free = costs <= CUT_MOST * height
    chosen = []
    for column in np.argsort(costs, kind="stable"):
        if free[column]:
            chosen.append(column)
            free[max(0, column - spacing + 1) : column + spacing] = False
    edges = np.zeros((1, height), np.int64), np.full((1, height), width)
    # Neighbours may wander across each other: each cut stays right of the one before.
    ordered = np.maximum.accumulate(np.concatenate([edges[0], paths[sorted(chosen)], edges[1]]), axis=0)
    crossed = _crossed(line, ordered)
    kept = _with_ink_between(line, ordered, crossed)
    inner = np.array(kept[1:-1], dtype=np.int64)
    cheapest = np.sort(inner[np.argsort(crossed[inner], kind="stable")[: MAX_SEGMENTS - 1]])
    final = np.array([kept[0], *cheapest, kept[-1]])
    return _Cuts(ordered[final], crossed[final])


def _with_ink_between(line: Floats, paths: Ints, crossed: Floats) -> list[int]:
    """Which cuts stay when of two that have next to no ink between them the one goes that crosses more."""
    least = SEGMENT_LEAST * len(line) ** 2
    last = len(paths) - 1
    kept = [0]
    for index in range(1, last + 1):
        if (_between(line, paths[kept[-1]], paths[index])[0] > INK).sum() >= max(least, 1):
            kept.append(index)
        elif len(kept) > 1 and (index == last or crossed[index] < crossed[kept[-1]]):
            kept[-1] = index
    return kept if kept[-1] == last else [0, last]


def _paths(line: Floats) -> tuple[Floats, Ints]:
    """For each boundary between columns, 0..W, the cheapest cut through its middle: costs [W + 1], paths [W + 1, H].

    A cut goes from top to bottom, by at most one column a row and `CUT_REACH` in all, and pays for the ink that it
    parts: of two neighbouring pixels on either side the fainter one.
    """
    height, width = line.shape
    reach = max(1, round(CUT_REACH * height))
    beside = np.pad(np.minimum(line[:, :-1], line[:, 1:]), ((0, 0), (reach + 1, reach + 1)))  # [H, W + 1 + 2 reach]
    below = np.pad(np.minimum(line[:-1], line[1:]), ((0, 0), (reach, reach + 1)))  # [H - 1, W + 1 + 2 reach]
    middle = height // 2
    up, down = np.arange(middle, -1, -1), np.arange(middle, height)
    costs_up, paths_up = _wander(beside, below, up, reach)
    costs_down, paths_down = _wander(beside, below, down, reach)
    paths = np.concatenate([paths_up[:, :0:-1], paths_down], axis=1)
    costs: Floats = costs_up + costs_down + beside[middle, reach : reach + width + 1]
    return costs, paths.clip(0, width)


def _wander(beside: Floats, below: Floats, rows: Ints, reach: int) -> tuple[Floats, Ints]:
    """Half a cut, from its middle row to an end: dynamic programming over offsets -reach..reach, for all columns."""
    count, offsets = beside.shape[1] - 2 * reach, 2 * reach + 1
    windows = np.arange(count)[:, None] + np.arange(offsets)  # [columns, offsets] -> padded column
    drift = np.float32(CUT_DRIFT * len(beside))
    costs = np.full((count, offsets), np.inf, np.float32)
    costs[:, reach] = 0
    steps = np.zeros((len(rows), count, offsets), np.int8)
    for place in range(1, len(rows)):
        row, before = rows[place], rows[place - 1]
        parted = below[min(row, before)][windows] + drift  # by stepping right from here, or left to here
        options = np.full((3, count, offsets), np.inf, np.float32)
        options[0] = costs
        options[1, :, 1:] = costs[:, :-1] + parted[:, :-1]  # from the left
        options[2, :, :-1] = costs[:, 1:] + parted[:, :-1]  # from the right
        steps[place] = options.argmin(axis=0)
        costs = options.min(axis=0) + beside[row][windows]
    every = np.arange(count)
    offset = costs.argmin(axis=1)
    total: Floats = costs[every, offset]
    paths = np.empty((count, len(rows)), np.int64)
    for place in range(len(rows) - 1, -1, -1):
        paths[:, place] = every + offset - reach
        offset = offset + np.array([0, -1, 1])[steps[place, every, offset]]
    return total, paths


def _crossed(line: Floats, paths: Ints) -> Floats:
    """The ink that each path parts, without what its steps cost on top: [K]."""
    beside = np.pad(np.minimum(line[:, :-1], line[:, 1:]), ((0, 0), (1, 1)))  # [H, W + 1]
    below = np.minimum(line[:-1], line[1:])  # [H - 1, W]
    sideways = np.pad(below.cumsum(axis=1), ((0, 0), (1, 0)))  # [H - 1, W + 1]
    rows = np.arange(len(line))
    along = beside[rows, paths].sum(axis=1)
    ends = sideways[rows[:-1], paths[:, 1:]] - sideways[rows[:-1], paths[:, :-1]]
    result: Floats = along + np.abs(ends).sum(axis=1)
    return result


def _between(line: Floats, left: Ints, right: Ints) -> tuple[Floats, int]:
    """What of `line` lies between two cuts, [H, W'], and the column that it begins at."""
    start, stop = int(left.min()), int(right.max())
    columns = np.arange(start, stop)
    inside = (columns >= left[:, None]) & (columns < right[:, None])
    return np.where(inside, line[:, start:stop], np.float32(0)), start


def _runs(cuts: _Cuts) -> Iterator[tuple[int, int]]:
    """(start, stop) of every segment alone, and of those neighbours together that are not too wide for a digit."""
    middles = cuts.paths.mean(axis=1)
    widest = MAX_WIDTH * cuts.paths.shape[1]
    for start in range(len(middles) - 1):
        yield start, start + 1
        for stop in range(start + 2, len(middles)):
            if middles[stop] - middles[start] > widest:
                break
            yield start, stop


@dataclass(frozen=True)
class Penalties:
    """What a candidate's rejection is made of: what each measure takes off it, or, where negative, adds.

    `energy` weighs the log of the sum of the exponentials of the logits at the card's temperature: a network trained on
    digits alone answers with small logits to what is none. `height` and `width` weigh squares, `crossed` the measure
    itself; `classes` is what a candidate has for looking like each digit (parts of digits look like 1, 2, 3 and 5).
    """

    energy: float
    height: float
    width: float
    crossed: float
    classes: tuple[float, ...]


# For lenet5-mnist, by the paper's discriminative forward training (section VI) of these constants alone: they make the
# mean of -log P(string | picture) least over strings of MNIST training digits; benchmarks/digit_strings.py --fit.
PENALTIES = Penalties(
    energy=0.61,
    height=2.68,
    width=-2.18,
    crossed=-5.11,
    classes=(-2.9, -5.29, -5.91, -6.41, -4.47, -5.15, -4.1, -4.43, -3.97, -2.36),
)


@dataclass(frozen=True)
class Digit:
    """One digit of a reading: its class 0..9, the softmax's confidence in it, and its box, as a candidate's."""

    class_id: int
    confidence: float
    box: Box


@dataclass(frozen=True)
class Reading:
    """The digits from left to right, their path through the lattice as indices of its candidates, and its penalty.

    `confidence` is the probability of the string among all that the lattice can be read as, cut in whatever way, 0..1.
    """

    digits: tuple[Digit, ...]
    path: tuple[int, ...]
    penalty: float
    confidence: float

    @property
    def text(self) -> str:
        """The digits as a string."""
        return "".join(str(digit.class_id) for digit in self.digits)


def features(found: Lattice, scores: Tensor) -> Doubles:
    """What `Penalties` weighs, in the order of its fields: logits at the temperature [N, 10] -> [N, 4 + 10].

    The last ten are the probabilities of the classes.
    """
    measures = np.array([(c.height**2, c.width**2, c.crossed) for c in found.candidates]).reshape(-1, 3)
    energies, probabilities = scores.logsumexp(dim=1, keepdim=True), scores.softmax(dim=1)
    return np.concatenate([energies.numpy(), measures, probabilities.numpy()], axis=1)


def read(found: Lattice, logits: Tensor, temperature: float = 1.0, penalties: Penalties = PENALTIES) -> Reading:
    """The string of digits that the lattice most probably shows; an empty one for a lattice of no segments.

    `logits` is the network's answer to the crops, [candidates, 10], class i being digit i; `temperature` its card's.

    Raises:
        ValueError: logits of another shape, or not finite; a temperature that is not above zero.
    """
    count = len(found.candidates)
    if tuple(logits.shape) != (count, 10) or not torch.isfinite(logits).all() or not temperature > 0:
        raise ValueError(f"expected finite logits [{count}, 10] and a temperature > 0, got {list(logits.shape)}")
    scores = logits.detach().cpu().double() / temperature
    weights = (penalties.energy, penalties.height, penalties.width, penalties.crossed, *penalties.classes)
    rejection = -features(found, scores) @ np.array(weights)
    surprise: Doubles = -scores.log_softmax(dim=1).numpy()  # [N, 10]
    nodes, arcs = found.segments + 1, [(c.start, c.stop) for c in found.candidates]
    costs: Doubles = rejection + surprise.min(axis=1, initial=np.inf)
    path = viterbi(nodes, arcs, costs)
    classes = [int(surprise[index].argmin()) for index in path]
    # A candidate's classes sum to one, so that the sum over all readings is one over all paths.
    everything = forward(nodes, arcs, rejection)
    this = forward_along(nodes, arcs, rejection[:, None] + surprise[:, classes])
    digits = [
        Digit(label, float(np.exp(-surprise[index, label])), found.candidates[index].box)
        for index, label in zip(path, classes, strict=True)
    ]
    confidence = float(np.exp(min(everything - this, 0.0)))
    return Reading(tuple(digits), tuple(path), float(costs[path].sum()), confidence)


def viterbi(nodes: int, arcs: Arcs, costs: Doubles) -> list[int]:
    """The cheapest path from node 0 to node `nodes` - 1, as indices of its arcs in order.

    `arcs` are (start, stop) with 0 <= start < stop < `nodes`, in any order; `costs` is [arcs], of either sign. With one
    node it is the empty path.

    Raises:
        ValueError: other arcs, other than one number for each, or no path.
    """
    best, last = np.full(nodes, np.inf), np.full(nodes, -1)
    best[:1] = 0.0
    for index in _in_order(nodes, arcs, costs):
        start, stop = arcs[index]
        if best[start] + costs[index] < best[stop]:
            best[stop], last[stop] = best[start] + costs[index], index
    if not np.isfinite(best[-1]):
        raise ValueError(f"no path from node 0 to node {nodes - 1}")
    path: list[int] = []
    node = nodes - 1
    while node:
        path.append(int(last[node]))
        node = arcs[path[-1]][0]
    return path[::-1]


def forward(nodes: int, arcs: Arcs, costs: Doubles) -> float:
    """The paper's forward penalty, -log of the sum over all paths of exp(-cost). Arguments and errors: see `viterbi`.

    Infinite without a path.
    """
    total = np.full(nodes, -np.inf)  # log of the sum over the paths that end here
    total[:1] = 0.0
    for index in _in_order(nodes, arcs, costs):
        start, stop = arcs[index]
        total[stop] = np.logaddexp(total[stop], total[start] - costs[index])
    return -float(total[-1])


def forward_along(nodes: int, arcs: Arcs, costs: Doubles) -> float:
    """`forward` over the paths of exactly K arcs, the k-th of which costs its column k of `costs` [arcs, K]."""
    total = np.full((nodes, costs.shape[1] + 1), -np.inf)  # [node, arcs so far]
    total[0, 0] = 0.0
    for index in _in_order(nodes, arcs, costs):
        start, stop = arcs[index]
        total[stop, 1:] = np.logaddexp(total[stop, 1:], total[start, :-1] - costs[index])
    return -float(total[-1, -1])


def _in_order(nodes: int, arcs: Arcs, costs: Doubles) -> list[int]:
    """The arcs' indices, whatever ends at a node before what begins there."""
    if nodes < 1 or any(not 0 <= start < stop < nodes for start, stop in arcs):
        raise ValueError(f"expected arcs (start, stop) with 0 <= start < stop < {nodes}")
    if len(costs) != len(arcs) or not np.isfinite(costs).all():
        raise ValueError(f"expected a finite cost for each of {len(arcs)} arcs")
    return sorted(range(len(arcs)), key=lambda index: arcs[index][0])
