"""Decoding of digit strings, compared with an enumeration of all paths."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.digit_segmentation import DigitCandidate, Lattice, build_lattice
from models.digit_string_decoder import PENALTIES, forward, read, viterbi


def paths(nodes: int, arcs: list[tuple[int, int]], node: int = 0) -> list[list[int]]:
    """Every path from `node` to the last node, as indices of arcs."""
    if node == nodes - 1:
        return [[]]
    return [
        [index, *rest] for index, (start, stop) in enumerate(arcs) if start == node for rest in paths(nodes, arcs, stop)
    ]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], npt.NDArray[np.float64]]:
    """Nodes with a path from each to the next, more arcs (several may join the same two), costs of either sign."""
    nodes = draw(st.integers(1, 7))
    pairs = [(a, b) for a in range(nodes) for b in range(a + 1, nodes)]
    more = draw(st.lists(st.sampled_from(pairs), max_size=8)) if pairs else []
    arcs = sorted([*pairwise(range(nodes)), *more], key=lambda arc: arc[0])
    costs = draw(st.lists(st.floats(-20, 20), min_size=len(arcs), max_size=len(arcs)))
    return nodes, arcs, np.array(costs, dtype=np.float64)


@given(graphs())
def test_viterbi_and_forward_match_enumeration(
    graph: tuple[int, list[tuple[int, int]], npt.NDArray[np.float64]],
) -> None:
    nodes, arcs, costs = graph
    totals = [float(sum(costs[index] for index in path)) for path in paths(nodes, arcs)]
    path = viterbi(nodes, arcs, costs)
    walk = [0, *(arcs[index][1] for index in path)]
    assert [arcs[index][0] for index in path] == walk[:-1]
    assert walk[-1] == nodes - 1
    assert sum(costs[path]) == pytest.approx(min(totals), abs=1e-9)
    assert forward(nodes, arcs, costs) == pytest.approx(-np.logaddexp.reduce(-np.array(totals)), abs=1e-9)


def random_lattice(random: np.random.Generator, segments: int = 4) -> Lattice:
    runs = [(a, b) for a in range(segments) for b in range(a + 1, segments + 1) if b - a < 3]
    candidates = tuple(DigitCandidate(a, b, (a, 0, b, 1), *random.uniform(0, 1, 3)) for a, b in runs)
    crops = np.zeros((len(runs), 28, 28), np.uint8)
    return Lattice(segments, candidates, crops, np.zeros((segments + 1, 1), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_reading_and_confidence_match_enumeration(seed: int) -> None:
    random = np.random.default_rng(seed)
    lattice, temperature = random_lattice(random), 1.7
    logits = torch.from_numpy(random.normal(0, 3, (len(lattice.candidates), 10)))
    reading = read(lattice, logits, temperature)

    p = PENALTIES
    costs = np.empty(logits.shape)
    for row, c in enumerate(lattice.candidates):
        z = logits[row].numpy() / temperature
        log_sum = math.log(sum(math.exp(v) for v in z))
        rejection = -(p.energy * log_sum + p.height * c.height**2 + p.width * c.width**2 + p.crossed * c.crossed)
        rejection -= sum(math.exp(v - log_sum) * share for v, share in zip(z, p.classes, strict=True))
        costs[row] = rejection - (z - log_sum)
    shares: dict[str, float] = defaultdict(float)
    best, best_text = math.inf, ""
    for path in paths(lattice.segments + 1, [(c.start, c.stop) for c in lattice.candidates]):
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
            float((logits[[c.box for c in lattice.candidates].index(digit.box)] / temperature).softmax(0).max())
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
def test_invalid_logits_are_refused(logits: torch.Tensor, temperature: float) -> None:
    lattice = random_lattice(np.random.default_rng(0))
    assert len(lattice.candidates) == 7
    with pytest.raises(ValueError, match="expected finite logits"):
        read(lattice, logits, temperature)


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (3, 400), (700, 900)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_image_without_ink_is_an_empty_string(shape: tuple[int, int], level: int) -> None:
    lattice = build_lattice(np.full(shape, level, np.uint8))
    assert (lattice.segments, lattice.candidates, len(lattice.crops)) == (0, (), 0)
    reading = read(lattice, torch.empty(0, 10))
    assert (reading.text, reading.digits, reading.penalty, reading.confidence) == ("", (), 0.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_image_has_a_reading(height: int, width: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    image = (random.integers(0, 256, (height, width)) * (random.random((height, width)) < share)).astype(np.uint8)
    try:
        lattice = build_lattice(image)
    except ValueError as error:
        assume("wide" not in str(error))
        raise
    reading = read(lattice, torch.from_numpy(random.normal(0, 5, (len(lattice.candidates), 10))))
    assert bool(reading.text) == (lattice.segments > 0)
    assert 0 <= reading.confidence <= 1
    for digit in reading.digits:
        x0, y0, x1, y1 = digit.box
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
