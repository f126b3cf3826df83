"""What networks that make pictures share: their abilities, their noise, and the parts of them that are served.

Latents are float32 [N, latent], labels one-hot float32 [N, num_classes] ([N, 0] where there are none), pictures
float32 [N, C, H, W] in the units of the card's `Preprocess`.

A served part is a module with ONE tensor in and one out, so that any runtime can hold it and a batcher can queue its
items one by one. Labels travel within that tensor: behind the latents, or as planes behind the channels.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

# SeedSequence tells samples of one seed apart by one 32-bit word.
MAX_INDEX = 2**32 - 1
MAX_SEED = 2**64 - 1


class GenerativeConfig(Protocol):
    """What the config of every network here says; `image_size` is the side in pixels, `num_classes` 0 for no labels."""

    @property
    def in_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        ...

    @property
    def image_size(self) -> int:
        """The side in pixels."""
        ...

    @property
    def latent(self) -> int:
        """Dimensions of a latent."""
        ...

    @property
    def num_classes(self) -> int:
        """Width of a label, 0 where there are none."""
        ...


@runtime_checkable
class Decodes(Protocol):
    """A network that draws pictures."""

    @property
    def config(self) -> GenerativeConfig:
        """Sizes."""
        ...

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """[N, latent], [N, num_classes] -> pictures [N, C, H, W]."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A network that reads pictures."""

    @property
    def config(self) -> GenerativeConfig:
        """Sizes."""
        ...

    def embed(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """[N, C, H, W], [N, num_classes] -> latents [N, latent]; of a distribution of them, the mean."""
        ...


def latents(seed: int, index: int, dimensions: int) -> Tensor:
    """The noise of one sample, N(0, 1), float32 [dimensions], on the CPU: a function of its arguments alone.

    So sample `index` of a seed is the same however many are drawn, in whatever batch, by whichever process.

    Raises:
        ValueError: a seed outside 0..MAX_SEED, an index outside 0..MAX_INDEX, or no dimensions.
    """
    if not 0 <= seed <= MAX_SEED or not 0 <= index <= MAX_INDEX or dimensions < 1:
        raise ValueError(
            f"expected a seed in 0..{MAX_SEED}, an index in 0..{MAX_INDEX} and dimensions >= 1, "
            f"got {seed}, {index} and {dimensions}"
        )
    # A spawn key stands apart from the seed's own words; [seed, index] as entropy would let two pairs be one.
    source = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index,)))
    return torch.from_numpy(np.random.Generator(source).standard_normal(dimensions, dtype=np.float32))


def no_labels(batch: Tensor) -> Tensor:
    """Labels [N, 0] beside a batch [N, ...]: what a network without classes is given."""
    return batch.new_zeros(len(batch), 0)


def check_latents(latents: Tensor, labels: Tensor, config: GenerativeConfig) -> None:
    """Refuse latents that are not [N, latent] or labels that are not [N, num_classes].

    Raises:
        ValueError: with the expected and the actual shapes.
    """
    if latents.ndim != 2 or latents.shape[1] != config.latent:
        raise ValueError(f"expected latents of shape [N, {config.latent}], got {list(latents.shape)}")
    check_labels(labels, len(latents), config)


def check_labels(labels: Tensor, count: int, config: GenerativeConfig) -> None:
    """Refuse labels that are not [count, num_classes].

    Raises:
        ValueError: with the expected and the actual shape.
    """
    if tuple(labels.shape) != (count, config.num_classes):
        raise ValueError(f"expected labels of shape [{count}, {config.num_classes}], got {list(labels.shape)}")


def with_label_planes(pictures: Tensor, labels: Tensor) -> Tensor:
    """[N, C, H, W], [N, K] -> [N, C + K, H, W]: what an `EncoderPart` or a `ReconstructPart` takes."""
    planes = labels[:, :, None, None].expand(-1, -1, *pictures.shape[2:])
    return torch.cat([pictures, planes.to(pictures.dtype)], dim=1)


def _split(planes: Tensor, config: GenerativeConfig) -> tuple[Tensor, Tensor]:
    """What `with_label_planes` put together.

    Raises:
        ValueError: another number of channels.
    """
    channels = config.in_channels + config.num_classes
    if planes.ndim != 4 or planes.shape[1] != channels:
        raise ValueError(f"expected images of shape [N, {channels}, H, W], got {list(planes.shape)}")
    return planes[:, : config.in_channels], planes[:, config.in_channels :, 0, 0]


class DecoderPart(nn.Module):
    """[N, latent + num_classes] -> pictures [N, C, H, W].

    Raises:
        ValueError: for a network that does not decode, and at a call for another width.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, Decodes):
            raise ValueError(f"{type(network).__name__} does not decode")
        self.network = network

    def forward(self, items: Tensor) -> Tensor:
        """Latents with the labels behind them -> pictures."""
        latent = self.network.config.latent
        if items.ndim != 2:
            raise ValueError(
                f"expected items of shape [N, {latent + self.network.config.num_classes}], got {list(items.shape)}"
            )
        return self.network.decode(items[:, :latent], items[:, latent:])


class EncoderPart(nn.Module):
    """[N, C + num_classes, H, W], see `with_label_planes` -> latents [N, latent].

    Raises:
        ValueError: for a network that does not encode, and at a call for another shape.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, Encodes):
            raise ValueError(f"{type(network).__name__} does not encode")
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Pictures with the label planes behind them -> latents."""
        return self.network.embed(*_split(planes, self.network.config))


class ReconstructPart(nn.Module):
    """[N, C + num_classes, H, W], see `with_label_planes` -> pictures [N, C, H, W] by way of their latents.

    Raises:
        ValueError: for a network that does not encode and decode, and at a call for another shape.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.encoder, self.decoder = EncoderPart(network), DecoderPart(network)

    def forward(self, planes: Tensor) -> Tensor:
        """Pictures with the label planes behind them -> what the decoder makes of their latents."""
        _, labels = _split(planes, self.encoder.network.config)
        pictures: Tensor = self.decoder(torch.cat([self.encoder(planes), labels], dim=1))
        return pictures
