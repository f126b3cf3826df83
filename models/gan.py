"""Generative adversarial networks: DCGAN's generator and discriminator, conditional ones, and WGAN's critic.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
ICLR 2016. Labels: conditional batch normalisation in the generator (de Vries et al., "Modulating early visual
processing by language", NIPS 2017), a projection in the discriminator (Miyato, Koyama, "cGANs with Projection
Discriminator", ICLR 2018). A critic is a discriminator without batch normalisation, because its loss uses the gradient
with respect to each image (Gulrajani et al., "Improved Training of Wasserstein GANs", NIPS 2017). Spectral
normalisation: Miyato et al., ICLR 2018.
    Generator: latents [N, latent] with labels [N, num_classes] -> images [N, in_channels, S, S] in -1..1.
    Discriminator: such images with labels -> scores [N], higher for real images; logits, not probabilities.
    Deviations: kernels of 4x4, which is a multiple of the stride, where the paper's 5x5 cause checkerboard patterns; S
    is any multiple of 2^len(widths), where the paper has 64; labels are also concatenated to the latent; the projected
    features are the entire last map, where Miyato and Koyama sum over its positions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.blocks import check_images
from models.generative import GenerativeConfig, check_labels, check_latents, smallest_side

Norm = Literal["none", "batch", "layer"]

_SLOPE = 0.2  # of the leaky ReLU, below zero


@dataclass(frozen=True)
class GeneratorConfig(GenerativeConfig):
    """`widths` are the channels from the smallest map on; each doubling leads to the next, the last to the image."""

    latent: int = 64
    widths: tuple[int, ...] = (128, 64)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """`widths` are the channels after each halving; `norm` follows all convolutions but the first.

    With `spectral` the largest singular value of every layer is normalised to 1.
    """

    in_channels: int = 1
    image_size: int = 28
    num_classes: int = 0
    widths: tuple[int, ...] = (64, 128)
    norm: Norm = "batch"
    spectral: bool = False


class LabelledNorm(nn.Module):
    """Batch normalisation with a gain and a bias for each class: [N, C, H, W] with [N, num_classes] -> [N, C, H, W].

    Without classes it is plain batch normalisation.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not num_classes)
        self.by_label = nn.Linear(num_classes, 2 * channels, bias=False) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """`x` normalised per channel over the batch, then scaled and shifted by its class."""
        normal: Tensor = self.norm(x)
        if self.by_label is None:
            return normal
        parameters: Tensor = self.by_label(labels)
        gain, bias = parameters[:, :, None, None].chunk(2, dim=1)
        return normal * gain + bias


class Generator(nn.Module):
    """Latents [N, latent] with labels [N, num_classes], one-hot -> images [N, in_channels, S, S] in -1..1."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        side, widths = config.side, config.widths
        self.seed = nn.Sequential(
            nn.Linear(config.latent + config.num_classes, widths[0] * side**2, bias=False),
            nn.Unflatten(1, (widths[0], side, side)),  # [N, widths[0], side, side]
        )
        self.norms = nn.ModuleList(LabelledNorm(width, config.num_classes) for width in widths)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            for before, after in itertools.pairwise(widths)
        )
        self.pixels = nn.ConvTranspose2d(widths[-1], config.in_channels, 4, stride=2, padding=1)
        self.apply(_initialise)

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [N, in_channels, S, S] in -1..1."""
        check_latents(latents, labels, self.config)
        labels = labels.to(latents.dtype)
        x = self.seed(torch.cat([latents, labels], dim=1))
        x = self.norms[0](x, labels).relu()
        for doubling, norm in zip(self.doublings, self.norms[1:], strict=True):
            x = norm(doubling(x), labels).relu()  # [N, widths[i], 2^i side, 2^i side]
        return torch.tanh(self.pixels(x))

    forward = decode


class Discriminator(nn.Module):
    """Images [N, in_channels, S, S] with labels [N, num_classes] -> scores [N]; a critic unless `norm` is batch."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        side, channels = smallest_side(config.image_size, len(config.widths)), (config.in_channels, *config.widths)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(itertools.pairwise(channels)):
            norm = config.norm if number else "none"
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=norm == "none"))
            layers += [*_norm(norm, after), nn.LeakyReLU(_SLOPE)]
        self.features = nn.Sequential(*layers, nn.Flatten())  # [N, widths[-1] * side^2]
        width = config.widths[-1] * side**2
        self.head = nn.Linear(width, 1)
        self.by_label = nn.Linear(config.num_classes, width, bias=False) if config.num_classes else None
        self.apply(_initialise)
        if config.spectral:
            for layer in list(self.modules()):
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    spectral_norm(layer)

    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scores [N]: how real each image looks as a member of its class."""
        check_images(images, self.config.in_channels, self.config.image_size, exact=True)
        check_labels(labels, len(images), self.config.num_classes)
        features: Tensor = self.features(images)
        scores: Tensor = self.head(features)[:, 0]
        if self.by_label is None:
            return scores
        directions: Tensor = self.by_label(labels.to(features.dtype))
        return scores + (directions * features).sum(dim=1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The same as `score`. Only `forward` is wrapped for mixed precision: a gradient penalty needs float32."""
        return self.score(images, labels)


def _norm(kind: Norm, channels: int) -> list[nn.Module]:
    if kind == "none":
        return []
    return [nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(1, channels)]


def _initialise(module: nn.Module) -> None:
    """Initialise as the paper: weights N(0, 0.02), gains N(1, 0.02), biases 0."""
    if isinstance(module, LabelledNorm) and module.by_label is not None:
        gains, biases = module.by_label.weight.detach().chunk(2, dim=0)
        nn.init.normal_(gains, 1.0, 0.02)
        nn.init.zeros_(biases)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.weight is not None:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
