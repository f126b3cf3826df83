"""The adversarial losses against torch's own, against plain loops, and where calculus gives the answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.losses import adversarial as losses

REAL, FAKE = torch.tensor([2.0, -0.5, 0.3, 4.0]), torch.tensor([-1.5, 0.2, -3.0])


@pytest.mark.parametrize("kind", ["minimax", "non-saturating"])
def test_cross_entropy_is_torch_s(kind: losses.Adversarial) -> None:
    bce = F.binary_cross_entropy_with_logits
    expected = bce(REAL, torch.ones(4)) + bce(FAKE, torch.zeros(3))
    torch.testing.assert_close(losses.discriminator_loss(kind, REAL, FAKE), expected)
    sign, target = (-1, torch.zeros(3)) if kind == "minimax" else (1, torch.ones(3))
    torch.testing.assert_close(losses.generator_loss(kind, FAKE), sign * bce(FAKE, target))


def test_hinge_against_a_loop() -> None:
    expected = sum(max(0.0, 1 - s) for s in REAL.tolist()) / 4 + sum(max(0.0, 1 + s) for s in FAKE.tolist()) / 3
    assert losses.discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx(expected)
    assert losses.generator_loss("hinge", FAKE).item() == pytest.approx(4.3 / 3)


def test_wasserstein_is_a_difference_of_means() -> None:
    assert losses.discriminator_loss("wasserstein", REAL, FAKE).item() == pytest.approx(-(5.8 / 4 + 4.3 / 3))
    assert losses.generator_loss("wasserstein", FAKE).item() == pytest.approx(4.3 / 3)
    assert losses.earth_mover(REAL, FAKE).item() == pytest.approx(5.8 / 4 + 4.3 / 3)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_penalty_of_a_linear_critic_is_its_squared_deviation_from_norm_one(scale: float) -> None:
    torch.manual_seed(0)
    weight = (scale * torch.randn(2 * 3 * 3)).requires_grad_()
    images = torch.randn(5, 2, 3, 3)
    slopes = losses.slopes(lambda x: x.flatten(1) @ weight, images, create_graph=True)
    length = math.sqrt(sum(w * w for w in weight.tolist()))
    assert slopes.tolist() == pytest.approx([length] * 5)
    penalty = losses.gradient_penalty(slopes)
    assert penalty.item() == pytest.approx((length - 1) ** 2, rel=1e-4)
    # d (|w| - 1)^2 / dw = 2 (|w| - 1) w / |w|
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 2 * (length - 1) * weight.detach() / length, rtol=1e-4, atol=1e-5)


def test_slopes_against_finite_differences() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 4, 1)).double()
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    slopes = losses.slopes(lambda x: critic(x)[:, 0], images)
    assert not slopes.requires_grad
    for image, slope in zip(images, slopes, strict=True):
        rises = []
        for place in range(16):
            step = torch.zeros(16, dtype=torch.float64)
            step[place] = 1e-5
            up, down = (critic((image + sign * step.reshape(1, 4, 4))[None]).item() for sign in (1, -1))
            rises.append((up - down) / 2e-5)
        assert math.sqrt(sum(r * r for r in rises)) == pytest.approx(slope.item(), rel=1e-6)


def test_slopes_work_without_grad_mode_and_for_constant_critics() -> None:
    weight = torch.zeros(4, requires_grad=True)
    with torch.no_grad():
        assert losses.slopes(lambda x: x.flatten(1) @ (weight + 1), torch.zeros(2, 1, 2, 2)).tolist() == [2, 2]
    slopes = losses.slopes(lambda x: x.flatten(1) @ weight, torch.zeros(2, 1, 2, 2), create_graph=True)
    (gradient,) = torch.autograd.grad(losses.gradient_penalty(slopes), weight)
    assert gradient.isfinite().all()


def test_interpolated_points_are_on_the_line() -> None:
    real, fake = torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2)
    points = losses.interpolate(real, fake, torch.tensor([0.0, 1.0, 0.25]))
    torch.testing.assert_close(points, torch.stack([fake[0], real[1], 0.25 * real[2] + 0.75 * fake[2]]))


def test_clipping_changes_only_weights_outside_the_limit() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(30, 10)
    before: list[Tensor] = [parameter.detach().clone() for parameter in layer.parameters()]
    losses.clip_weights(layer, 0.1)
    for old, new in zip(before, layer.parameters(), strict=True):
        inside = old.abs() <= 0.1
        assert inside.any()
        assert torch.equal(new[inside], old[inside])
        assert torch.equal(new[~inside], 0.1 * old[~inside].sign())
