"""VGG against torchvision's on copied weights, and against the paper's tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as reference

from models.registry import build, configure
from tests.models.helpers import assert_parity, drop_rates, layers_of

NAMES = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_torchvisions_at_an_eighth_of_the_width(name: str) -> None:
    """Full-sized networks take minutes."""
    torch.manual_seed(0)
    column = {"11": "A", "13": "B", "16": "D", "19": "E"}[name[3:5]]
    layers = [layer if layer == "M" else layer // 8 for layer in reference.vgg.cfgs[column]]
    theirs = nn.Sequential(
        reference.vgg.make_layers(layers, batch_norm=name.endswith("-bn")),
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        *(nn.Linear(64 * 7 * 7, 32), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(32, 10),
    )
    for layer in layers_of(theirs, nn.Conv2d, nn.Linear):
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
        nn.init.normal_(layer.get_parameter("bias"), std=0.1)
    assert drop_rates(theirs) == [0.5, 0.5]
    stages = [[width // 8 for width in stage] for stage in configure(name).stages]
    ours = build(name, {"stages": stages, "hidden": [32, 32], "num_classes": 10})
    # Coarse blobs: fine noise vanishes in five poolings, so that all images look alike.
    assert_parity(ours, theirs, F.interpolate(4 * torch.randn(4, 3, 4, 4), size=(64, 64)))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    module = build("vgg11", {"stages": [[64], [128], [256, 256]], "hidden": [512], "pool_size": 2})
    convolutions, linears = layers_of(module, nn.Conv2d), layers_of(module, nn.Linear)
    assert (len(convolutions), len(linears)) == (4, 2)
    for layer in convolutions:
        fan_out = layer.get_parameter("weight")[:, 0].numel()
        assert layer.get_parameter("weight").std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for layer in linears:
        assert layer.get_parameter("weight").std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.get_parameter("bias").any() for layer in convolutions + linears)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_form_for_short_training_is_a_sequence_of_layers(pool: str) -> None:
    torch.manual_seed(0)
    config = {"stem": [6, 3], "stages": [[4, 5], [7]], "activation": "gelu", "halve": "first", "pool": pool}
    small = {"hidden": [], "pool_size": 1, "num_classes": 10, "image_size": 32}
    module = build("vgg11-bn", small | config).eval()
    images = torch.randn(2, 3, 32, 32)
    layers = layers_of(module, nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    stem, first, norm1, second, norm2, third, norm3, linear = layers
    maps = F.gelu(F.conv2d(images, stem.weight, stem.bias))  # type: ignore[arg-type]
    assert maps.shape == (2, 6, 30, 30)
    maps = F.gelu(norm1(F.max_pool2d(first(maps), 2)))
    maps = F.gelu(norm2(second(maps)))
    maps = F.gelu(norm3(F.max_pool2d(third(maps), 2)))
    assert maps.shape == (2, 7, 7, 7)
    pooled = maps.amax(dim=(2, 3)) if pool == "max" else maps.mean(dim=(2, 3))
    torch.testing.assert_close(module(images), linear(pooled))
