"""Thresholds of a site against counted rates of its own similarities."""

from __future__ import annotations

import numpy as np
import pytest

from models.matching import Matching
from models.matching_fit import fit_matching
from models.site_calibration import (
    ComparedStrangers,
    TooFewStrangersError,
    check_count,
    fit_site,
    shift_passages,
)

RANDOM = np.random.default_rng(0)
MATED = RANDOM.normal(0.7, 0.1, 2000)


def card() -> Matching:
    return fit_matching(MATED, np.random.default_rng(1).normal(0.1, 0.1, 100_000), "the card's data")


def test_thresholds_are_those_of_the_sites_similarities() -> None:
    impostors = RANDOM.normal(0.2, 0.12, 100_000)
    site = fit_site(card(), impostors, "a site")
    for rate in (1e-1, 1e-2, 1e-3):
        assert np.mean(impostors >= site.threshold(rate).similarity) == pytest.approx(rate, rel=0.02)
    assert (site.data, site.impostors, site.prior) == ("a site", 100_000, card().prior)
    assert site.threshold(1e-6).extrapolated


def test_without_mated_pairs_a_match_at_the_threshold_keeps_its_probability() -> None:
    site = fit_site(card(), RANDOM.normal(0.2, 0.12, 100_000), "a site", MATED[:50])
    own = card()
    assert site.slope == own.slope
    for rate in (1e-2, 1e-3):
        before, after = own.threshold(rate).similarity, site.threshold(rate).similarity
        assert after > before
    at_rate = own.probability(own.threshold(1e-3).similarity)
    assert site.probability(site.threshold(1e-3).similarity) == pytest.approx(at_rate)


def test_with_mated_pairs_the_probability_is_fitted() -> None:
    impostors = RANDOM.normal(0.2, 0.12, 100_000)
    mated = RANDOM.normal(0.6, 0.1, 1000)
    site = fit_site(card(), impostors, "a site", mated)
    fitted = fit_matching(mated, impostors, "a site")
    assert (site.slope, site.intercept) == pytest.approx((fitted.slope, fitted.intercept), rel=1e-6)


def test_too_few_comparisons_or_people_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 non-mated pairs"):
        fit_site(card(), RANDOM.normal(size=999), "a site")
    check_count(50)
    with pytest.raises(TooFewStrangersError, match=r"49 people .* 1,000 count an FPIR of 0\.01"):
        check_count(49)


def test_thresholds_for_passages_move_with_those_of_single_faces() -> None:
    own = card()
    passage = fit_matching(MATED, np.random.default_rng(2).normal(0.12, 0.1, 100_000), "2 frames")
    site = fit_site(own, RANDOM.normal(0.2, 0.12, 100_000), "a site")
    (shifted,) = shift_passages((passage,), own, site)
    for rate in (1e-1, 1e-2, 1e-3):
        expected = passage.threshold(rate).similarity + site.threshold(rate).similarity - own.threshold(rate).similarity
        assert shifted.threshold(rate).similarity == pytest.approx(expected)
    similarities = [shifted.threshold(rate).similarity for rate in np.geomspace(0.1, 1e-8, 50)]
    assert similarities == sorted(similarities)
    assert shifted.data == "2 frames; a site"
    assert shift_passages((passage,), own, own)[0].points == passage.points


def test_pairs_of_a_half_have_both_people_in_it() -> None:
    compared = ComparedStrangers(np.arange(4.0), np.array([[0, 1], [0, -3], [2, 1], [2, -1]]))
    half = compared.of_people(np.array([0, 1]))
    assert half.similarities.tolist() == [0, 1]
    assert half.people.tolist() == [[0, 1], [0, -3]]
