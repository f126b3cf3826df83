"""Shared by networks that output images: their protocols, their latents, and the submodels that are served.

Latents are float32 [N, latent], one-hot labels float32 [N, num_classes] ([N, 0] without labels), images
float32 [N, C, H, W] in the units of the card's `Preprocess`.

A submodel has one input tensor and one output tensor, so that any runtime can run it and a batcher can queue its items.
Labels are part of the input: concatenated to the latents, or planes after the channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

# SeedSequence distinguishes the samples of a seed by a 32-bit word.
MAX_INDEX = 2**32 - 1
MAX_SEED = 2**64 - 1


def smallest_side(image_size: int, halvings: int) -> int:
    """The side of the map to which `halvings`, at least one, reduce an image of `image_size` pixels.

    Raises:
        ValueError: if it is not a whole number of pixels, or there are no halvings.
    """
    side, rest = divmod(image_size, 1 << halvings)
    if rest or not side or not halvings:
        raise ValueError(f"{image_size} pixels cannot be halved {halvings} times, at least once")
    return side


@dataclass(frozen=True)
class GenerativeConfig:
    """Base of the configs: `image_size` is the side of an image, `latent` the dimensions of a latent.

    `num_classes` is the width of a label, 0 without labels. `widths` are the channels of the maps, each of which has
    half or twice the side of its predecessor.
    """

    in_channels: int = 1
    image_size: int = 28
    latent: int = 32
    num_classes: int = 0
    widths: tuple[int, ...] = (32, 64)

    @property
    def side(self) -> int:
        """Side of the smallest map; ValueError if `image_size` cannot be halved that often."""
        return smallest_side(self.image_size, len(self.widths))


@runtime_checkable
class SupportsDecode(Protocol):
    """A network that generates images from latents."""

    @property
    def config(self) -> GenerativeConfig:
        """The network's settings."""
        ...

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """[N, latent], [N, num_classes] -> images [N, C, H, W]."""
        ...


@runtime_checkable
class SupportsEncode(Protocol):
    """A network that maps images to latents."""

    @property
    def config(self) -> GenerativeConfig:
        """The network's settings."""
        ...

    def embed(self, images: Tensor, labels: Tensor) -> Tensor:
        """[N, C, H, W], [N, num_classes] -> latents [N, latent]; the mean if they are a distribution."""
        ...


def latents(seed: int, index: int, dimensions: int) -> Tensor:
    """The latent of a sample, N(0, 1), float32 [dimensions], on the CPU: a function of its arguments only.

    Sample `index` of a seed does not depend on the number of samples, the batch or the process.

    Raises:
        ValueError: `seed` outside 0..MAX_SEED, `index` outside 0..MAX_INDEX, or `dimensions` below 1.
    """
    if not 0 <= seed <= MAX_SEED or not 0 <= index <= MAX_INDEX or dimensions < 1:
        raise ValueError(
            f"expected a seed in 0..{MAX_SEED}, an index in 0..{MAX_INDEX} and dimensions >= 1, "
            f"got {seed}, {index} and {dimensions}"
        )
    # A spawn key is separate from the seed's words; with [seed, index] as entropy, two pairs could coincide.
    source = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index,)))
    return torch.from_numpy(np.random.Generator(source).standard_normal(dimensions, dtype=np.float32))


def check_latents(latents: Tensor, labels: Tensor, config: GenerativeConfig) -> None:
    """Check that latents are [N, latent] and labels [N, num_classes].

    Raises:
        ValueError: if they are not; the message has the expected and the actual shape.
    """
    if latents.ndim != 2 or latents.shape[1] != config.latent:
        raise ValueError(f"expected latents of shape [N, {config.latent}], got {list(latents.shape)}")
    check_labels(labels, len(latents), config.num_classes)


def check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    """Check that labels are [count, num_classes].

    Raises:
        ValueError: if they are not; the message has the expected and the actual shape.
    """
    if tuple(labels.shape) != (count, num_classes):
        raise ValueError(f"expected labels of shape [{count}, {num_classes}], got {list(labels.shape)}")


def with_label_planes(images: Tensor, labels: Tensor) -> Tensor:
    """[N, C, H, W], [N, K] -> [N, C + K, H, W], the input of encoder and reconstruction submodels."""
    planes = labels[:, :, None, None].expand(-1, -1, *images.shape[2:])
    return torch.cat([images, planes.to(images.dtype)], dim=1)


def _split(planes: Tensor, config: GenerativeConfig) -> tuple[Tensor, Tensor]:
    """The inverse of `with_label_planes`: images and labels.

    Raises:
        ValueError: if the number of channels differs.
    """
    channels = config.in_channels + config.num_classes
    if planes.ndim != 4 or planes.shape[1] != channels:
        raise ValueError(f"expected images of shape [N, {channels}, H, W], got {list(planes.shape)}")
    return planes[:, : config.in_channels], planes[:, config.in_channels :, 0, 0]


class DecoderSubmodel(nn.Module):
    """[N, latent + num_classes] -> images [N, C, H, W].

    Raises:
        ValueError: if the network has no `decode`; at a call, if the width differs.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, SupportsDecode):
            raise ValueError(f"{type(network).__name__} does not decode")
        self.network = network

    def forward(self, items: Tensor) -> Tensor:
        """Images from latents with labels concatenated."""
        latent = self.network.config.latent
        return self.network.decode(items[..., :latent], items[..., latent:])


class EncoderSubmodel(nn.Module):
    """[N, C + num_classes, H, W], see `with_label_planes` -> latents [N, latent].

    Raises:
        ValueError: if the network has no `embed`; at a call, if the shape differs.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, SupportsEncode):
            raise ValueError(f"{type(network).__name__} does not encode")
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Latents of images with label planes."""
        return self.network.embed(*_split(planes, self.network.config))


class ReconstructionSubmodel(nn.Module):
    """[N, C + num_classes, H, W], see `with_label_planes` -> reconstructions [N, C, H, W] from their latents.

    Raises:
        ValueError: if the network has no `embed` or `decode`; at a call, if the shape differs.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.encoder, self.decoder = EncoderSubmodel(network), DecoderSubmodel(network)

    def forward(self, planes: Tensor) -> Tensor:
        """Reconstructions of images with label planes."""
        _, labels = _split(planes, self.encoder.network.config)
        images: Tensor = self.decoder(torch.cat([self.encoder(planes), labels], dim=1))
        return images
