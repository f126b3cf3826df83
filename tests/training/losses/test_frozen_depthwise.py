"""Depthwise convolutions whose gradient is computed as another convolution, against torch's own gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.blocks import SameConv2d
from training.losses.frozen_depthwise import FrozenDepthwise


def gradient(layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs, and the gradient of a function of them that weighs every value differently."""
    images = images.clone().requires_grad_()
    outputs = layer(images)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((outputs * weights).sum(), images)
    return outputs, slope


@pytest.mark.parametrize("kind", [nn.Conv2d, SameConv2d])
@pytest.mark.parametrize("size", [(12, 12), (13, 10), (5, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (5, 2), (4, 2), (1, 0)])
def test_outputs_and_gradients_are_torchs(
    kind: type[nn.Conv2d], size: tuple[int, int], stride: int, kernel: int, padding: int
) -> None:
    torch.manual_seed(0)
    conv = kind(6, 6, kernel, stride=stride, padding=padding, groups=6).requires_grad_(False)
    assert FrozenDepthwise.fits(conv)
    images = torch.randn(2, 6, *size)
    for expected, actual in zip(gradient(conv, images), gradient(FrozenDepthwise(conv), images), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2),
        nn.Conv2d(6, 6, 3, groups=6, stride=(1, 2)),
        nn.Conv2d(6, 6, (3, 1), groups=6),
        nn.Conv2d(6, 6, 3, groups=6, padding=2),
        nn.Conv2d(6, 6, 3, groups=6, padding="same"),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(6),
    ],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert not FrozenDepthwise.fits(layer)
