"""AlexNet against torchvision's, against the paper's figures, and against two towers and plain loops written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as reference

from models.alexnet import AlexNetConfig, LocalResponseNorm
from models.registry import build, configure
from tests.models.helpers import assert_parity, drop_rates, layers_of, randomise

# For CIFAR's images: 32 -> 32 -> 15 -> 7 -> 3 pixels.
TINY: dict[str, Any] = {
    "channels": [6, 8, 12, 16, 10],
    "stem": [5, 1, 2],
    "hidden": [14, 9],
    "pool_size": 3,
    "init": "he",
    "num_classes": 10,
    "image_size": 32,
}


def normalised(maps: Tensor) -> Tensor:
    """Local response normalisation as in section 3.3, channel by channel."""
    count = maps.shape[1]
    channels = []
    for i in range(count):
        squares = sum(maps[:, j] ** 2 for j in range(max(0, i - 2), min(count - 1, i + 2) + 1))
        channels.append(maps[:, i] / (2 + 1e-4 * squares) ** 0.75)
    return torch.stack(channels, dim=1)


def test_logits_are_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = reference.alexnet(weights=None)
    with torch.device("meta"):  # its weights are copied
        ours = build("alexnet")
    randomise(theirs)
    ours.to_empty(device="cpu")
    assert drop_rates(theirs) == [0.5, 0.5]
    assert_parity(ours, theirs, torch.randn(2, 3, 64, 64))
    assert_parity(ours, theirs, torch.randn(2, 3, 130, 130))


def test_layers_are_the_papers() -> None:
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
    # Section 3.5, except for the first layer, where figure 2's 55 x 55 x 96 is not the text's 253,440.
    assert neurons == [55 * 55 * 96, 186_624, 64_896, 64_896, 43_264, 4096, 4096]


@pytest.mark.parametrize("norm", [False, True])
def test_two_groups_are_two_towers(norm: bool) -> None:
    """The second, fourth and fifth convolution read one tower, the third and all later layers both."""
    torch.manual_seed(0)
    module = build("alexnet2012", TINY | {"local_response_norm": norm}).eval()
    randomise(module)
    parameters = [
        (layer.get_parameter("weight"), layer.get_parameter("bias")) for layer in layers_of(module, nn.Conv2d)
    ]
    images = 50 * torch.randn(3, 3, 32, 32)  # large enough for the normalisation to matter

    def tower(number: int, side: int, maps: Tensor) -> Tensor:
        """One tower's half of the kernels of the convolution `number`, counted from 1, applied to `maps`."""
        weight, bias = (both.chunk(2)[side] for both in parameters[number - 1])
        return F.relu(F.conv2d(maps, weight, bias, padding=weight.shape[-1] // 2))

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


def test_local_response_normalisation_is_a_loop() -> None:
    torch.manual_seed(0)
    maps = 100 * torch.randn(2, 7, 3, 4)
    expected = normalised(maps)
    torch.testing.assert_close(LocalResponseNorm()(maps), expected)
    # torch's layer takes the mean over the window, so the paper's alpha must be five times as large there.
    torch.testing.assert_close(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(maps), expected)
    assert not torch.allclose(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)(maps), expected, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "init"), [("alexnet2012", "paper"), ("alexnet", "he"), ("alexnet2012", "he"), ("alexnet", "torch")]
)
def test_initial_weights(name: str, init: str) -> None:
    torch.manual_seed(0)
    wide = {"channels": [64, 192, 384, 256, 256], "hidden": [512, 512], "init": init}
    layers = layers_of(build(name, TINY | wide), nn.Conv2d, nn.Linear)
    for index, layer in enumerate(layers):
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        fan_in = weight[0].numel()
        if init == "torch":  # uniform within 1 / sqrt(fan-in)
            assert weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
            assert 0 < bias.abs().max().item() <= fan_in**-0.5
            continue
        std = (2 / fan_in) ** 0.5 if init == "he" else 0.01
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert set(bias.tolist()) == {0 if init == "he" or index in (0, 2, len(layers) - 1) else 1}


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)])
def test_activation_follows_every_layer_but_the_classifier(name: str, kind: type[nn.Module]) -> None:
    module = build("alexnet2012", TINY | {"activation": name})
    assert [type(layer) for layer in layers_of(module, nn.ReLU, nn.Tanh, nn.Sigmoid)] == [kind] * 7
    for layer, successor in pairwise(module.get_submodule("features").children()):
        assert isinstance(successor, kind) == isinstance(layer, nn.Conv2d | nn.Linear)
