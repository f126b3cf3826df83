"""Energies against an independent library, and thresholds against counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from pytorch_ood.detector import EnergyBased

from models.rejection import MIN_IMAGES, SHARES, Rejection, energies, fit_rejection


def logits(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 5, (count, 10))


def test_energy_is_that_of_an_independent_library() -> None:
    rows = np.concatenate([logits(200), [[800.0] * 10, [-800.0] * 10]])  # a plain exp overflows
    expected = EnergyBased.score(torch.from_numpy(rows), t=1)
    np.testing.assert_allclose(energies(rows), expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(energies(rows.astype(np.float32)), expected.numpy(), rtol=1e-6)


def test_the_stated_share_of_images_has_a_higher_energy() -> None:
    fitted, fresh = fit_rejection(logits(20_000), "x"), energies(logits(20_000, seed=1))
    for share in (*SHARES, 0.04, 0.25):
        error = 4 * math.sqrt(2 * share / 20_000)
        assert np.mean(fresh > fitted.threshold(share)) == pytest.approx(share, abs=error)
    assert (fitted.images, fitted.data) == (20_000, "x")
    assert Rejection.model_validate_json(fitted.model_dump_json()) == fitted


@pytest.mark.parametrize("share", [0.0, 0.0009, 0.51, math.nan])
def test_shares_beyond_the_calibration_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="within"):
        fit_rejection(logits(MIN_IMAGES), "x").threshold(share)


def test_too_few_images_and_infinite_logits_are_refused() -> None:
    for rows in (logits(MIN_IMAGES - 1), np.full((MIN_IMAGES, 10), np.inf)):
        with pytest.raises(ValueError, match=f"at least {MIN_IMAGES} images"):
            fit_rejection(rows, "x")


def test_quantiles_out_of_order_are_refused() -> None:
    document = fit_rejection(logits(MIN_IMAGES), "x").model_dump()
    quantiles = document["quantiles"]
    for changed, message in ((quantiles[::-1], "fall in share"), (quantiles[:-1], "must reach from")):
        with pytest.raises(ValidationError, match=message):
            Rejection.model_validate(document | {"quantiles": changed})
