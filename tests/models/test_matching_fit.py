"""The fit of thresholds and probabilities, against counting, scikit-learn and known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import genpareto, norm  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression

from models.matching import Matching, OperatingPoint, Tail
from models.matching_fit import Floats, fit_matching

# Similarities of non-mated pairs N(0, 0.1), of mated pairs N(0.5, 0.15).
IMPOSTORS = norm(0, 0.1)


def similarities(impostors: int = 100_000) -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    return random.normal(0.5, 0.15, 5_000), np.asarray(IMPOSTORS.rvs(impostors, random_state=random))


@pytest.fixture(scope="module")
def matching() -> Matching:
    return fit_matching(*similarities(), "a test")


@pytest.mark.parametrize("fmr", [0.1, 0.03, 0.01, 0.003, 0.001, 0.0002])
def test_counted_thresholds_hold_on_other_pairs(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert not threshold.extrapolated
    # Three standard errors for as many pairs as were counted.
    assert IMPOSTORS.sf(threshold.similarity) == pytest.approx(fmr, rel=3 / (fmr * 100_000) ** 0.5)


@pytest.mark.parametrize("fmr", [5e-5, 1e-5, 1e-6])
def test_extrapolated_thresholds_are_marked_and_of_the_right_magnitude(matching: Matching, fmr: float) -> None:
    threshold = matching.threshold(fmr)
    assert threshold.extrapolated
    assert fmr / 10 < IMPOSTORS.sf(threshold.similarity) < 10 * fmr


def test_ten_false_matches_are_counted_at_least_and_thresholds_rise_as_the_rate_falls(matching: Matching) -> None:
    assert matching.counted == pytest.approx(1e-4)
    _, impostors = similarities()
    for point in matching.points:
        assert (impostors >= point.similarity).mean() <= point.fmr
    rates = np.logspace(-1, -8, 200)
    assert (np.diff([matching.threshold(rate).similarity for rate in rates]) >= 0).all()


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3])
def test_tail_agrees_with_scipy(shape: float) -> None:
    tail = Tail(start=0.2, rate=0.02, shape=shape, scale=0.05)
    for similarity in (0.2, 0.23, 0.4, 0.44):
        expected = 0.02 * genpareto.sf(similarity - 0.2, shape, scale=0.05)
        assert tail.fmr(similarity) == pytest.approx(expected)
        assert tail.similarity(expected) == pytest.approx(similarity)
    if shape < 0:  # the tail ends at start - scale / shape
        assert tail.fmr(0.46) == 0.0


def test_probability_agrees_with_scikit_learn(matching: Matching) -> None:
    mated, impostors = similarities()
    values = np.concatenate([mated, impostors])[:, None]
    same = np.repeat([1, 0], [len(mated), len(impostors)])
    model = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-8).fit(values, same)
    for similarity in (-0.1, 0.1, 0.2, 0.3, 0.5):
        expected = model.predict_proba([[similarity]])[0, 1]
        assert matching.probability(similarity) == pytest.approx(expected, abs=0.005)


def test_a_lower_prior_lowers_the_probability(matching: Matching) -> None:
    rare = fit_matching(*similarities(), "a test", prior=0.01)
    assert rare.probability(0.25) < matching.probability(0.25)
    assert 0 <= rare.probability(-50) < 1e-6
    assert rare.probability(50) == pytest.approx(1)


def test_slope_is_finite_if_pairs_do_not_overlap() -> None:
    matching = fit_matching(np.linspace(0.8, 0.9, 100), np.linspace(-0.2, 0.2, 2_000), "a test")
    assert matching.probability(0.85) > 0.99
    assert matching.probability(0.1) < 0.01


def test_pairs_that_cannot_be_calibrated_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 non-mated pairs"):
        fit_matching(*similarities(impostors=999), "a test")
    with pytest.raises(ValueError, match="not more similar"):
        fit_matching(np.linspace(-1, 0, 500), np.linspace(0, 1, 2_000), "a test")
    with pytest.raises(ValueError, match="all similarities are equal"):
        fit_matching(np.ones(2), np.ones(2_000), "a test")


@pytest.mark.parametrize("fmr", [0.0, -1.0, 0.2, float("nan")])
def test_rates_out_of_range_are_refused(matching: Matching, fmr: float) -> None:
    with pytest.raises(ValueError, match="false match rate"):
        matching.threshold(fmr)


def test_points_out_of_order_are_refused(matching: Matching) -> None:
    points = [OperatingPoint(fmr=0.01, similarity=0.3), OperatingPoint(fmr=0.1, similarity=0.2)]
    with pytest.raises(ValidationError, match="fall in FMR"):
        Matching.model_validate(matching.model_dump() | {"points": [point.model_dump() for point in points]})
