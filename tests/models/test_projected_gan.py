"""The projected GAN's networks against direct computations of the papers' formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.projected_gan import (
    FastGAN,
    FastGANConfig,
    ProjectedDiscriminator,
    ProjectedDiscriminatorConfig,
    SkipExcitation,
)
from tests.models.helpers import assert_all_gradients

SHAPES = ((3, 16), (5, 8), (7, 4))
CONFIG = ProjectedDiscriminatorConfig(SHAPES, projection=4, widths=(6, 10))


def maps(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(count, channels, side, side) for channels, side in SHAPES]


def test_gates_are_a_perceptron_of_the_pooled_map() -> None:
    torch.manual_seed(0)
    excitation = SkipExcitation(5, 3).double()
    small = torch.randn(2, 5, 8, 8, dtype=torch.float64)
    biases = [excitation.get_parameter(f"{layer}.bias") for layer in ("squeeze", "expand")]
    gates = excitation(small)
    for n in range(2):
        pooled = small[n].reshape(5, 4, 2, 4, 2).mean(dim=(2, 4))
        squeezed = (excitation.squeeze.weight * pooled).sum(dim=(1, 2, 3)) + biases[0]
        hidden = squeezed / (1 + (-squeezed).exp())
        expanded = excitation.expand.weight[:, :, 0, 0] @ hidden + biases[1]
        torch.testing.assert_close(gates[n, :, 0, 0], 1 / (1 + (-expanded).exp()))


def test_a_map_excites_the_map_of_four_times_its_side() -> None:
    torch.manual_seed(0)
    generator = FastGAN(FastGANConfig(3, 32, latent=8, widths=(8, 6, 4))).eval()
    latents, labels = torch.randn(2, 8), torch.zeros(2, 0)
    first = generator.units[0](generator.seed(latents))
    second = generator.units[1](generator.doublings[0](first))
    gates = generator.excitations[0](first)
    third = generator.units[2](generator.doublings[1](second) * gates)
    pixels = generator.pixels[0](third)
    expected = torch.zeros(2, 3, 32, 32)
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                expected[:, channel, row::2, column::2] = pixels[:, 4 * channel + 2 * row + column].tanh()
    torch.testing.assert_close(generator(latents, labels), expected)
    assert len(generator.excitations) == 1


def test_projections_mix_channels_and_add_the_smaller_maps() -> None:
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator(CONFIG)
    inputs = maps()
    mixed = [
        torch.einsum("oi,nihw->nohw", discriminator.get_buffer(f"across_channels_{i}")[:, :, 0, 0], x)
        for i, x in enumerate(inputs)
    ]
    projections = discriminator.project(inputs)
    assert [x.shape[1] for x in projections] == [4, 8, 16]
    expected = mixed[2]
    torch.testing.assert_close(projections[2], expected)
    for i in (1, 0):
        weight = discriminator.get_buffer(f"across_scales_{i + 1}")
        columns = F.unfold(expected, 3, padding=1)  # [N, inputs * 9, positions]
        side = expected.shape[2]
        smaller = (weight.flatten(1) @ columns).reshape(len(columns), -1, side, side)
        expected = mixed[i] + F.interpolate(smaller, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(projections[i], expected, rtol=1e-4, atol=1e-5)


def test_random_filters_keep_the_variance_and_are_not_trained() -> None:
    torch.manual_seed(0)
    config = ProjectedDiscriminatorConfig(((64, 8), (64, 4)), projection=64)
    discriminator = ProjectedDiscriminator(config)
    outputs = F.conv2d(torch.randn(8, 128, 10, 10), discriminator.get_buffer("across_scales_1"))
    assert outputs.std().item() == pytest.approx(1, abs=0.1)
    assert not {name for name, _ in discriminator.named_parameters() if "across" in name}
    assert {name for name in discriminator.state_dict() if "across" in name} == {
        "across_channels_0",
        "across_channels_1",
        "across_scales_1",
    }


def test_every_map_has_sixteen_scores_and_every_weight_a_gradient() -> None:
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator(CONFIG)
    scores = discriminator(maps(), torch.zeros(3, 0))
    assert scores.shape == (3, 3 * 16)
    scores.square().sum().backward()
    assert_all_gradients(discriminator)
    widths = [
        [layer.out_channels for layer in head.modules() if isinstance(layer, nn.Conv2d)] for head in discriminator.heads
    ]
    assert widths == [[6, 10, 1], [6, 1], [6, 1]]


def test_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected maps of .*\(3, 16\).* got \(\(5, 8\)"):
        ProjectedDiscriminator(CONFIG)(maps()[1:], torch.zeros(3, 0))
