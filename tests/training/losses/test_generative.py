"""The ELBO and the distances against torch.distributions, Monte Carlo, scikit-image and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from training.losses.generative import (
    Distance,
    distance,
    elbo,
    kl_to_prior,
    log_likelihood,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10**6), st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_kl_agrees_with_torch_distributions(seed: int, spread: float) -> None:
    mean, log_variance = spread * drawn(5, 7, seed=seed), spread * drawn(5, 7, seed=seed + 1)
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), standard).sum(dim=1)
    torch.testing.assert_close(kl_to_prior(mean, log_variance), expected, rtol=1e-10, atol=1e-10)


def test_likelihoods_agree_with_torch_distributions() -> None:
    logits, scale = 2 * drawn(3, 2, 4, 4), torch.tensor(-1.3, dtype=torch.float64)
    black_or_white = (drawn(3, 2, 4, 4, seed=1) > 0).double()
    expected = Bernoulli(logits=logits).log_prob(black_or_white).sum(dim=(1, 2, 3))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_likelihood(logits, black_or_white), expected, rtol=1e-10, atol=0)
    greys = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    expected = Normal(logits.sigmoid(), scale.exp()).log_prob(greys).sum(dim=(1, 2, 3))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_likelihood(logits, greys, scale), expected, rtol=1e-10, atol=0)


def test_grey_is_a_share_of_white() -> None:
    logits, grey = drawn(1, 1, 2, 2), torch.rand(1, 1, 2, 2, dtype=torch.float64)
    total = 0.0
    for number in range(16):
        image = torch.tensor([number >> bit & 1 for bit in range(4)], dtype=torch.float64).view(1, 1, 2, 2)
        chance = torch.where(image == 1, grey, 1 - grey).prod()
        total += float(chance * Bernoulli(logits=logits).log_prob(image).sum())  # type: ignore[no-untyped-call]
    assert float(log_likelihood(logits, grey)) == pytest.approx(total, rel=1e-10)


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, images = drawn(2, 1, 4, 4).bfloat16(), torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(log_likelihood(logits, images), log_likelihood(logits.float(), images), rtol=0, atol=0)


def test_beta_weighs_only_the_kl_term() -> None:
    likelihood, kl = drawn(4), drawn(4, seed=1).abs()
    torch.testing.assert_close(elbo(likelihood, kl, 0.25), likelihood - kl / 4)
    torch.testing.assert_close(elbo(likelihood, kl, torch.tensor(3.0)), likelihood - kl - kl - kl)


@pytest.mark.parametrize("kind", ["l1", "mse", "psnr"])
def test_distances_agree_with_a_loop(kind: Distance) -> None:
    outputs, targets = drawn(3, 1, 2, 2), drawn(3, 1, 2, 2, seed=1)
    sums = []
    for item, other in zip(outputs.flatten(1).tolist(), targets.flatten(1).tolist(), strict=True):
        square = sum((a - b) ** 2 for a, b in zip(item, other, strict=True)) / 4
        absolute = sum(abs(a - b) for a, b in zip(item, other, strict=True)) / 4
        sums.append({"l1": absolute, "mse": square, "psnr": 10 * math.log10(square)}[kind])
    assert float(distance(outputs, targets, kind)) == pytest.approx(sum(sums) / 3)
    assert distance(outputs.bfloat16(), targets.float(), kind).dtype == torch.float32


def test_psnr_gradient_is_the_same_for_each_image() -> None:
    targets = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    outputs = torch.stack([torch.full((1, 4, 4), 0.01), torch.full((1, 4, 4), 0.5)]).double().requires_grad_()
    distance(outputs, targets, "psnr").backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    relative = (outputs.grad * outputs.detach()).sum(dim=(1, 2, 3))
    assert relative[0] == pytest.approx(relative[1])
