"""Fit an embedder's thresholds, impostor tail and match probability (`models.matching.Matching`) to compared pairs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, log_expit, logit  # type: ignore[import-untyped]

from models.matching import Matching, OperatingPoint, Tail

Floats = npt.NDArray[np.float64]

# False match rates at which a threshold is stored, if the pairs suffice.
RATES = tuple(m * 10.0**-e for e in range(1, 8) for m in (1.0, 0.5, 0.2))
# A rate is stored if at least this many non-mated pairs reach its threshold: its relative error is then about a third.
MIN_FALSE_MATCHES = 10
MIN_IMPOSTORS = 1000
# The share of non-mated pairs, the most similar, to which the tail is fitted.
TAIL_SHARE = 0.02


def lowest_threshold(impostors: Floats, fmr: float) -> float:
    """Return the lowest threshold that at most a share `fmr` (0..1) of `impostors`, ascending, reaches.

    -inf if all pairs may reach it; +inf if even the pairs with the highest similarity are too many.
    """
    allowed = int(fmr * len(impostors) + 1e-9)
    if allowed >= len(impostors):
        return -np.inf
    # Just above the highest similarity that must be rejected, so that equal similarities are rejected, too.
    return float(np.nextafter(impostors[len(impostors) - 1 - allowed], np.inf))


def fit_matching(mated: Floats, impostors: Floats, data: str, prior: float = 0.5) -> Matching:
    """Return thresholds, impostor tail and match probability for the similarities of mated and of non-mated pairs.

    `data` describes the pairs; `prior` is the share of mated pairs among those that will be compared, 0..1.

    Raises:
        ValueError: fewer than `MIN_IMPOSTORS` non-mated pairs, or mated pairs are not more similar than others.
    """
    mated, impostors = np.sort(mated), np.sort(impostors)
    points = fit_points(impostors)
    slope, intercept = fit_logistic(mated, impostors, prior)
    return Matching(
        points=points,
        tail=fit_tail(impostors),
        slope=slope,
        intercept=intercept,
        prior=prior,
        impostors=len(impostors),
        data=data,
    )


def fit_points(impostors: Floats) -> tuple[OperatingPoint, ...]:
    """Return the thresholds at the rates that can be counted with these similarities of non-mated pairs, ascending.

    Raises:
        ValueError: fewer than `MIN_IMPOSTORS` pairs.
    """
    count = len(impostors)
    if count < MIN_IMPOSTORS:
        raise ValueError(f"calibration needs {MIN_IMPOSTORS} non-mated pairs or more, got {count}")
    rates = [rate for rate in RATES if rate * count >= MIN_FALSE_MATCHES]
    return tuple(OperatingPoint(fmr=rate, similarity=lowest_threshold(impostors, rate)) for rate in rates)


def fit_tail(impostors: Floats) -> Tail:
    """Fit a generalised Pareto distribution to the ascending similarities above the (1 - TAIL_SHARE) quantile."""
    from scipy.stats import genpareto  # type: ignore[import-untyped]  # 0.3 s, which only a calibration needs

    start = float(np.quantile(impostors, 1 - TAIL_SHARE))
    excesses = impostors[impostors > start] - start
    shape, _, scale = genpareto.fit(excesses, floc=0)
    return Tail(start=start, rate=len(excesses) / len(impostors), shape=float(shape), scale=float(scale))


def fit_logistic(mated: Floats, impostors: Floats, prior: float) -> tuple[float, float]:
    """Return slope and intercept of the maximum-likelihood logistic curve; mated pairs have the total weight `prior`.

    Raises:
        ValueError: all similarities are equal, or mated pairs are not more similar than others.
    """
    values = np.concatenate([mated, impostors])
    sign = np.repeat([1.0, -1.0], [len(mated), len(impostors)])
    weight = np.where(sign > 0, prior / len(mated), (1 - prior) / len(impostors))
    centre, spread = values.mean(), values.std()
    if not spread:
        raise ValueError("all similarities are equal")
    scaled = (values - centre) / spread

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = sign * (x[0] * scaled + x[1])
        residual = -weight * sign * expit(-margin)
        # A small L2 penalty keeps the slope finite where the two kinds of pairs do not overlap.
        gradient = np.array([residual @ scaled, residual.sum()]) + 1e-6 * x * np.array([1.0, 0.0])
        return float(-weight @ log_expit(margin) + 0.5e-6 * x[0] ** 2), gradient

    best = minimize(loss, np.array([1.0, float(logit(prior))]), jac=True, method="BFGS").x
    if best[0] <= 0:
        raise ValueError("mated pairs are not more similar than others")
    return float(best[0] / spread), float(best[1] - best[0] * centre / spread)
