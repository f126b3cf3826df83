"""AlexNet against torchvision's, against the paper's figures, and against two towers and plain loops written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as reference

from models.alexnet import AlexNet, AlexNetConfig, LocalResponseNorm
from models.registry import build, configure
from tests.models.helpers import copy_in_order, drop_rates, parity, without_drops

# CIFAR's pictures: 32 -> 32 -> 15 -> 7 -> 3 pixels.
SMALL: dict[str, Any] = {
    "channels": [64, 192, 384, 256, 256],
    "stem": [5, 1, 2],
    "hidden": [512, 512],
    "pool_size": 3,
    "init": "he",
    "num_classes": 10,
    "image_size": 32,
}
TINY = SMALL | {"channels": [6, 8, 12, 16, 10], "hidden": [14, 9]}


def layers_of(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, kinds)]


def randomise(module: nn.Module) -> None:
    """Weights that keep the signal's size, and biases that matter."""
    for layer in layers_of(module, nn.Conv2d, nn.Linear):
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
        nn.init.normal_(layer.get_parameter("bias"), std=0.1)


def normalised(maps: Tensor) -> Tensor:
    """Local response normalisation as section 3.3 has it, one channel after another."""
    count = maps.shape[1]
    channels = []
    for i in range(count):
        squares = sum(maps[:, j] ** 2 for j in range(max(0, i - 2), min(count - 1, i + 2) + 1))
        channels.append(maps[:, i] / (2 + 1e-4 * squares) ** 0.75)
    return torch.stack(channels, dim=1)


def test_same_logits_as_torchvision() -> None:
    torch.manual_seed(0)
    theirs = reference.alexnet(weights=None)
    with torch.device("meta"):  # its numbers are theirs in a moment
        ours = build("alexnet")
    ours.to_empty(device="cpu")
    assert drop_rates(ours) == drop_rates(theirs) == [0.5, 0.5]
    randomise(theirs)
    copy_in_order(without_drops(theirs), without_drops(ours))
    for side in (64, 130):
        images = torch.randn(2, 3, side, side)
        assert parity(ours, theirs, images, train=False) <= 1e-4
        assert parity(ours, theirs, images, train=True) <= 1e-4


@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [
        (
            "alexnet",
            [23_296, 307_392, 663_936, 884_992, 590_080, 37_752_832, 16_781_312, 4_097_000],
            61_100_840,
        ),
        # The paper says 60 million.
        (
            "alexnet2012",
            [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000],
            60_965_224,
        ),
    ],
)
def test_parameters(name: str, layers: list[int], total: int) -> None:
    with torch.device("meta"):
        module = build(name)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(module, nn.Conv2d, nn.Linear)]
    assert counts == layers
    assert sum(p.numel() for p in module.parameters()) == total


def test_the_layers_are_the_papers() -> None:
    with torch.device("meta"):
        module = build("alexnet2012")
        images = torch.zeros(1, 3, 224, 224)
    features = module.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    convolution = [nn.Conv2d, nn.ReLU]
    reduction = [LocalResponseNorm, nn.MaxPool2d]
    assert [type(layer) for layer in features] == [
        *convolution, *reduction, *convolution, *reduction, *convolution, *convolution, *convolution, nn.MaxPool2d,
        nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU,
    ]  # fmt: skip
    assert [type(layer) for layer in module.get_submodule("head").children()] == [nn.Dropout, nn.Linear]
    assert AlexNetConfig() == configure("alexnet2012")

    neurons, maps = [], images
    for layer in features:
        before, maps = maps, layer(maps)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            neurons.append(maps.numel())
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            assert before.shape == maps.shape == (1, 256, 6, 6)
    # Section 3.5 but for the first layer, where figure 2's 55 x 55 x 96 is not the text's 253,440.
    assert neurons == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096]


@pytest.mark.parametrize("norm", [False, True])
def test_two_groups_are_two_towers(norm: bool) -> None:
    """Each tower on its own: the second, fourth and fifth convolution see one, the third and all that follows both."""
    torch.manual_seed(0)
    module = build("alexnet2012", TINY | {"local_response_norm": norm}).eval()
    randomise(module)
    numbers = [(layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in layers_of(module, nn.Conv2d)]
    images = 50 * torch.randn(3, 3, 32, 32)  # large enough for the normalisation to matter

    def tower(number: int, side: int, seen: Tensor) -> Tensor:
        """One tower's half of the kernels of the convolution `number`, counted from 1, over the maps that it sees."""
        weight, bias = (both.chunk(2)[side] for both in numbers[number - 1])
        return F.relu(F.conv2d(seen, weight, bias, padding=weight.shape[-1] // 2))

    def reduced(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        maps = torch.cat([first, second], dim=1)
        return F.max_pool2d(normalised(maps) if norm else maps, 3, stride=2).chunk(2, dim=1)

    with torch.no_grad():
        a, b = reduced(tower(1, 0, images), tower(1, 1, images))
        a, b = reduced(tower(2, 0, a), tower(2, 1, b))
        both = torch.cat([a, b], dim=1)
        a, b = tower(3, 0, both), tower(3, 1, both)
        a, b = tower(4, 0, a), tower(4, 1, b)
        a, b = tower(5, 0, a), tower(5, 1, b)
        x = F.max_pool2d(torch.cat([a, b], dim=1), 3, stride=2).flatten(1)
        first, second, classifier = layers_of(module, nn.Linear)
        expected = classifier(F.relu(second(F.relu(first(x)))))
        torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-4)


def test_normalisation_against_a_loop() -> None:
    torch.manual_seed(0)
    maps = 100 * torch.randn(2, 7, 3, 4)
    expected = torch.empty_like(maps)
    for n, i, y, x in torch.cartesian_prod(*(torch.arange(size) for size in maps.shape)).tolist():
        total = 0.0
        for j in range(max(0, i - 2), min(6, i + 2) + 1):
            total += maps[n, j, y, x].item() ** 2
        expected[n, i, y, x] = maps[n, i, y, x].item() / (2 + 1e-4 * total) ** 0.75
    torch.testing.assert_close(LocalResponseNorm()(maps), expected)
    torch.testing.assert_close(normalised(maps), expected)
    # torch's takes the mean over the window, so that the paper's alpha must be five times as large there.
    torch.testing.assert_close(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(maps), expected)
    assert not torch.allclose(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(maps), expected, rtol=0.1)


def test_normalisation_has_the_right_gradient() -> None:
    torch.manual_seed(0)
    maps = (100 * torch.randn(1, 6, 2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(), (maps,))


def test_initial_numbers_of_the_paper() -> None:
    torch.manual_seed(0)
    layers = layers_of(build("alexnet2012", {"hidden": [512, 512]}), nn.Conv2d, nn.Linear)
    for layer in layers:
        weight = layer.get_parameter("weight")
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=2e-4)
    biases = [set(layer.get_parameter("bias").tolist()) for layer in layers]
    assert biases == [{0}, {1}, {0}, {1}, {1}, {1}, {1}, {0}]


@pytest.mark.parametrize("name", ["alexnet", "alexnet2012"])
@pytest.mark.parametrize("init", ["he", "torch"])
def test_other_initial_numbers(name: str, init: str) -> None:
    torch.manual_seed(0)
    for layer in layers_of(build(name, SMALL | {"init": init}), nn.Conv2d, nn.Linear):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        fan_in = weight[0].numel()
        if init == "he":
            assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
            assert not bias.any()
        else:  # uniform within 1 / sqrt(fan-in)
            assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
            assert 0 < bias.abs().max().item() <= fan_in**-0.5


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)])
def test_the_activation_follows_every_layer_but_the_classifier(name: str, kind: type[nn.Module]) -> None:
    module = build("alexnet2012", TINY | {"activation": name})
    known = (nn.ReLU, nn.Tanh, nn.Sigmoid)
    assert [type(layer) for layer in layers_of(module, *known)] == [kind] * 7
    features = list(module.get_submodule("features").children())
    for layer, successor in pairwise(features):
        assert isinstance(successor, kind) == isinstance(layer, nn.Conv2d | nn.Linear)


@pytest.mark.parametrize(("switch", "other"), [("local_response_norm", False), ("overlapping_pooling", False)])
def test_a_switch_changes_the_answer_but_not_the_numbers(switch: str, other: bool) -> None:
    torch.manual_seed(0)
    on, off = build("alexnet2012", TINY).eval(), build("alexnet2012", TINY | {switch: other}).eval()
    randomise(on)
    copy_in_order(on, off)
    images = 50 * torch.randn(3, 3, 32, 32)
    difference = (on(images) - off(images)).abs().max()
    assert difference > 0.01 * on(images).abs().max()


def test_pooling_windows() -> None:
    for overlapping, window, sides in ((True, 3, [15, 7, 3]), (False, 2, [16, 8, 4])):
        module = build("alexnet2012", TINY | {"overlapping_pooling": overlapping})
        pools = [layer for layer in module.modules() if isinstance(layer, nn.MaxPool2d)]
        assert [(pool.kernel_size, pool.stride) for pool in pools] == [(window, 2)] * 3
        maps, found = torch.zeros(1, 3, 32, 32), []
        for layer in module.get_submodule("features").children():
            maps = layer(maps)
            if isinstance(layer, nn.MaxPool2d):
                found.append(maps.shape[-1])
        assert found == sides


def test_groups() -> None:
    for groups in (1, 2):
        module = build("alexnet2012", TINY | {"groups": groups})
        assert [layer.groups for layer in layers_of(module, nn.Conv2d)] == [1, groups, 1, groups, groups]


@pytest.mark.parametrize(
    ("where", "features"),
    [
        ("outputs", [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]),
        ("inputs", [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU]),
    ],
)
def test_dropout(where: str, features: list[type[nn.Module]]) -> None:
    torch.manual_seed(0)
    module = build("alexnet2012", TINY | {"dropout": 0.25, "dropout_on": where})
    after = [type(layer) for layer in module.get_submodule("features").children()]
    assert after[after.index(nn.Flatten) + 1 :] == features
    head = [type(layer) for layer in module.get_submodule("head").children()]
    assert head == ([nn.Dropout, nn.Linear] if where == "outputs" else [nn.Linear])
    assert drop_rates(module) == [0.25, 0.25]
    images = torch.randn(3, 3, 32, 32)
    assert not torch.equal(module(images), module(images))
    assert torch.equal(without_drops(module)(images), module(images))


@pytest.mark.parametrize("name", ["alexnet", "alexnet2012"])
def test_small_pictures(name: str) -> None:
    module = build(name, SMALL).eval()
    features = module.get_submodule("features")
    images = torch.randn(2, 3, 32, 32)
    assert features(images).shape == (2, 512)
    assert module(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("overrides", "side"),
    [
        ({"hidden": [8]}, 63),
        ({"hidden": [8], "overlapping_pooling": False}, 35),
        (SMALL, 15),
        (SMALL | {"overlapping_pooling": False}, 8),
    ],
)
def test_the_smallest_picture_leaves_one_pixel(overrides: dict[str, Any], side: int) -> None:
    module = build("alexnet2012", overrides).eval()
    features = module.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    (place,) = [i for i, layer in enumerate(features) if isinstance(layer, nn.AdaptiveAvgPool2d)]
    maps = features[:place]
    assert maps(torch.zeros(1, 3, side, side)).shape[2:] == (1, 1)
    assert module(torch.zeros(1, 3, side, side)).isfinite().all()
    smaller = torch.zeros(1, 3, side - 1, side - 1)
    with pytest.raises(RuntimeError, match="too small"):
        maps(smaller)
    with pytest.raises(ValueError, match=f">={side}, >={side}"):
        module(smaller)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AlexNetConfig(channels=(96, 256)), r"channels needs 5 numbers >= 1, got \(96, 256\)"),
        (AlexNetConfig(channels=(96, 256, 0, 384, 256)), "channels needs 5 numbers >= 1"),
        (AlexNetConfig(channels=(95, 256, 384, 384, 256)), r"2 groups need channels .* got \(95, 256"),
        (AlexNetConfig(stem=(0, 4, 2)), r"stem needs .* got \(0, 4, 2\)"),
        (AlexNetConfig(stem=(11, 0, 2)), r"stem needs .* got \(11, 0, 2\)"),
        (AlexNetConfig(stem=(11, 4, -1)), r"stem needs .* got \(11, 4, -1\)"),
        (AlexNetConfig(stem=(5, 1, 5)), r"stem needs .* got \(5, 1, 5\)"),
        (AlexNetConfig(hidden=()), r"hidden needs one or more numbers >= 1, got \(\)"),
        (AlexNetConfig(hidden=(4096, 0)), "hidden needs one or more numbers >= 1"),
        (AlexNetConfig(pool_size=0), "pool_size must be >= 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(config: AlexNetConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlexNet(config)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("activation", "gelu"), ("groups", 3), ("dropout_on", "both"), ("init", "xavier"), ("stem", [11, 4])],
)
def test_values_outside_the_table_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"(?s)alexnet2012: .*{setting}"):
        build("alexnet2012", {setting: value})
