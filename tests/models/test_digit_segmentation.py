"""Segmentation of digit strings: the cuts against known digits, the crops against MNIST."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from models.digit_segmentation import MAX_SEGMENTS, bounds, build_lattice, ink, normalise

Grey = npt.NDArray[np.uint8]


def strip(digits: list[Grey], gap: int, margin: int = 5) -> tuple[Grey, list[tuple[int, int, int, int]]]:
    """The digits in a row, `gap` columns apart (negative: overlapping, the brighter pixel counts), and their boxes."""
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


def unit(image: Grey) -> npt.NDArray[np.float32]:
    """0..255 -> 0..1."""
    return (image / 255).astype(np.float32)


def trimmed(image: Grey) -> Grey:
    x0, y0, x1, y1 = bounds(unit(image)) or (0, 0, 0, 0)
    return image[y0:y1, x0:x1]


def small_digits(*rows: int, side: int = 24) -> list[Grey]:
    """scikit-learn's 8x8 digits, enlarged and trimmed to their ink."""
    images = load_digits().images[list(rows)] * (255 / 16)
    return [trimmed(np.asarray(Image.fromarray(i.astype(np.uint8)).resize((side, side), 2))) for i in images]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_normalised_digit_has_20_pixels_and_is_centred_by_mass(height: int, width: int, seed: int) -> None:
    digit = np.random.default_rng(seed).uniform(0.5, 1, (height, width)).astype(np.float32)
    crop = normalise(np.pad(digit, ((3, 9), (14, 2))))
    x0, y0, x1, y1 = bounds(unit(crop)) or (0, 0, 0, 0)
    assert max(x1 - x0, y1 - y0) == 20
    longer = max(height, width)
    assert (y1 - y0, x1 - x0) == (max(1, round(20 * height / longer)), max(1, round(20 * width / longer)))
    mass = crop.sum(dtype=float)
    assert crop.sum(axis=1) @ np.arange(28) / mass == pytest.approx(14, abs=0.51)
    assert crop.sum(axis=0) @ np.arange(28) / mass == pytest.approx(14, abs=0.51)


@pytest.mark.data
def test_mnist_digits_are_normalised_already(mnist: list[tuple[Grey, int]]) -> None:
    distances = np.array([np.abs(normalise(ink(p)).astype(int) - p).mean() for p, _ in mnist])
    # Up to 1 in 100 may be rounded to the other side of the centre.
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
def test_each_separate_digit_is_a_candidate(side: int, gap: int) -> None:
    image, boxes = strip(small_digits(0, 1, 2, 3, 4, 7, 8, side=side), gap)
    lattice = build_lattice(image)
    assert lattice.segments >= len(boxes)
    for box in boxes:
        assert max(agreement(c.box, box) for c in lattice.candidates) >= (0.95 if side > 10 else 0.75)


@pytest.mark.data
@pytest.mark.slow
def test_touching_digits_are_among_the_candidates(mnist: list[tuple[Grey, int]]) -> None:
    tiles = [trimmed(image) for image, label in mnist if label != 1]  # a 1 may overlap its neighbour completely
    kept = 0
    for first in range(0, 400, 4):
        image, boxes = strip(tiles[first : first + 4], gap=-2)
        candidates = [c.box for c in build_lattice(image).candidates]
        kept += sum(max(agreement(box, c) for c in candidates) >= 0.8 for box in boxes)
    assert kept / 400 >= 0.97


def test_candidates_lie_between_their_cuts() -> None:
    image, _ = strip(small_digits(0, 6, 8, 3), gap=-2)
    lattice = build_lattice(image)
    assert lattice.crops.shape == (len(lattice.candidates), 28, 28)
    assert lattice.cuts.shape == (lattice.segments + 1, len(lattice.rows))
    assert (np.diff(lattice.cuts, axis=0) >= 0).all()
    assert {(i, i + 1) for i in range(lattice.segments)} <= {(c.start, c.stop) for c in lattice.candidates}
    assert [c.start for c in lattice.candidates] == sorted(c.start for c in lattice.candidates)
    for c in lattice.candidates:
        assert 0 <= c.start < c.stop <= lattice.segments
        x0, y0, x1, y1 = c.box
        assert lattice.cuts[c.start].min() <= x0 < x1 <= lattice.cuts[c.stop].max()
        assert 0 <= y0 < y1 <= len(image)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: 255 - p, id="dark on light"),
        pytest.param(lambda p: 60 + p * 0.4, id="faint"),
        pytest.param(lambda p: 220 - p * 0.5, id="pencil on grey paper"),
        pytest.param(lambda p: 200 - p * 0.6 + np.random.default_rng(0).normal(0, 2, p.shape), id="noisy paper"),
    ],
)
def test_ink_does_not_depend_on_shades(change: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]) -> None:
    image, boxes = strip(small_digits(4, 8, 7, 1), gap=3)
    changed = change(image.astype(np.float64)).round().clip(0, 255).astype(np.uint8)
    assert np.abs(ink(changed) - ink(image)).mean() < 0.01
    lattice = build_lattice(changed)
    for box in boxes:
        assert max(agreement(c.box, box) for c in lattice.candidates) >= 0.8


def test_specks_are_no_candidates() -> None:
    image, boxes = strip(small_digits(0, 8), gap=20)
    x = (boxes[0][2] + boxes[1][0]) // 2
    image[20:22, x : x + 2] = 255
    assert not any(c.box[0] <= x < c.box[2] for c in build_lattice(image).candidates if c.width < 0.5)


@pytest.mark.parametrize("height", [57, 87, 300])
def test_dots_survive_the_averaging_of_rows(height: int) -> None:
    image = np.zeros((height, 90), np.uint8)
    image[0, 3] = image[-1, 20] = 200
    lattice = build_lattice(image)
    assert lattice.segments > 0
    assert all(c.box[0] < c.box[2] and c.box[1] < c.box[3] for c in lattice.candidates)


def test_large_image_has_the_same_boxes() -> None:
    digits = small_digits(4, 8, 7)
    image, boxes = strip(digits, gap=4)
    large = np.kron(image, np.ones((60, 60), np.uint8))  # 2,000 x 5,000 and more
    lattice = build_lattice(large)
    for x0, y0, x1, y1 in boxes:
        box = (60 * x0, 60 * y0, 60 * x1, 60 * y1)
        assert max(agreement(c.box, box) for c in lattice.candidates) >= 0.95


def test_cost_is_bounded() -> None:
    image = np.zeros((50, 1200), np.uint8)
    image[5:45, 4:-4:8] = 255
    image[5:45, 5:-4:8] = 255
    started = time.process_time()
    lattice = build_lattice(image)
    assert time.process_time() - started < 5
    assert lattice.segments == MAX_SEGMENTS
    assert len(lattice.candidates) <= 64 * 24


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((28, 28)), "uint8"),
        (np.zeros((28, 28, 3), np.uint8), "grey"),
        (np.zeros(28, np.uint8), "grey"),
        (np.zeros((0, 28), np.uint8), "grey"),
        (np.zeros((4, 40_000), np.uint8), "too wide for a string"),
        (np.zeros((20_000, 1), np.uint8), "too wide for a string"),
        (np.pad(np.full((2, 500), 255, np.uint8), 4), "wide"),
    ],
)
def test_invalid_image_is_refused(image: Grey, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_lattice(image)
