"""Decode a string of digits with a network that classifies single digits: LeNet's post-processing.

LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998,
sections IV to VI: Viterbi over the interpretation graph.

    image uint8 [H, W] -> `build_lattice`: ink, cuts, every plausible run of segments as a crop uint8 [28, 28]
    crops -> the network's logits [N, 10], which the caller computes
    lattice, logits -> `read`: the path of least penalty, its digits and their confidence

A path's penalty is the sum of its candidates' penalties, and candidates of different widths must be comparable: two
halves of a zero must not beat the zero. A candidate of class c costs -log p(c | crop) plus a rejection, which is the
negative log-odds that the crop is one whole digit. The sum over a path is then, up to a constant that all paths share,
-log P(these runs are digits and no others are), for any number of runs.

Deviation: the network was trained on digits alone, so the rejection, which the paper takes from a garbage class, comes
from the size of the logits, the crop's measures and the ink that its cuts cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.digit_segmentation import Box, Doubles, Lattice

Arcs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Penalties:
    """The weights of a candidate's rejection; a positive weight reduces it.

    `energy` weighs the log-sum-exp of the logits at the card's temperature: a network trained on digits alone gives
    small logits for other images. `height` and `width` weigh squares, `crossed` the measure itself, and `classes` the
    probability of each digit (parts of digits look like 1, 2, 3 and 5).
    """

    energy: float
    height: float
    width: float
    crossed: float
    classes: tuple[float, ...]


# For lenet5-mnist, by the paper's discriminative forward training (section VI) of these constants alone: they minimise
# the mean of -log P(string | image) over strings of MNIST training digits; benchmarks/models/digit_strings.py --fit.
PENALTIES = Penalties(
    energy=0.61,
    height=2.68,
    width=-2.18,
    crossed=-5.11,
    classes=(-2.9, -5.29, -5.91, -6.41, -4.47, -5.15, -4.1, -4.43, -3.97, -2.36),
)


@dataclass(frozen=True)
class DecodedDigit:
    """A digit of a reading: its class 0..9, the softmax's confidence in it, and its box (see `Candidate`)."""

    class_id: int
    confidence: float
    box: Box


@dataclass(frozen=True)
class DigitReading:
    """The digits from left to right, their path through the lattice as indices of its candidates, and its penalty.

    `confidence` is the probability of the string among all readings of the lattice, over all segmentations, 0..1.
    """

    digits: tuple[DecodedDigit, ...]
    path: tuple[int, ...]
    penalty: float
    confidence: float

    @property
    def text(self) -> str:
        """The digits as a string."""
        return "".join(str(digit.class_id) for digit in self.digits)


def rejection_features(lattice: Lattice, scores: Tensor) -> Doubles:
    """The features that `Penalties` weighs, in the order of its fields: logits at the temperature [N, 10] -> [N, 14].

    The last ten are the probabilities of the classes.
    """
    measures = np.array([(c.height**2, c.width**2, c.crossed) for c in lattice.candidates]).reshape(-1, 3)
    energies, probabilities = scores.logsumexp(dim=1, keepdim=True), scores.softmax(dim=1)
    return np.concatenate([energies.numpy(), measures, probabilities.numpy()], axis=1)


def read(lattice: Lattice, logits: Tensor, temperature: float = 1.0, penalties: Penalties = PENALTIES) -> DigitReading:
    """The most probable string of digits in the lattice; an empty string for a lattice of no segments.

    `logits` are the network's for the crops, [candidates, 10], class i for digit i; `temperature` is its card's.

    Raises:
        ValueError: logits have another shape or are not finite, or the temperature is not above zero.
    """
    count = len(lattice.candidates)
    if tuple(logits.shape) != (count, 10) or not torch.isfinite(logits).all() or not temperature > 0:
        raise ValueError(f"expected finite logits [{count}, 10] and a temperature > 0, got {list(logits.shape)}")
    scores = logits.detach().cpu().double() / temperature
    weights = (penalties.energy, penalties.height, penalties.width, penalties.crossed, *penalties.classes)
    rejection = -rejection_features(lattice, scores) @ np.array(weights)
    surprise: Doubles = -scores.log_softmax(dim=1).numpy()  # [N, 10]
    nodes, arcs = lattice.segments + 1, [(c.start, c.stop) for c in lattice.candidates]
    costs: Doubles = rejection + surprise.min(axis=1, initial=np.inf)
    path = viterbi(nodes, arcs, costs)
    classes = [int(surprise[index].argmin()) for index in path]
    # A candidate's probabilities sum to 1, so the sum over all readings is a sum over all paths.
    all_readings = forward(nodes, arcs, rejection)
    this_reading = forward_along(nodes, arcs, rejection[:, None] + surprise[:, classes])
    digits = [
        DecodedDigit(label, float(np.exp(-surprise[index, label])), lattice.candidates[index].box)
        for index, label in zip(path, classes, strict=True)
    ]
    confidence = float(np.exp(min(all_readings - this_reading, 0.0)))
    return DigitReading(tuple(digits), tuple(path), float(costs[path].sum()), confidence)


def viterbi(nodes: int, arcs: Arcs, costs: Doubles) -> list[int]:
    """The cheapest path from node 0 to node `nodes` - 1, as indices of its arcs in order.

    `arcs` are (start, stop) with 0 <= start < stop < `nodes`, sorted by `start`; there is a path of them. `costs` is
    [arcs], finite, of either sign. With one node the path is empty.
    """
    best, last = np.full(nodes, np.inf), np.full(nodes, -1)
    best[0] = 0.0
    for index, (start, stop) in enumerate(arcs):
        if best[start] + costs[index] < best[stop]:
            best[stop], last[stop] = best[start] + costs[index], index
    path: list[int] = []
    node = nodes - 1
    while node:
        path.append(int(last[node]))
        node = arcs[path[-1]][0]
    return path[::-1]


def forward(nodes: int, arcs: Arcs, costs: Doubles) -> float:
    """The paper's forward penalty: -log of the sum over all paths of exp(-cost). Arguments: see `viterbi`."""
    total = np.full(nodes, -np.inf)  # log of the sum over the paths that end here
    total[0] = 0.0
    for index, (start, stop) in enumerate(arcs):
        total[stop] = np.logaddexp(total[stop], total[start] - costs[index])
    return -float(total[-1])


def forward_along(nodes: int, arcs: Arcs, costs: Doubles) -> float:
    """`forward` over the paths of exactly K arcs; column k of `costs` [arcs, K] holds the costs of the k-th arc."""
    total = np.full((nodes, costs.shape[1] + 1), -np.inf)  # [node, arcs so far]
    total[0, 0] = 0.0
    for index, (start, stop) in enumerate(arcs):
        total[stop, 1:] = np.logaddexp(total[stop, 1:], total[start, :-1] - costs[index])
    return -float(total[-1, -1])
