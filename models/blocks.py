"""Layers and checks that several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

# One or more numbers of channels. A config's types are checked by `models.registry.configure`.
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


def check_images(images: Tensor, channels: int, side: int, *, exact: bool = False) -> None:
    """Check that a batch is [N, channels, side, side]; unless `exact`, images may be larger.

    Raises:
        ValueError: if it is not; the message has the expected and the actual shape.
    """
    fits = all(length == side if exact else length >= side for length in images.shape[2:])
    if images.ndim != 4 or images.shape[1] != channels or not fits:
        expected = str(side) if exact else f">={side}"
        raise ValueError(f"expected images of shape [N, {channels}, {expected}, {expected}], got {list(images.shape)}")


class FixedSizeConfig:
    """Base of the configs of networks with one input size."""

    image_size: int

    @property
    def smallest(self) -> int:
        """Side in pixels of the input images."""
        return self.image_size


class FeaturesAndHead(nn.Module):
    """Base of networks that are `features` and a `head`: [N, in_channels, H, W] -> [N, outputs].

    Images may be larger than `config.smallest` unless the config is a `FixedSizeConfig`.
    """

    def __init__(self, config: Any, features: nn.Module, head: nn.Module):
        super().__init__()
        self.config = config
        self.features = features
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, num_classes] of a classifier, embeddings [N, dimensions] of an embedder.

        Raises:
            ValueError: if images have a wrong shape.
        """
        exact = isinstance(self.config, FixedSizeConfig)
        check_images(images, self.config.in_channels, self.config.smallest, exact=exact)
        outputs: Tensor = self.head(self.features(images))
        return outputs


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch normalisation, activation: [N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)].

    `conv` is the class of the convolution; networks with another padding rule pass their own.
    """

    def __init__(  # noqa: PLR0913  the settings of a convolution
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        activation: Callable[[], nn.Module] | None = None,
        conv: Callable[..., nn.Conv2d] = nn.Conv2d,
    ) -> None:
        layers: list[nn.Module] = [
            conv(
                in_channels,
                out_channels,
                kernel_size,
                stride=stride,
                padding=(kernel_size - 1) // 2,
                groups=groups,
                bias=False,
            ),
            norm(out_channels),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output ceil(size / stride), odd padding at the right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]."""
        return F.conv2d(self.pad(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, in, H + pads, W + pads], zeros around it."""
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)


class StochasticDepth(nn.Module):
    """In training, set each image's maps [N, C, H, W] to zero with probability `p`, and scale the others up.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016; scaled as dropout, so that nothing changes in use.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        if not self.training or not self.p:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1, 1), self.p)


def hidden_layers(
    widths: Sequence[int], activation: Callable[[], nn.Module], dropout: float, *, drop_inputs: bool = False
) -> list[nn.Module]:
    """Fully connected layers of `widths`, the first of which is the input's: [N, widths[0]] -> [N, widths[-1]].

    Dropout acts between the layers, with `drop_inputs` before the first, too.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        if layers or drop_inputs:
            layers.append(nn.Dropout(dropout))
        layers += [nn.Linear(inputs, outputs), activation()]
    return layers


def round_channels(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, at least `divisor`, never more than 10 % below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
