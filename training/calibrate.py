"""Fit `models.matching.Matching` to the similarities of a calibration split, whose identities are in no other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, log_expit, logit  # type: ignore[import-untyped]
from scipy.stats import genpareto  # type: ignore[import-untyped]

from models.matching import Matching, OperatingPoint, Tail
from training.verification import Scores

Floats = npt.NDArray[np.float64]

RATES = tuple(m * 10.0**-e for e in range(1, 8) for m in (1.0, 0.5, 0.2))
# A rate is counted when this many strangers reach its threshold: their number is then known to about a third.
FEWEST = 10
FEWEST_IMPOSTORS = 1000
# The share of strangers whose similarities the tail is fitted to.
TAIL = 0.02


def fit_matching(scores: Scores, data: str, prior: float = 0.5) -> Matching:
    """Thresholds, impostor tail and probability, from the mated and the non-mated pairs of `data`.

    Raises:
        ValueError: fewer than `FEWEST_IMPOSTORS` non-mated pairs, or similarities that tell nothing apart.
    """
    count = len(scores.impostor)
    if count < FEWEST_IMPOSTORS:
        raise ValueError(f"calibration needs {FEWEST_IMPOSTORS} non-mated pairs or more, got {count}")
    counted = [rate for rate in RATES if rate * count >= FEWEST]
    points = [OperatingPoint(fmr=rate, similarity=scores.threshold_at(rate)) for rate in counted]
    slope, intercept = _logistic(scores, prior)
    return Matching(
        points=tuple(points),
        tail=_tail(scores.impostor),
        slope=slope,
        intercept=intercept,
        prior=prior,
        impostors=count,
        data=data,
    )


def _tail(impostor: Floats) -> Tail:
    start = float(np.quantile(impostor, 1 - TAIL))
    excesses = impostor[impostor > start] - start
    shape, _, scale = genpareto.fit(excesses, floc=0)
    return Tail(start=start, rate=len(excesses) / len(impostor), shape=float(shape), scale=float(scale))


def _logistic(scores: Scores, prior: float) -> tuple[float, float]:
    """Slope and intercept of the most likely logistic curve, mated pairs weighing `prior` and the others the rest."""
    values = np.concatenate([scores.mated, scores.impostor])
    sign = np.repeat([1.0, -1.0], [len(scores.mated), len(scores.impostor)])
    weight = np.where(sign > 0, prior / len(scores.mated), (1 - prior) / len(scores.impostor))
    centre, spread = values.mean(), values.std()
    if not spread:
        raise ValueError("all similarities are equal")
    scaled = (values - centre) / spread

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = sign * (x[0] * scaled + x[1])
        pull = -weight * sign * expit(-margin)
        # A slight pull to zero keeps the slope finite where the pairs do not overlap.
        gradient = np.array([pull @ scaled, pull.sum()]) + 1e-6 * x * np.array([1.0, 0.0])
        return float(-weight @ log_expit(margin) + 0.5e-6 * x[0] ** 2), gradient

    best = minimize(loss, np.array([1.0, float(logit(prior))]), jac=True, method="BFGS").x
    if best[0] <= 0:
        raise ValueError("mated pairs are not more alike than others")
    return float(best[0] / spread), float(best[1] - best[0] * centre / spread)
