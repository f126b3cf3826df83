"""Verification and identification figures against scikit-learn and against plain loops over all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from models.bootstrap import resampled
from training.metrics.verification import (
    Scores,
    accuracy_over_folds,
    best_threshold,
    cross_validated_accuracy,
    fmr_interval,
    open_set,
    reliability,
)

# Few distinct values, so that ties are common.
PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)


def arrays(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    values, same = zip(*pairs, strict=True)
    return np.array(values, float), np.array(same)


@settings(deadline=None)
@given(PAIRS)
def test_rates_and_curve_agree_with_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    values, same = arrays(pairs)
    scores = Scores.of(values, same)
    false_positives, true_positives, thresholds = roc_curve(same, values, drop_intermediate=False)
    for fmr, tar, threshold in zip(false_positives, true_positives, thresholds, strict=True):
        assert scores.fmr(threshold) == pytest.approx(fmr)
        assert 1 - scores.fnmr(threshold) == pytest.approx(tar)
    # Their curve begins above all similarities, where nothing is accepted.
    fmrs, fnmrs = scores.curve()
    assert fmrs == pytest.approx(false_positives[:0:-1])
    assert 1 - fnmrs == pytest.approx(true_positives[:0:-1])


@settings(deadline=None)
@given(PAIRS, st.floats(0, 1))
def test_threshold_is_the_lowest_with_the_stated_fmr(pairs: list[tuple[int, bool]], promise: float) -> None:
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
def test_best_threshold_has_the_most_correct_decisions(pairs: list[tuple[int, bool]]) -> None:
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


@pytest.mark.parametrize(
    ("values", "same"), [([], []), ([1.0], [True]), ([1.0, 2.0], [True, True]), ([1.0, np.nan], [True, False])]
)
def test_pairs_of_one_kind_are_refused(values: list[float], same: list[bool]) -> None:
    with pytest.raises(ValueError, match="mated and non-mated"):
        Scores.of(values, same)


def test_each_fold_uses_the_best_threshold_of_the_others() -> None:
    random = np.random.default_rng(2)
    same = np.arange(120) % 2 == 0
    values = random.normal(same * 1.5, 1)
    fold = random.integers(3, 7, 120)
    expected = [
        np.mean((values[fold == k] >= best_threshold(values[fold != k], same[fold != k])) == same[fold == k])
        for k in (3, 4, 5, 6)
    ]
    mean, error = accuracy_over_folds(values, same, fold)
    assert mean == pytest.approx(np.mean(expected))
    assert error == pytest.approx(np.std(expected, ddof=1) / 2)
    # Mated and non-mated pairs alternate, and each kind is assigned to the folds in turn.
    in_turn = np.arange(120) // 2 % 10
    assert cross_validated_accuracy(values, same) == accuracy_over_folds(values, same, in_turn)
    with pytest.raises(ValueError, match="at least two folds"):
        accuracy_over_folds(values, same, np.zeros(120, np.int64))
    with pytest.raises(ValueError, match="10 folds"):
        cross_validated_accuracy(np.arange(12.0), np.arange(12) < 4)


def people_and_pairs() -> np.ndarray:
    """All pairs of the identities 10, 20, .. 80, each also with itself: [36, 2]."""
    first, second = np.triu_indices(8)
    return 10 * np.stack([first + 1, second + 1], axis=1)


def test_people_are_resampled_and_pairs_follow() -> None:
    pairs = people_and_pairs()
    mated = pairs[:, 0] == pairs[:, 1]
    total = np.zeros(len(pairs))
    for weight in resampled(pairs, 4000, np.random.default_rng(1)):
        # A mated pair tells how often its person was drawn.
        count = dict(zip(pairs[mated, 0].tolist(), weight[mated].tolist(), strict=True))
        assert sum(count.values()) == 8
        assert weight[~mated].tolist() == [count[a] * count[b] for a, b in pairs[~mated].tolist()]
        total += weight
    assert total[mated] / 4000 == pytest.approx(1, abs=0.1)
    assert total[~mated] / 4000 == pytest.approx(1 - 1 / 8, abs=0.1)  # E[count_a count_b] of a multinomial


def test_interval_matches_the_spread_over_other_people() -> None:
    first, second = np.triu_indices(60, 1)
    identities = np.stack([first, second], axis=1)

    def accepted(random: np.random.Generator) -> np.ndarray:
        """Some people look like many others."""
        common = random.normal(0, 1, 60)
        return np.asarray(common[first] + common[second] + random.normal(0, 1, len(first)) > 2.5)

    random = np.random.default_rng(3)
    scatter = np.std([accepted(random).mean() for _ in range(500)])
    widths = []
    for _ in range(20):
        result = accepted(random)
        low, high = fmr_interval(result, identities, draws=300)
        assert low < result.mean() < high
        widths.append(high - low)
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(scatter, rel=0.2)
    # Drawing pairs instead would say that the figure is much surer than it is.
    assert np.sqrt(0.08 * 0.92 / len(first)) < 0.5 * scatter


def test_interval_for_two_people() -> None:
    # Half of the draws hold one person alone, and so no non-mated pair.
    assert fmr_interval(np.array([True, False]), np.array([[0, 1], [1, 0]]), draws=20) == (0.5, 0.5)


def some_pairs(seed: int, mated: int, impostor: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, a few 0 and 1 among them, and identities of their pairs."""
    random = np.random.default_rng(seed)
    probabilities = np.concatenate([random.beta(3, 1, mated - 1), [1.0], random.beta(1, 2, impostor - 1), [0.0]])
    people = random.integers(0, 30, mated)
    strangers = random.integers(0, 30, impostor)
    identities = np.concatenate(
        [np.stack([people, people], axis=1), np.stack([strangers, strangers + random.integers(1, 9, impostor)], axis=1)]
    )
    return probabilities, identities


@pytest.mark.parametrize(
    ("mated", "impostor", "prior", "repeat"),
    # 200 mated pairs at the prior 1/10 weigh as if there were nine strangers' pairs for each, and there are two.
    [(300, 700, 0.3, (1, 1)), (200, 400, 0.1, (2, 9))],
)
def test_reliability_agrees_with_scikit_learn(mated: int, impostor: int, prior: float, repeat: tuple[int, int]) -> None:
    probabilities, identities = some_pairs(4, mated, impostor)
    same = identities[:, 0] == identities[:, 1]
    curve = reliability(probabilities, identities, prior)
    copies = np.where(same, *repeat)
    observed, predicted = calibration_curve(same.repeat(copies), probabilities.repeat(copies), n_bins=10)
    assert curve.observed == pytest.approx(observed)
    assert curve.predicted == pytest.approx(predicted)
    assert curve.weight.sum() == pytest.approx(1)
    assert (curve.low <= curve.observed).all()
    assert (curve.observed <= curve.high).all()
    assert curve.error == pytest.approx(np.sum(curve.weight * abs(observed - predicted)))


def test_empty_bins_are_left_out() -> None:
    curve = reliability(np.array([0.04, 0.06, 0.97]), np.array([[0, 1], [0, 0], [2, 2]]), prior=0.5, draws=50)
    assert curve.predicted == pytest.approx([(0.5 * 0.04 + 0.25 * 0.06) / 0.75, 0.97])
    assert curve.observed == pytest.approx([1 / 3, 1])
    assert curve.weight == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize("identities", [[[0, 1]], [[2, 2]]])
def test_one_kind_of_pairs_has_no_reliability(identities: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="mated and non-mated"):
        reliability(np.array([0.5]), np.array(identities), prior=0.5)


SEARCHES = st.integers(1, 4).flatmap(
    lambda gallery: st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=gallery, max_size=gallery), st.integers(-1, gallery - 1)),
        min_size=2,
        max_size=20,
    ).filter(lambda searches: len({mate >= 0 for _, mate in searches}) == 2)
)


@settings(deadline=None)
@given(SEARCHES, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]))
def test_open_set_figures_are_those_of_a_plain_loop(searches: list[tuple[list[int], int]], fpir: float) -> None:
    similarities, mates = np.array([row for row, _ in searches], float), np.array([mate for _, mate in searches])
    scores = open_set(similarities, mates)
    rates = []
    for threshold in range(-3, 5):
        alarms = [max(row) >= threshold for row, mate in searches if mate < 0]
        misses = [
            row[mate] < threshold or any(value >= row[mate] for place, value in enumerate(row) if place != mate)
            for row, mate in searches
            if mate >= 0
        ]
        rates.append((np.mean(alarms), np.mean(misses)))
        assert (scores.fmr(threshold), scores.fnmr(threshold)) == pytest.approx(rates[-1])
    assert 1 - scores.tar(fpir) == pytest.approx(min(miss for alarm, miss in rates if alarm <= fpir))


@pytest.mark.parametrize("mates", [[0, 0], [-1, -1]])
def test_open_set_needs_both_kinds_of_searches(mates: list[int]) -> None:
    with pytest.raises(ValueError, match="mated and non-mated searches"):
        open_set(np.zeros((2, 1)), np.array(mates))
