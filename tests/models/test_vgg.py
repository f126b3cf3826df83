"""VGG against torchvision's on copied weights, and against the paper's tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as reference

from models.registry import build, configure
from models.vgg import VGG, VGGConfig
from tests.models.helpers import copy_in_order, drop_rates, enliven, parity, without_drops

NAMES = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"]
SMALL = {
    "stages": [[64, 64], [128, 128], [256, 256], [256, 256]],
    "hidden": [],
    "pool_size": 1,
    "num_classes": 10,
    "image_size": 32,
}


def layers_of(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, kinds)]


def assert_same_logits(ours: nn.Module, theirs: nn.Module) -> None:
    """The same logits from the same numbers, in eval and in train mode."""
    assert drop_rates(ours) == drop_rates(theirs) == [0.5, 0.5]
    without_drops(ours)
    without_drops(theirs)
    # Coarse blobs: of fine noise nothing is left after five poolings, and every picture looks the same.
    images = F.interpolate(4 * torch.randn(4, 3, 4, 4), size=(64, 64))
    for layer in layers_of(theirs, nn.Conv2d, nn.Linear):
        nn.init.normal_(layer.get_parameter("bias"), std=0.1)
    enliven(theirs, images)
    copy_in_order(theirs, ours)
    assert parity(ours, theirs, images, train=False) <= 1e-4
    assert parity(ours, theirs, images, train=True) <= 1e-4
    # Train mode moved the running statistics of both alike.
    assert parity(ours, theirs, images, train=False) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_same_logits_as_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(reference, name.replace("-", "_"))(weights=None)
    with torch.device("meta"):  # its numbers are theirs in a moment
        ours = build(name)
    assert_same_logits(ours.to_empty(device="cpu"), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_same_logits_as_narrow_layers_of_torchvision(name: str) -> None:
    """Quick: torchvision's convolutions at an eighth of their width, and fully connected layers of 32."""
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
    stages = [[width // 8 for width in stage] for stage in configure(name).stages]
    assert_same_logits(build(name, {"stages": stages, "hidden": [32, 32], "num_classes": 10}), theirs)


# Table 2 of the paper has the first four in millions: 133, 133, 138, 144.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11-bn", 132_868_840),
        ("vgg13-bn", 133_053_736),
        ("vgg16-bn", 138_365_992),
        ("vgg19-bn", 143_678_248),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name).parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_as_many_layers_with_weights_as_the_name_says(name: str) -> None:
    with torch.device("meta"):
        module = build(name)
    layers = layers_of(module, nn.Conv2d, nn.Linear)
    assert len(layers) == int(name.removeprefix("vgg").removesuffix("-bn"))
    norms = len(layers) - 3 if name.endswith("-bn") else 0
    assert len(layers_of(module, nn.BatchNorm2d)) == norms


def test_the_defaults_are_vgg16() -> None:
    assert VGGConfig() == configure("vgg16")


def test_at_224_pixels_the_maps_are_7x7_and_the_average_changes_nothing() -> None:
    with torch.device("meta"):
        module = build("vgg16")
        images = torch.zeros(1, 3, 224, 224)
    features = module.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    (place,) = [i for i, layer in enumerate(features) if isinstance(layer, nn.AdaptiveAvgPool2d)]
    assert features[:place](images).shape == (1, 512, 7, 7)
    assert features(images).shape == (1, 4096)
    maps = torch.randn(2, 3, 7, 7)
    assert torch.equal(features[place](maps), maps)


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


@pytest.mark.parametrize("batch_norm", [False, True])
def test_small_pictures(batch_norm: bool) -> None:
    torch.manual_seed(0)
    module = build("vgg11", SMALL | {"batch_norm": batch_norm}).eval()
    features, head = module.get_submodule("features"), module.get_submodule("head")
    assert isinstance(features, nn.Sequential)
    images = torch.randn(2, 3, 32, 32)
    maps = features[:-2](images)
    assert maps.shape == (2, 256, 2, 2)
    torch.testing.assert_close(features(images), maps.mean(dim=(2, 3)))
    assert [type(layer) for layer in head.children()] == [nn.Dropout, nn.Linear]
    assert module(images).shape == (2, 10)
    # Four stages halve 16 pixels to one.
    assert module(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="expected images of shape"):
        module(torch.randn(2, 3, 15, 15))


def test_the_form_for_short_trainings_is_the_plain_sequence() -> None:
    torch.manual_seed(0)
    config = {"stem": [6, 3], "stages": [[4, 5], [7]], "activation": "gelu", "halve": "first", "pool": "max"}
    module = build("vgg11-bn", SMALL | config).eval()
    images = torch.randn(2, 3, 32, 32)
    layers = layers_of(module, nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    stem, first, norm1, second, norm2, third, norm3, linear = layers
    maps = F.gelu(F.conv2d(images, stem.weight, stem.bias))  # type: ignore[arg-type]
    assert maps.shape == (2, 6, 30, 30)
    maps = F.gelu(norm1(F.max_pool2d(first(maps), 2)))
    maps = F.gelu(norm2(second(maps)))
    maps = F.gelu(norm3(F.max_pool2d(third(maps), 2)))
    assert maps.shape == (2, 7, 7, 7)
    torch.testing.assert_close(module(images), linear(maps.amax(dim=(2, 3))))
    # A stem of side 3 takes 2 pixels of 6, two stages halve 4 to one.
    assert module(torch.randn(2, 3, 6, 6)).shape == (2, 10)
    with pytest.raises(ValueError, match="expected images of shape"):
        module(torch.randn(2, 3, 5, 5))


def test_the_features_are_the_last_hidden_layer() -> None:
    torch.manual_seed(0)
    module = build("vgg11", SMALL | {"hidden": [48, 40], "pool_size": 2, "dropout": 0.25})
    features = module.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    kinds = [type(layer) for layer in features[-6:]]
    assert kinds == [nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]
    assert drop_rates(module) == [0.25, 0.25]
    images = torch.randn(2, 3, 32, 32)
    assert features(images).shape == (2, 40)
    assert not torch.equal(module(images), module(images))
    module.eval()
    assert torch.equal(module(images), module(images))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (VGGConfig(stages=()), "stages needs one or more stages"),
        (VGGConfig(stages=((64,), ())), r"stages needs .* got \(\(64,\), \(\)\)"),
        (VGGConfig(stages=((64, 0),)), r"stages needs .* got \(\(64, 0\),\)"),
        (VGGConfig(hidden=(4096, 0)), r"hidden needs numbers >= 1, got \(4096, 0\)"),
        (VGGConfig(stem=(0, 3)), r"stem needs a number of filters .* got \(0, 3\)"),
        (VGGConfig(stem=(24, 0)), r"stem needs a number of filters .* got \(24, 0\)"),
        (VGGConfig(pool_size=0), "pool_size must be >= 1, got 0"),
        (
            VGGConfig(stages=((4,),), hidden=(), dropout=1.5),
            "dropout probability has to be between 0 and 1, but got 1.5",
        ),
    ],
)
def test_wrong_settings_are_refused(config: VGGConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGG(config)
