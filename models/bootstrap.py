"""Confidence intervals of rates over compared pairs, by a bootstrap over people."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def resampled(people: Indices, draws: int, random: np.random.Generator) -> Iterator[Floats]:
    """Yield bootstrap weights [P] of the pairs, `draws` times: people are drawn with replacement.

    `people` [P, 2] are those of a pair's images. Pairs that share a person are not independent, so people are drawn
    instead of pairs. The weight of a non-mated pair is the product of its two people's counts, that of a mated pair its
    person's count. The vertex bootstrap of Snijders, Borgatti, "Non-Parametric Standard Errors and Tests for Network
    Statistics", Connections 22, 1999.
    """
    names, numbers = np.unique(people, return_inverse=True)
    first, second = numbers.reshape(people.shape).T
    chances = np.full(len(names), 1 / len(names))
    for _ in range(draws):
        count = random.multinomial(len(names), chances).astype(np.float64)
        yield count[first] * np.where(first == second, 1.0, count[second])


def rate_interval(
    events: Flags, people: Indices, random: np.random.Generator, *, draws: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Return the confidence interval (low, high) of the share of pairs with an event, 0..1: percentiles over draws.

    `events` [P]: whether it happened to each pair, such as a false match. `people` [P, 2]: the people of each pair.
    """
    # With very few people a draw may contain only one person, and therefore no pair.
    weights = (weight for weight in resampled(people, draws, random) if weight.any())
    rates = [float(weight @ events / weight.sum()) for weight in weights]
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
