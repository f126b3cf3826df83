"""Feature maps against the whole network; the perceptual distance against a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor

from models import checkpoint
from models.preprocess import Preprocess
from training.core.errors import RecipeError
from training.losses.feature_maps import FeatureMaps, perceptual_distance
from training.recipe.generative_config import FeaturesSection

WEIGHTS = Path(__file__).parents[3] / "weights"
COLOUR = Preprocess(size=(80, 80), mean=(127.5,) * 3, std=(255.0, 200.0, 127.5))


def feature_maps(name: str, taps: tuple[int, ...], side: int, source: Preprocess, **options: Any) -> FeatureMaps:
    section = FeaturesSection(folder=WEIGHTS / name, taps=taps, side=side)
    return FeatureMaps(section, source, Accelerator(), options.get("channels_last", False))


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_are_those_of_the_network_for_the_same_pixels(channels_last: bool) -> None:
    network, card = checkpoint.load(WEIGHTS / "face-embedder")
    maps = feature_maps("face-embedder", (0, 1, 3), 80, COLOUR, channels_last=channels_last)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8))
    outputs: dict[int, Tensor] = {}
    for number, layer in enumerate(network.get_submodule("features").children()):
        layer.register_forward_hook(lambda _, __, output, number=number: outputs.update({number: output}))
    with torch.no_grad():
        network(card.preprocess.normalise(pixels))
        computed = maps(COLOUR.normalise(pixels))
    for number, output in zip((0, 1, 3), computed, strict=True):
        torch.testing.assert_close(output, outputs[number], rtol=1e-3, atol=1e-3)
    assert maps.shapes == ((32, 40), (32, 40), (128, 10))


def test_gradients_pass_to_images_of_another_size_and_to_no_weight() -> None:
    maps = feature_maps("face-embedder", (2,), 64, COLOUR)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    (output,) = maps(images)
    assert output.shape == (2, 64, 16, 16)
    output.square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert not any(parameter.requires_grad for parameter in maps._layers.parameters())


@pytest.mark.parametrize(
    ("name", "taps", "source", "message"),
    [
        ("face-embedder", (0, 7), COLOUR, "embedder has no layer features.7"),
        ("vae-faces", (0,), COLOUR, "vae has no layer features.0"),
        ("judge-mnist", (0,), COLOUR, "reads L images, not RGB"),
        ("efficientnet-lite0", (0, 19), COLOUR, "are not square maps"),
    ],
)
def test_unsuitable_networks_are_refused(name: str, taps: tuple[int, ...], source: Preprocess, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        feature_maps(name, taps, 64, source)


def test_taps_are_in_ascending_order() -> None:
    with pytest.raises(ValueError, match="not in ascending order"):
        FeaturesSection(folder=WEIGHTS, taps=(2, 1), side=64)


def test_perceptual_distance_is_a_mean_over_positions() -> None:
    random = np.random.default_rng(0)
    shapes = [(2, 5, 3, 3), (2, 4, 2, 2)]
    first, second = ([random.standard_normal(shape) for shape in shapes] for _ in range(2))
    expected = np.zeros(2)
    for n in range(2):
        for x, y in zip(first, second, strict=True):
            side = x.shape[2]
            for row in range(side):
                for column in range(side):
                    u, v = x[n, :, row, column], y[n, :, row, column]
                    expected[n] += 2 * (1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)) / side**2
    tensors = ([torch.from_numpy(x) for x in maps] for maps in (first, second))
    torch.testing.assert_close(perceptual_distance(*tensors), torch.from_numpy(expected).float())
    assert not perceptual_distance(*[[torch.ones(2, 3, 1, 1)]] * 2).any()
