"""The autoencoder, and the encoder and decoder that it shares with the variational autoencoder.

Hinton, Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006.
    Input [N, in_channels, S, S] with S = `image_size` and values in 0..1, output the same.
    Deviations: convolutions where the paper has fully connected layers, trained end to end without layer-wise
    pre-training; residual blocks (He et al., CVPR 2016) in the decoder, whose task is harder; the last layer
    rearranges channels to pixels (Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
    Sub-Pixel Convolutional Neural Network", CVPR 2016), so that no wide layer runs at full resolution.

Labels are optional. The encoder's head reads them after its features, the decoder after the latent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvNormAct, check_images
from models.generative import GenerativeConfig, check_labels, check_latents

ACTIVATION = partial(nn.SiLU, inplace=True)


@dataclass(frozen=True)
class AutoencoderConfig(GenerativeConfig):
    """`widths` are the channels after each halving of the encoder, in reverse for the decoder.

    Between map and latent are `layers` fully connected layers of the width `hidden`, none if that is 0; `blocks` counts
    the decoder's residual blocks at each size.
    """

    hidden: int = 256
    layers: int = 1
    blocks: int = 1


def _hidden(config: AutoencoderConfig, width: int) -> list[nn.Module]:
    """The fully connected layers; `width` is that of the input."""
    modules: list[nn.Module] = []
    for _ in range(config.layers if config.hidden else 0):
        modules += [nn.Linear(width, config.hidden), ACTIVATION()]
        width = config.hidden
    return modules


class ResidualUnit(nn.Module):
    """x + convolutions(x), [N, channels, H, W] to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormAct(channels, channels, 3, activation=ACTIVATION), ConvNormAct(channels, channels, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum, after the activation."""
        return F.silu(x + self.convs(x))


class Encoder(nn.Module):
    """[N, in_channels, S, S] with labels [N, num_classes] -> [N, outputs]."""

    def __init__(self, config: AutoencoderConfig, outputs: int):
        super().__init__()
        self.config = config
        channels, side = (config.in_channels, *config.widths), config.side
        self.features = nn.Sequential(
            *(
                ConvNormAct(before, after, 3, stride=2, activation=ACTIVATION)
                for before, after in itertools.pairwise(channels)
            )  # [N, widths[-1], side, side]
        )
        width = config.widths[-1] * side**2 + config.num_classes
        self.head = nn.Sequential(*_hidden(config, width), nn.Linear(config.hidden or width, outputs))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The outputs [N, outputs], from which the latent is computed."""
        check_images(images, self.config.in_channels, self.config.image_size, exact=True)
        check_labels(labels, len(images), self.config.num_classes)
        features = self.features(images).flatten(1)
        outputs: Tensor = self.head(torch.cat([features, labels.to(features.dtype)], dim=1))
        return outputs


class Decoder(nn.Module):
    """Latents [N, latent] with labels [N, num_classes] -> logits [N, in_channels, S, S]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        side, widths = config.side, config.widths[::-1]
        width = config.latent + config.num_classes
        self.head = nn.Sequential(
            *_hidden(config, width),
            nn.Linear(config.hidden or width, widths[0] * side**2),
            nn.Unflatten(1, (widths[0], side, side)),  # [N, widths[-1], side, side]
            ACTIVATION(),
        )
        stages: list[nn.Module] = [ResidualUnit(widths[0]) for _ in range(config.blocks)]
        for before, after in itertools.pairwise(widths):
            stages += [nn.Upsample(scale_factor=2), ConvNormAct(before, after, 3, activation=ACTIVATION)]
            stages += [ResidualUnit(after) for _ in range(config.blocks)]
        self.features = nn.Sequential(*stages)  # [N, widths[0], S/2, S/2]
        self.pixels = nn.Sequential(nn.Conv2d(widths[-1], 4 * config.in_channels, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Logits of the pixels."""
        check_latents(latents, labels, self.config)
        logits: Tensor = self.pixels(self.features(self.head(torch.cat([latents, labels.to(latents.dtype)], dim=1))))
        return logits


class Autoencoder(nn.Module):
    """Images [N, in_channels, S, S] in 0..1 with labels [N, num_classes] -> their reconstructions from a latent."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, config.latent)
        self.decoder = Decoder(config)

    def embed(self, images: Tensor, labels: Tensor) -> Tensor:
        """Latents [N, latent]."""
        latents: Tensor = self.encoder(images, labels)
        return latents

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [N, in_channels, S, S] in 0..1."""
        return torch.sigmoid(self.decoder(latents, labels))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Reconstructions [N, in_channels, S, S]."""
        return self.decode(self.embed(images, labels), labels)
