"""Verification figures against scikit-learn's ROC and against plain loops over all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from training.verification import Scores, best_threshold, cross_validated_accuracy

# Few distinct values, so that ties are common.
PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    values, same = zip(*pairs, strict=True)
    return np.array(values, float), np.array(same)


@settings(deadline=None)
@given(PAIRS)
def test_rates_are_those_of_scikit_learns_curve(pairs: list[tuple[int, bool]]) -> None:
    values, same = arrays(pairs)
    scores = Scores.of(values, same)
    false_positives, true_positives, thresholds = roc_curve(same, values, drop_intermediate=False)
    for fmr, tar, threshold in zip(false_positives, true_positives, thresholds, strict=True):
        assert scores.fmr(threshold) == pytest.approx(fmr)
        assert 1 - scores.fnmr(threshold) == pytest.approx(tar)


@settings(deadline=None)
@given(PAIRS, st.floats(0, 1))
def test_the_threshold_keeps_its_promise_and_accepts_no_fewer_than_it_may(
    pairs: list[tuple[int, bool]], promise: float
) -> None:
    values, same = arrays(pairs)
    scores = Scores.of(values, same)
    threshold = scores.threshold_at(promise)
    assert scores.fmr(threshold) <= promise + 1e-8
    # Of all thresholds that keep the promise none accepts more mated pairs.
    candidates = [float(value) for value in values] + [9.0]
    kept = [candidate for candidate in candidates if scores.fmr(candidate) <= promise]
    assert scores.tar(promise) >= max(np.mean(values[same] >= candidate) for candidate in kept) - 1e-12


@settings(deadline=None)
@given(PAIRS)
def test_no_threshold_decides_more_pairs_rightly(pairs: list[tuple[int, bool]]) -> None:
    values, same = arrays(pairs)
    ours = np.mean((values >= best_threshold(values, same)) == same)
    assert ours == max(np.mean((values >= t) == same) for t in np.arange(-3.5, 4, 0.5))


def test_the_equal_error_rate_of_two_normal_distributions() -> None:
    # N(0, 1) against N(2, 1): both errors are Phi(-1) at threshold 1.
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(2, 1, 20_000), random.normal(0, 1, 20_000)])
    scores = Scores.of(values, np.arange(40_000) < 20_000)
    assert scores.eer() == pytest.approx(0.158655, abs=0.005)
    assert scores.tar(0.01) == pytest.approx(0.372, abs=0.02)  # 1 - Phi(2.326 - 2)


def test_folds_are_decided_by_the_others() -> None:
    random = np.random.default_rng(1)
    same = np.arange(200) % 2 == 0
    values = random.normal(same * 1.5, 1)
    mean, error = cross_validated_accuracy(values, same)
    place = np.arange(200) // 2 % 10  # mated and non-mated pairs alternate, and each kind is dealt out in turn
    expected = [
        np.mean((values[place == k] >= best_threshold(values[place != k], same[place != k])) == same[place == k])
        for k in range(10)
    ]
    assert mean == pytest.approx(np.mean(expected))
    assert error == pytest.approx(np.std(expected, ddof=1) / 10**0.5)


@pytest.mark.parametrize(
    ("values", "same"), [([], []), ([1.0], [True]), ([1.0, 2.0], [True, True]), ([1.0, np.nan], [True, False])]
)
def test_pairs_that_say_nothing_are_refused(values: list[float], same: list[bool]) -> None:
    with pytest.raises(ValueError, match="mated and non-mated"):
        Scores.of(values, same)


def test_too_few_pairs_for_the_folds() -> None:
    with pytest.raises(ValueError, match="10 folds"):
        cross_validated_accuracy(np.arange(12.0), np.arange(12) < 4)
