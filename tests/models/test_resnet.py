"""ResNet against torchvision's, against the paper's table, and against the sum written out."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torchvision import models as reference

from models.registry import build, configure
from models.resnet import PadShortcut, ResidualBlock, ResNet, ResNetConfig
from tests.models.helpers import copy_in_order, enliven, parity

NAMES = [
    "resnet18",
    "resnet34",
    pytest.param("resnet50", marks=pytest.mark.slow),
    pytest.param("resnet101", marks=pytest.mark.slow),
    pytest.param("resnet152", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES)
def test_same_logits_as_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(reference, name)(weights=None)
    ours = build(name)
    images = torch.randn(4, 3, 64, 64)
    enliven(theirs, images)
    copy_in_order(theirs, ours)
    assert parity(ours, theirs, images, train=False) <= 1e-4
    assert parity(ours, theirs, images, train=True) <= 1e-4


# ImageNet's as torchvision counts them; the CIFAR networks as table 6 of the paper prints them, in millions.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.689512),
        ("resnet34", 21.797672),
        ("resnet50", 25.557032),
        ("resnet101", 44.549160),
        ("resnet152", 60.192808),
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(name).parameters())
    decimals = len(re.sub(r"^\d+\.", "", str(millions)))
    assert round(parameters / 1e6, decimals) == millions


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet20", 20), ("resnet110", 110), ("resnet34", 34), ("resnet152", 152)]
)
def test_as_many_layers_as_the_name_says(name: str, layers: int) -> None:
    with torch.device("meta"):
        module = build(name)
    # The paper counts convolutions and the classifier, but no projection in a shortcut.
    weights = [key for key, value in module.named_parameters() if value.ndim > 1 and "shortcut" not in key]
    assert len(weights) == layers


def test_plain_is_residual_without_the_sum() -> None:
    """With a branch that answers zero, a residual block passes its input and a plain one passes nothing."""
    x = torch.rand(2, 16, 8, 8)

    def block(*, plain: bool) -> ResidualBlock:
        config = configure("resnet20", {"plain": plain})
        block = ResidualBlock(config, 16, 16, stride=1).eval()
        last = block.branch.get_submodule("1.0")
        assert isinstance(last, torch.nn.Conv2d)
        torch.nn.init.zeros_(last.weight)
        return block

    assert torch.equal(block(plain=False)(x), x)
    assert not block(plain=True)(x).any()


def test_plain_has_the_same_layers() -> None:
    plain, residual = (build("resnet20", {"plain": plain}) for plain in (True, False))  # option A has no parameters
    assert [(k, v.shape) for k, v in plain.named_parameters()] == [(k, v.shape) for k, v in residual.named_parameters()]


def test_option_a_takes_every_second_pixel_and_pads_channels() -> None:
    x = torch.randn(2, 3, 5, 6)
    y: Tensor = PadShortcut(3, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    for n in range(2):
        for c in range(8):
            for i in range(3):
                for j in range(3):
                    expected = x[n, c - 2, 2 * i, 2 * j].item() if 2 <= c < 5 else 0.0
                    assert y[n, c, i, j].item() == expected


@pytest.mark.parametrize(
    ("overrides", "side"), [({}, 28), ({"stem": "small-pool", "widths": [8, 16], "depths": [1, 1]}, 28), ({}, 8)]
)
def test_small_pictures(overrides: dict[str, object], side: int) -> None:
    module = build("resnet20", {"in_channels": 1} | overrides).eval()
    assert module(torch.randn(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(depths=(1, 1), widths=(8,)),
        ResNetConfig(depths=(), widths=()),
        ResNetConfig(depths=(0,), widths=(8,)),
        ResNetConfig(block="basic", depths=(1, 1), widths=(16, 8), shortcut="pad"),
    ],
)
def test_impossible_configs_are_refused(config: ResNetConfig) -> None:
    with pytest.raises(ValueError, match=r"depths|padded shortcut"):
        ResNet(config)
