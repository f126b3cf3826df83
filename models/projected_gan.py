"""A projected GAN: a light generator, and a discriminator of the feature maps of a frozen network.

Sauer, Chitta, Mueller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021. The generator is that of FastGAN: Liu,
Zhu, Song, Elgammal, "Towards Faster and Stabilized GAN Training for High-fidelity Few-shot Image Synthesis", ICLR 2021.
    FastGAN: latents [N, latent] with labels [N, num_classes] -> images [N, in_channels, S, S] in -1..1.
    ProjectedDiscriminator: maps [N, C_i, H_i, W_i] -> scores [N, P], higher for real images; logits of patches.
    Deviations: transposed convolutions and residual units where FastGAN has nearest-neighbour interpolation and gated
    linear units, at a third of the multiplications; no noise is added to the maps, because an image is a function of
    its latent; a map excites the map of four times its side, where FastGAN has sixteen times; the last layer rearranges
    channels to pixels, so that no layer runs at full resolution; labels are concatenated to the latent; the
    discriminator has no batch normalisation, so that a score depends on one image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.autoencoder import ResidualUnit
from models.generative import GenerativeConfig, check_latents

_SLOPE = 0.2  # of the leaky ReLU, below zero
_LAST_SIDE = 4  # of the maps from which patches are scored


@dataclass(frozen=True)
class FastGANConfig(GenerativeConfig):
    """`widths` are the channels of the maps, each twice as wide as the one before; the last has half the image's side.

    `blocks` counts the residual units at each size.
    """

    latent: int = 128
    widths: tuple[int, ...] = (128, 64)
    blocks: int = 1


class SkipExcitation(nn.Module):
    """Gates of a large map's channels, computed from a small map: [N, inputs, h, w] -> [N, outputs, 1, 1] in 0..1."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(_LAST_SIDE)
        self.squeeze = nn.Conv2d(inputs, outputs, _LAST_SIDE)
        self.expand = nn.Conv2d(outputs, outputs, 1)

    def forward(self, small: Tensor) -> Tensor:
        """See the class."""
        gates: Tensor = self.expand(F.silu(self.squeeze(self.pool(small))))
        return gates.sigmoid()


class FastGAN(nn.Module):
    """Latents [N, latent] with labels [N, num_classes], one-hot -> images [N, in_channels, S, S] in -1..1."""

    def __init__(self, config: FastGANConfig):
        super().__init__()
        self.config = config
        side, widths = config.side, config.widths
        self.seed = nn.Sequential(
            nn.Linear(config.latent + config.num_classes, widths[0] * side**2, bias=False),
            nn.Unflatten(1, (widths[0], side, side)),  # [N, widths[0], side, side]
            nn.BatchNorm2d(widths[0]),
            nn.SiLU(inplace=True),
        )
        self.doublings = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.SiLU(inplace=True),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.units = nn.ModuleList(
            nn.Sequential(*(ResidualUnit(width) for _ in range(config.blocks))) for width in widths
        )
        self.excitations = nn.ModuleList(
            SkipExcitation(small, large) for small, large in zip(widths, widths[2:], strict=False)
        )
        self.pixels = nn.Sequential(nn.Conv2d(widths[-1], 4 * config.in_channels, 3, padding=1), nn.PixelShuffle(2))

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [N, in_channels, S, S] in -1..1."""
        check_latents(latents, labels, self.config)
        maps = [self.units[0](self.seed(torch.cat([latents, labels.to(latents.dtype)], dim=1)))]
        for number, (doubling, unit) in enumerate(zip(self.doublings, self.units[1:], strict=True), start=1):
            x = doubling(maps[-1])  # [N, widths[i], 2^i side, 2^i side]
            if number >= 2:
                x = x * self.excitations[number - 2](maps[number - 2])
            maps.append(unit(x))
        return torch.tanh(self.pixels(maps[-1]))

    forward = decode


@dataclass(frozen=True)
class ProjectedDiscriminatorConfig:
    """`shapes` are (channels, side) of the maps, from the largest to the smallest.

    The projections have `projection` channels for the largest map, and twice as many for each smaller one. `widths` are
    the channels after each halving of a projection; the last value repeats.
    """

    shapes: tuple[tuple[int, int], ...]
    projection: int = 32
    widths: tuple[int, ...] = (64, 128)


class ProjectedDiscriminator(nn.Module):
    """Maps [N, C_i, S_i, S_i] of a frozen network -> scores [N, P] of patches, each map's weighing about the same.

    Random convolutions, which are not trained, mix the channels of each map and add the smaller maps to the larger
    ones: otherwise a discriminator would rely on the few channels that separate the images best. Each projection has a
    small discriminator of its own with spectral normalisation.
    """

    def __init__(self, config: ProjectedDiscriminatorConfig):
        super().__init__()
        self.config = config
        widths = [config.projection << number for number in range(len(config.shapes))]
        for number, ((channels, _), width) in enumerate(zip(config.shapes, widths, strict=True)):
            self.register_buffer(f"across_channels_{number}", _random(width, channels, 1))
            if number:
                self.register_buffer(f"across_scales_{number}", _random(widths[number - 1], width, 3))
        self.heads = nn.ModuleList(
            _head(width, side, config.widths) for width, (_, side) in zip(widths, config.shapes, strict=True)
        )

    def project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Projections [N, projection * 2^i, S_i, S_i] of the maps, in their order.

        Raises:
            ValueError: maps of other shapes.
        """
        shapes = tuple((x.shape[1], x.shape[2]) for x in maps)
        if shapes != self.config.shapes:
            raise ValueError(f"expected maps of (channels, side) {self.config.shapes}, got {shapes}")
        projections: list[Tensor] = []
        for number in reversed(range(len(maps))):
            x = F.conv2d(maps[number], self.get_buffer(f"across_channels_{number}"))
            if projections:
                smaller = F.conv2d(projections[-1], self.get_buffer(f"across_scales_{number + 1}"), padding=1)
                x = x + F.interpolate(smaller, x.shape[2:], mode="bilinear")
            projections.append(x)
        return projections[::-1]

    def score(self, maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Scores [N, P]: how real each patch looks; `labels` [N, 0] are not used."""
        del labels
        scores = (head(x) for head, x in zip(self.heads, self.project(maps), strict=True))
        return torch.cat([part.flatten(1) for part in scores], dim=1)

    forward = score


def _random(outputs: int, inputs: int, kernel: int) -> Tensor:
    """Filters [outputs, inputs, kernel, kernel] that keep the variance of maps of independent pixels."""
    return torch.randn(outputs, inputs, kernel, kernel) / math.sqrt(inputs * kernel**2)


def _head(width: int, side: int, widths: Sequence[int]) -> nn.Sequential:
    """Halve a projection until its side is 4 or less, then score each position: [N, width, S, S] -> [N, 1, s, s].

    A projection that is already so small keeps its side, with one convolution before the scores.
    """
    layers: list[nn.Module] = []
    later = itertools.chain(widths, itertools.repeat(widths[-1]))
    while side > _LAST_SIDE or not layers:
        after, halve = next(later), side > _LAST_SIDE
        conv = nn.Conv2d(width, after, 4 if halve else 3, stride=2 if halve else 1, padding=1)
        layers += [spectral_norm(conv), nn.LeakyReLU(_SLOPE, inplace=True)]
        width, side = after, side // 2 if halve else side
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(width, 1, 3, padding=1)))
