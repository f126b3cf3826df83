"""ResNet against torchvision's, against the paper's table, and against the sum written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import models as reference

from models.registry import build, configure
from models.resnet import PadShortcut, ResidualBlock
from tests.models.helpers import assert_parity


@pytest.mark.parametrize(
    "layers", [18, 34, *(pytest.param(layers, marks=pytest.mark.slow) for layers in (50, 101, 152))]
)
def test_logits_are_torchvisions(layers: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(reference, f"resnet{layers}")(weights=None)
    assert_parity(build(f"resnet{layers}"), theirs, torch.randn(4, 3, 64, 64))


@pytest.mark.parametrize("plain", [False, True])
def test_plain_network_has_no_shortcut(plain: bool) -> None:
    """With a branch that returns zero, a residual block returns its input and a plain block returns zero."""
    x = torch.rand(2, 16, 8, 8)
    block = ResidualBlock(configure("resnet20", {"plain": plain}), 16, 16, stride=1).eval()
    last = block.branch.get_submodule("1.0")
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    assert torch.equal(block(x), torch.zeros_like(x) if plain else x)
    # Option A has no parameters.
    shapes = [
        [(key, value.shape) for key, value in build("resnet20", {"plain": kind}).named_parameters()]
        for kind in (plain, False)
    ]
    assert shapes[0] == shapes[1]


def test_option_a_takes_every_second_pixel_and_pads_channels() -> None:
    x = torch.randn(2, 3, 5, 6)
    y: Tensor = PadShortcut(3, 8, 2)(x)
    expected = torch.zeros(2, 8, 3, 3)
    for c, i, j in torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(3)).tolist():
        expected[:, 2 + c, i, j] = x[:, c, 2 * i, 2 * j]
    assert torch.equal(y, expected)
