"""DenseNet: Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks", CVPR 2017.

Input [N, in_channels, H, W], output [N, num_classes]. DenseNet-121 to 264 are the paper's ImageNet networks (table 1;
H, W >= 32, designed for 224); `densenet40` (k = 12) and `densenet-bc-100` (k = 12) are two of its CIFAR networks
(table 2; H, W >= 4, designed for 32).

Connections: in a block of L layers each layer reads all earlier layers, L(L-1)/2 direct connections between layers.
The paper counts L(L+1)/2, including the L connections from the block's input.

Deviations: none in the layers. The paper's own depths (6, 12, 64, 48) give 265 layers with weights, not 264.
Dropout follows every convolution but the first, as in the paper; torchvision drops a layer's output only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.blocks import FeaturesAndHead, Widths

# Output channels of a bottleneck's 1x1 convolution per channel that the layer adds.
BOTTLENECK_WIDTH = 4


@dataclass(frozen=True)
class DenseNetConfig:
    """The defaults are DenseNet-121. `depths` counts the layers of each block, `growth` (k) the channels each adds.

    `stem`: `imagenet` is 7x7 with stride 2 and a 3x3 max-pool with stride 2, `small` one 3x3 convolution,
    `small-pool` is `small` and a 2x2 max-pool.
    `compression` (theta) is the share of channels that a transition between two blocks keeps, above 0 and at most 1.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    depths: Widths = (6, 12, 24, 16)
    growth: int = 32
    stem: Literal["imagenet", "small", "small-pool"] = "imagenet"
    stem_channels: int = 64
    bottleneck: bool = True
    compression: Annotated[float, Field(gt=0, le=1)] = 0.5
    drop_rate: float = 0.0

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that every transition can halve."""
        return 1 << (len(self.depths) - 1 + {"imagenet": 2, "small": 0, "small-pool": 1}[self.stem])


def _norm_act_conv(in_channels: int, out_channels: int, kernel_size: int, drop_rate: float) -> list[nn.Module]:
    """Batch norm, ReLU, then the convolution: [N, in, H, W] -> [N, out, H, W]."""
    return [
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.Dropout(drop_rate),
    ]


class DenseLayer(nn.Sequential):
    """The channels that a layer adds: [N, in, H, W] -> [N, growth, H, W]."""

    def __init__(self, config: DenseNetConfig, in_channels: int):
        layers: list[nn.Module] = []
        if config.bottleneck:
            width = BOTTLENECK_WIDTH * config.growth
            layers += _norm_act_conv(in_channels, width, 1, config.drop_rate)  # [N, 4 growth, H, W]
            in_channels = width
        super().__init__(*layers, *_norm_act_conv(in_channels, config.growth, 3, config.drop_rate))


class DenseBlock(nn.ModuleList):
    """Every layer reads the block's input and all earlier layers: [N, in, H, W] -> [N, in + depth * growth, H, W]."""

    def __init__(self, config: DenseNetConfig, in_channels: int, depth: int):
        super().__init__(DenseLayer(config, in_channels + i * config.growth) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """The input, then every layer's channels."""
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def _stem(config: DenseNetConfig) -> list[nn.Module]:
    channels = config.stem_channels
    if config.stem != "imagenet":
        convolution = nn.Conv2d(config.in_channels, channels, 3, padding=1, bias=False)  # [N, stem, H, W]
        return [convolution] if config.stem == "small" else [convolution, nn.MaxPool2d(2)]
    return [
        nn.Conv2d(config.in_channels, channels, 7, stride=2, padding=3, bias=False),  # [N, stem, H/2, W/2]
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),  # [N, stem, H/4, W/4]
    ]


def _blocks(config: DenseNetConfig) -> tuple[list[nn.Module], int]:
    """The dense blocks with transitions between them, and the output channels of the last."""
    layers: list[nn.Module] = []
    channels = config.stem_channels
    for number, depth in enumerate(config.depths):
        if number:
            compressed = int(channels * config.compression)
            layers += _norm_act_conv(channels, compressed, 1, config.drop_rate)
            layers.append(nn.AvgPool2d(2))  # [N, compressed, H/2, W/2]
            channels = compressed
        layers.append(DenseBlock(config, channels, depth))
        channels += depth * config.growth
    return layers, channels


class DenseNet(FeaturesAndHead):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`."""

    features: nn.Sequential

    def __init__(self, config: DenseNetConfig):
        stem = _stem(config)
        blocks, channels = _blocks(config)
        super().__init__(
            config,
            nn.Sequential(
                *stem,  # [N, stem, H/4, W/4]; small: H, W
                *blocks,  # [N, channels, H/32, W/32]; small: a half for each block but the first
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),  # [N, channels]
            ),
            nn.Linear(channels, config.num_classes),
        )
        self.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-in), as in He et al. 2015; the classifier's biases are zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


_CIFAR = DenseNetConfig(num_classes=10, image_size=32, growth=12, stem="small")

VARIANTS = {
    "densenet121": DenseNetConfig(depths=(6, 12, 24, 16)),
    "densenet169": DenseNetConfig(depths=(6, 12, 32, 32)),
    "densenet201": DenseNetConfig(depths=(6, 12, 48, 32)),
    "densenet264": DenseNetConfig(depths=(6, 12, 64, 48)),
    "densenet40": replace(_CIFAR, depths=(12,) * 3, stem_channels=16, bottleneck=False, compression=1.0),
    "densenet-bc-100": replace(_CIFAR, depths=(16,) * 3, stem_channels=24),
}
