"""LeNet's post-processing: search against enumeration, MNIST's form against MNIST, cuts against known digits."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from models import digit_string_decoder

Grey = npt.NDArray[np.uint8]


def strip(digits: list[Grey], gap: int, margin: int = 5) -> tuple[Grey, list[tuple[int, int, int, int]]]:
    """Digits side by side, `gap` columns between (negative: overlapping, the brighter pixel counts); their boxes."""
    width = sum(d.shape[1] for d in digits) + gap * (len(digits) - 1)
    canvas = np.zeros((max(d.shape[0] for d in digits) + 2 * margin, width + 2 * margin), np.uint8)
    boxes, x = [], margin
    for digit in digits:
        height, width = digit.shape
        y = (len(canvas) - height) // 2
        np.maximum(canvas[y : y + height, x : x + width], digit, out=canvas[y : y + height, x : x + width])
        boxes.append((x, y, x + width, y + height))
        x += width + gap
    return canvas, boxes


def unit(picture: Grey) -> npt.NDArray[np.float32]:
    """0..255 -> 0..1."""
    return (picture / 255).astype(np.float32)


def trimmed(picture: Grey) -> Grey:
    x0, y0, x1, y1 = digit_string_decoder.bounds(unit(picture)) or (0, 0, 0, 0)
    return picture[y0:y1, x0:x1]


def small_digits(*rows: int, side: int = 24) -> list[Grey]:
    """scikit-learn's 8x8 digits, enlarged and trimmed to their ink."""
    images = load_digits().images[list(rows)] * (255 / 16)
    return [trimmed(np.asarray(Image.fromarray(i.astype(np.uint8)).resize((side, side), 2))) for i in images]


def paths(nodes: int, arcs: list[tuple[int, int]], node: int = 0) -> list[list[int]]:
    """Every path from `node` to the last one, as indices of arcs."""
    if node == nodes - 1:
        return [[]]
    return [
        [index, *rest] for index, (start, stop) in enumerate(arcs) if start == node for rest in paths(nodes, arcs, stop)
    ]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], npt.NDArray[np.float64]]:
    """Nodes, arcs in any order (several may join the same two nodes), costs of either sign."""
    nodes = draw(st.integers(1, 7))
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    arcs = draw(st.lists(st.sampled_from(pairs), max_size=14)) if pairs else []
    costs = draw(st.lists(st.floats(-20, 20), min_size=len(arcs), max_size=len(arcs)))
    return nodes, arcs, np.array(costs, dtype=np.float64)


@given(graphs())
def test_viterbi_and_forward_are_the_best_and_the_sum_of_all_paths(
    graph: tuple[int, list[tuple[int, int]], npt.NDArray[np.float64]],
) -> None:
    nodes, arcs, costs = graph
    totals = [float(sum(costs[index] for index in path)) for path in paths(nodes, arcs)]
    if not totals:
        assert digit_string_decoder.forward(nodes, arcs, costs) == math.inf
        with pytest.raises(ValueError, match="no path"):
            digit_string_decoder.viterbi(nodes, arcs, costs)
        return
    path = digit_string_decoder.viterbi(nodes, arcs, costs)
    walk = [0, *(arcs[index][1] for index in path)]
    assert [arcs[index][0] for index in path] == walk[:-1]
    assert walk[-1] == nodes - 1
    assert sum(costs[path]) == pytest.approx(min(totals), abs=1e-9)
    assert digit_string_decoder.forward(nodes, arcs, costs) == pytest.approx(
        -np.logaddexp.reduce(-np.array(totals)), abs=1e-9
    )


@pytest.mark.parametrize(
    ("nodes", "arcs", "costs"),
    [
        (0, [], []),
        (2, [(0, 1)], []),
        (2, [(1, 0)], [1.0]),
        (2, [(0, 2)], [1.0]),
        (2, [(0, 1)], [math.nan]),
        (2, [(0, 1)], [-math.inf]),
    ],
)
def test_what_is_no_graph_is_refused(nodes: int, arcs: list[tuple[int, int]], costs: list[float]) -> None:
    for search in (digit_string_decoder.viterbi, digit_string_decoder.forward):
        with pytest.raises(ValueError, match="expected"):
            search(nodes, arcs, np.array(costs))


def some_lattice(random: np.random.Generator, segments: int = 4) -> digit_string_decoder.Lattice:
    runs = [(a, b) for a in range(segments) for b in range(a + 1, segments + 1) if b - a < 3]
    candidates = tuple(digit_string_decoder.Candidate(a, b, (a, 0, b, 1), *random.uniform(0, 1, 3)) for a, b in runs)
    crops = np.zeros((len(runs), 28, 28), np.uint8)
    return digit_string_decoder.Lattice(
        segments, candidates, crops, np.zeros((segments + 1, 1), np.float32), np.zeros(1, np.float32)
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_reading_is_the_best_of_all_and_its_confidence_its_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    found, temperature = some_lattice(random), 1.7
    logits = torch.from_numpy(random.normal(0, 3, (len(found.candidates), 10)))
    reading = digit_string_decoder.read(found, logits, temperature)

    p = digit_string_decoder.PENALTIES
    costs = np.empty(logits.shape)
    for row, c in enumerate(found.candidates):
        z = logits[row].numpy() / temperature
        log_sum = math.log(sum(math.exp(v) for v in z))
        rejection = -(p.energy * log_sum + p.height * c.height**2 + p.width * c.width**2 + p.crossed * c.crossed)
        rejection -= sum(math.exp(v - log_sum) * share for v, share in zip(z, p.classes, strict=True))
        costs[row] = rejection - (z - log_sum)
    shares: dict[str, float] = defaultdict(float)
    best, best_text = math.inf, ""
    for path in paths(found.segments + 1, [(c.start, c.stop) for c in found.candidates]):
        for classes in itertools.product(range(10), repeat=len(path)):
            cost = sum(costs[row, label] for row, label in zip(path, classes, strict=True))
            text = "".join(map(str, classes))
            shares[text] += math.exp(-cost)
            if cost < best:
                best, best_text = cost, text
    assert reading.text == best_text
    assert reading.penalty == pytest.approx(best, abs=1e-9)
    assert reading.confidence == pytest.approx(shares[best_text] / sum(shares.values()), rel=1e-9)
    for digit in reading.digits:
        assert digit.confidence == pytest.approx(
            float((logits[[c.box for c in found.candidates].index(digit.box)] / temperature).softmax(0).max())
        )


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [
        (torch.zeros(3, 10), 1.0),
        (torch.zeros(7, 9), 1.0),
        (torch.full((7, 10), math.nan), 1.0),
        (torch.zeros(7, 10), 0.0),
        (torch.zeros(7, 10), math.nan),
    ],
)
def test_logits_that_do_not_fit_are_refused(logits: torch.Tensor, temperature: float) -> None:
    found = some_lattice(np.random.default_rng(0))
    assert len(found.candidates) == 7
    with pytest.raises(ValueError, match="expected finite logits"):
        digit_string_decoder.read(found, logits, temperature)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_the_normal_form_is_20_pixels_centred_by_mass(height: int, width: int, seed: int) -> None:
    digit = np.random.default_rng(seed).uniform(0.5, 1, (height, width)).astype(np.float32)
    crop = digit_string_decoder.normalise(np.pad(digit, ((3, 9), (14, 2))))
    x0, y0, x1, y1 = digit_string_decoder.bounds(unit(crop)) or (0, 0, 0, 0)
    assert max(x1 - x0, y1 - y0) == 20
    longer = max(height, width)
    assert (y1 - y0, x1 - x0) == (max(1, round(20 * height / longer)), max(1, round(20 * width / longer)))
    mass = crop.sum(dtype=float)
    assert crop.sum(axis=1) @ np.arange(28) / mass == pytest.approx(14, abs=0.51)
    assert crop.sum(axis=0) @ np.arange(28) / mass == pytest.approx(14, abs=0.51)


@pytest.mark.data
def test_mnists_own_digits_are_in_the_normal_form_already(mnist: list[tuple[Grey, int]]) -> None:
    distances = np.array(
        [np.abs(digit_string_decoder.normalise(digit_string_decoder.ink(p)).astype(int) - p).mean() for p, _ in mnist]
    )
    # A digit that lies half a pixel from the centre may go to the other side: no more than 1 in 100.
    assert np.median(distances) < 0.5
    assert (distances < 1.5).mean() >= 0.99


@pytest.fixture(scope="module")
def mnist(datasets: Callable[[str], Path]) -> list[tuple[Grey, int]]:
    """1,000 of MNIST's training digits."""
    table = pyarrow.parquet.ParquetFile(min(datasets("mnist").glob("train*.parquet")))
    rows = next(table.iter_batches(1000, columns=["image", "label"])).to_pylist()
    return [(np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))), row["label"]) for row in rows]


def agreement(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return common / (areas - common)


@pytest.mark.parametrize("side", [10, 24, 90])
@pytest.mark.parametrize("gap", [1, 3, 8])
def test_digits_apart_are_each_a_candidate_with_its_box(side: int, gap: int) -> None:
    picture, boxes = strip(small_digits(0, 1, 2, 3, 4, 7, 8, side=side), gap)
    found = digit_string_decoder.lattice(picture)
    assert found.segments >= len(boxes)
    for box in boxes:
        assert max(agreement(c.box, box) for c in found.candidates) >= (0.95 if side > 10 else 0.75)


@pytest.mark.data
@pytest.mark.slow
def test_touching_digits_have_their_cuts_among_the_candidates(mnist: list[tuple[Grey, int]]) -> None:
    tiles = [trimmed(picture) for picture, label in mnist if label != 1]  # a 1 may vanish in its neighbour
    kept = 0
    for first in range(0, 400, 4):
        picture, boxes = strip(tiles[first : first + 4], gap=-2)
        candidates = [c.box for c in digit_string_decoder.lattice(picture).candidates]
        kept += sum(max(agreement(box, c) for c in candidates) >= 0.8 for box in boxes)
    assert kept / 400 >= 0.97


def test_every_segment_is_a_candidate_and_lies_between_its_cuts() -> None:
    picture, _ = strip(small_digits(0, 6, 8, 3), gap=-2)
    found = digit_string_decoder.lattice(picture)
    assert found.crops.shape == (len(found.candidates), 28, 28)
    assert found.cuts.shape == (found.segments + 1, len(found.rows))
    assert (np.diff(found.cuts, axis=0) >= 0).all()
    assert {(i, i + 1) for i in range(found.segments)} <= {(c.start, c.stop) for c in found.candidates}
    for c in found.candidates:
        assert 0 <= c.start < c.stop <= found.segments
        x0, y0, x1, y1 = c.box
        assert found.cuts[c.start].min() <= x0 < x1 <= found.cuts[c.stop].max()
        assert 0 <= y0 < y1 <= len(picture)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: 255 - p, id="dark on light"),
        pytest.param(lambda p: 60 + p * 0.4, id="faint"),
        pytest.param(lambda p: 220 - p * 0.5, id="pencil on grey paper"),
        pytest.param(lambda p: 200 - p * 0.6 + np.random.default_rng(0).normal(0, 2, p.shape), id="noisy paper"),
    ],
)
def test_ink_is_ink_in_any_shade(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> None:
    picture, boxes = strip(small_digits(4, 8, 7, 1), gap=3)
    changed = change(picture.astype(np.float64)).round().clip(0, 255).astype(np.uint8)
    assert np.abs(digit_string_decoder.ink(changed) - digit_string_decoder.ink(picture)).mean() < 0.01
    found = digit_string_decoder.lattice(changed)
    for box in boxes:
        assert max(agreement(c.box, box) for c in found.candidates) >= 0.8


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (3, 400), (700, 900)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_no_ink_is_an_empty_string(shape: tuple[int, int], level: int) -> None:
    found = digit_string_decoder.lattice(np.full(shape, level, np.uint8))
    assert (found.segments, found.candidates, len(found.crops)) == (0, (), 0)
    reading = digit_string_decoder.read(found, torch.empty(0, 10))
    assert (reading.text, reading.digits, reading.penalty, reading.confidence) == ("", (), 0.0, 1.0)


def test_specks_between_digits_are_no_digits() -> None:
    picture, boxes = strip(small_digits(0, 8), gap=20)
    x = (boxes[0][2] + boxes[1][0]) // 2
    picture[20:22, x : x + 2] = 255
    assert not any(c.box[0] <= x < c.box[2] for c in digit_string_decoder.lattice(picture).candidates if c.width < 0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_picture_has_a_reading(height: int, width: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    picture = (random.integers(0, 256, (height, width)) * (random.random((height, width)) < share)).astype(np.uint8)
    try:
        found = digit_string_decoder.lattice(picture)
    except ValueError as error:
        assume("wide" not in str(error))
        raise
    reading = digit_string_decoder.read(found, torch.from_numpy(random.normal(0, 5, (len(found.candidates), 10))))
    assert bool(reading.text) == (found.segments > 0)
    assert 0 <= reading.confidence <= 1
    for digit in reading.digits:
        x0, y0, x1, y1 = digit.box
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


@pytest.mark.parametrize("height", [57, 87, 300])
def test_dots_that_fade_when_the_rows_are_averaged_are_ink_still(height: int) -> None:
    picture = np.zeros((height, 90), np.uint8)
    picture[0, 3] = picture[-1, 20] = 200
    found = digit_string_decoder.lattice(picture)
    assert found.segments > 0
    assert all(c.box[0] < c.box[2] and c.box[1] < c.box[3] for c in found.candidates)


def test_a_large_picture_is_read_like_a_small_one() -> None:
    digits = small_digits(4, 8, 7)
    picture, boxes = strip(digits, gap=4)
    large = np.kron(picture, np.ones((60, 60), np.uint8))  # 2,000 x 5,000 and more
    found = digit_string_decoder.lattice(large)
    for x0, y0, x1, y1 in boxes:
        box = (60 * x0, 60 * y0, 60 * x1, 60 * y1)
        assert max(agreement(c.box, box) for c in found.candidates) >= 0.95


def test_a_picture_full_of_strokes_has_a_bounded_cost() -> None:
    picture = np.zeros((50, 1200), np.uint8)
    picture[5:45, 4:-4:8] = 255
    picture[5:45, 5:-4:8] = 255
    started = time.process_time()
    found = digit_string_decoder.lattice(picture)
    assert time.process_time() - started < 5
    assert found.segments == digit_string_decoder.MAX_SEGMENTS
    assert len(found.candidates) <= 64 * 24


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (np.zeros((28, 28)), "uint8"),
        (np.zeros((28, 28, 3), np.uint8), "grey"),
        (np.zeros(28, np.uint8), "grey"),
        (np.zeros((0, 28), np.uint8), "grey"),
        (np.zeros((4, 40_000), np.uint8), "no string"),
        (np.zeros((20_000, 1), np.uint8), "no string"),
        (np.pad(np.full((2, 500), 255, np.uint8), 4), "wide"),
    ],
)
def test_what_is_no_picture_of_a_string_is_refused(picture: Grey, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        digit_string_decoder.lattice(picture)
