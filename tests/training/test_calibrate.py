"""Thresholds and probabilities against counting, against scikit-learn, and against distributions that are known."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import genpareto, norm  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression

from models.matching import Matching, OperatingPoint, Tail
from training.calibrate import fit_matching
from training.verification import Scores

# Similarities of strangers N(0, 0.1), of one person N(0.5, 0.15).
STRANGERS = norm(0, 0.1)


def scores(impostors: int = 100_000, seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    return Scores(np.sort(random.normal(0.5, 0.15, 5_000)), np.sort(STRANGERS.rvs(impostors, random_state=random)))


@pytest.fixture(scope="module")
def matching() -> Matching:
    return fit_matching(scores(), "made up")


@pytest.mark.parametrize("fmr", [0.1, 0.03, 0.01, 0.003, 0.001, 0.0002])
def test_counted_thresholds_hold_on_other_pairs(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert not threshold.extrapolated
    # Three standard errors of as many strangers as were counted.
    assert STRANGERS.sf(threshold.similarity) == pytest.approx(fmr, rel=3 / (fmr * 100_000) ** 0.5)


@pytest.mark.parametrize("fmr", [5e-5, 1e-5, 1e-6])
def test_beyond_what_was_counted_it_says_so_and_keeps_the_order_of_magnitude(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert threshold.extrapolated
    assert fmr / 10 < STRANGERS.sf(threshold.similarity) < 10 * fmr


def test_what_was_counted_is_at_least_ten_strangers(matching: Matching) -> None:
    assert matching.counted == pytest.approx(1e-4)
    for point in matching.points:
        assert (scores().impostor >= point.similarity).mean() <= point.fmr


def test_the_threshold_rises_as_the_rate_falls(matching: Matching) -> None:
    rates = np.logspace(-1, -8, 200)
    assert (np.diff([matching.threshold(rate).similarity for rate in rates]) >= 0).all()


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_the_tail_is_scipys(shape: float) -> None:
    tail = Tail(start=0.2, rate=0.02, shape=shape, scale=0.05)
    for similarity in (0.2, 0.23, 0.4, 0.44):
        expected = 0.02 * genpareto.sf(similarity - 0.2, shape, scale=0.05)
        assert tail.fmr(similarity) == pytest.approx(expected)
        assert tail.similarity(expected) == pytest.approx(similarity)
    if shape < 0:  # it ends at start - scale / shape
        assert tail.fmr(0.46) == 0.0


def test_the_probability_is_scikit_learns_at_equal_weights(matching: Matching) -> None:
    pairs = scores()
    values = np.concatenate([pairs.mated, pairs.impostor])[:, None]
    same = np.repeat([1, 0], [len(pairs.mated), len(pairs.impostor)])
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8).fit(values, same)
    for similarity in (-0.1, 0.1, 0.2, 0.3, 0.5):
        expected = model.predict_proba([[similarity]])[0, 1]
        assert matching.probability(similarity) == pytest.approx(expected, abs=0.005)


def test_a_rarer_mate_is_less_likely() -> None:
    rare = fit_matching(scores(), "made up", prior=0.01)
    even = fit_matching(scores(), "made up")
    assert rare.probability(0.25) < even.probability(0.25)
    assert 0 <= rare.probability(-50) < 1e-6
    assert rare.probability(50) == pytest.approx(1)


def test_pairs_that_never_overlap_still_give_a_curve() -> None:
    apart = Scores(np.linspace(0.8, 0.9, 100), np.linspace(-0.2, 0.2, 2_000))
    matching = fit_matching(apart, "made up")
    assert matching.probability(0.85) > 0.99
    assert matching.probability(0.1) < 0.01


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(ValueError, match="1000 non-mated pairs"):
        fit_matching(scores(impostors=999), "made up")
    with pytest.raises(ValueError, match="not more alike"):
        fit_matching(Scores(np.linspace(-1, 0, 500), np.linspace(0, 1, 2_000)), "made up")


@pytest.mark.parametrize("fmr", [0.0, -1.0, 0.2, float("nan")])
def test_rates_that_nobody_counted_are_refused(matching: Matching, fmr: float) -> None:
    with pytest.raises(ValueError, match="false match rate"):
        matching.threshold(fmr)


def test_points_out_of_order_are_refused(matching: Matching) -> None:
    points = [OperatingPoint(fmr=0.01, similarity=0.3), OperatingPoint(fmr=0.1, similarity=0.2)]
    with pytest.raises(ValidationError, match="fall in FMR"):
        Matching.model_validate(matching.model_dump() | {"points": [point.model_dump() for point in points]})


def test_it_survives_json(matching: Matching) -> None:
    assert Matching.model_validate_json(matching.model_dump_json()) == matching
