"""ResNet: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

Input [N, in_channels, H, W], output [N, num_classes]. ResNet-18 to 152 are the paper's ImageNet networks (table 1;
H, W >= 32, designed for 224), ResNet-20 to 110 its CIFAR networks of 6n + 2 layers (section 4.2; H, W >= 8, designed
for 32). `plain` removes the shortcuts and nothing else, for the paper's control experiment.

Deviations: a bottleneck that downsamples has its stride in the 3x3 convolution, not in the first 1x1, as
torchvision's weights require. Stems, widths and depths of the small form are settings, so that a wide and shallow
network for CIFAR is a configuration, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvNormAct, FeaturesAndHead, Widths

RELU = partial(nn.ReLU, inplace=True)


@dataclass(frozen=True)
class ResNetConfig:
    """The defaults are ResNet-50. `depths` counts the blocks of each stage, `widths` their 3x3 convolutions' channels.

    `stem`: `imagenet` is 7x7 with stride 2 and a 3x3 max-pool, `small` one 3x3 convolution of `widths[0]` channels,
    `small-pool` is `small` and a 2x2 max-pool. `shortcut` is the skip of a block that changes shapes: the paper's
    option B, a 1x1 `projection`, or its option A, `pad`: every second pixel and channels of zeros.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    block: Literal["basic", "bottleneck"] = "bottleneck"
    depths: Widths = (3, 4, 6, 3)
    widths: Widths = (64, 128, 256, 512)
    stem: Literal["imagenet", "small", "small-pool"] = "imagenet"
    shortcut: Literal["projection", "pad"] = "projection"
    plain: bool = False
    dropout: float = 0.0

    @property
    def expansion(self) -> int:
        """Output channels of a block per channel of its width."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that every stage can halve."""
        return 1 << (len(self.widths) + {"imagenet": 1, "small": 0, "small-pool": 1}[self.stem])


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros in new channels. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]."""
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)), batch norm after each convolution; without the sum in a plain network."""

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * config.expansion
        if config.block == "basic":
            self.branch = nn.Sequential(
                ConvNormAct(in_channels, width, 3, stride=stride, activation=RELU),  # [N, width, H/s, W/s]
                ConvNormAct(width, width, 3),
            )
        else:
            self.branch = nn.Sequential(
                ConvNormAct(in_channels, width, 1, activation=RELU),  # [N, width, H, W]
                ConvNormAct(width, width, 3, stride=stride, activation=RELU),  # [N, width, H/s, W/s]
                ConvNormAct(width, out_channels, 1),  # [N, 4 width, H/s, W/s]
            )
        self.shortcut = None if config.plain else _shortcut(config, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, width * expansion, ceil(H/s), ceil(W/s)]."""
        y: Tensor = self.branch(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=True)


def _shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if config.shortcut == "projection":
        return ConvNormAct(in_channels, out_channels, 1, stride=stride)
    return PadShortcut(in_channels, out_channels, stride)


def _stem(config: ResNetConfig) -> list[nn.Module]:
    width = config.widths[0]
    if config.stem == "imagenet":
        return [
            ConvNormAct(config.in_channels, width, 7, stride=2, activation=RELU),  # [N, 64, H/2, W/2]
            nn.MaxPool2d(3, stride=2, padding=1),  # [N, 64, H/4, W/4]
        ]
    convolution = ConvNormAct(config.in_channels, width, 3, activation=RELU)  # [N, width, H, W]
    return [convolution] if config.stem == "small" else [convolution, nn.MaxPool2d(2)]


def residual_stages(config: ResNetConfig, depths: tuple[int, ...], widths: tuple[int, ...]) -> list[nn.Module]:
    """Stages of residual blocks for `widths[0]` input channels; each but the first begins with a block of stride 2.

    Raises:
        ValueError: if depths and widths differ in length.
    """
    if len(depths) != len(widths):
        raise ValueError(f"depths {depths} and widths {widths} need one number for each stage")
    stages: list[nn.Module] = []
    channels = widths[0]
    for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        blocks = []
        for block in range(depth):
            blocks.append(ResidualBlock(config, channels, width, stride=2 if number and not block else 1))
            channels = width * config.expansion
        stages.append(nn.Sequential(*blocks))
    return stages


class ResNet(FeaturesAndHead):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`."""

    def __init__(self, config: ResNetConfig):
        if config.shortcut == "pad" and config.block == "basic" and list(config.widths) != sorted(config.widths):
            raise ValueError(f"a padded shortcut cannot reduce channels, got widths {config.widths}")
        width = config.widths[-1] * config.expansion
        super().__init__(
            config,
            nn.Sequential(
                *_stem(config),  # [N, widths[0], H/4, W/4]; small: H, W
                # [N, width, H/32, W/32]; small: a half for each stage but the first
                *residual_stages(config, config.depths, config.widths),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),  # [N, width]
            ),
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, config.num_classes)),
        )
        self.apply(initialise)


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), as in He et al. 2015 and the released code; the rest as torch's default."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _cifar(layers: int) -> ResNetConfig:
    """6n + 2 layers: n basic blocks in each of three stages of 16, 32 and 64 channels."""
    return ResNetConfig(
        num_classes=10,
        image_size=32,
        block="basic",
        depths=((layers - 2) // 6,) * 3,
        widths=(16, 32, 64),
        stem="small",
        shortcut="pad",
    )


VARIANTS = {
    "resnet18": ResNetConfig(block="basic", depths=(2, 2, 2, 2)),
    "resnet34": ResNetConfig(block="basic", depths=(3, 4, 6, 3)),
    "resnet50": ResNetConfig(depths=(3, 4, 6, 3)),
    "resnet101": ResNetConfig(depths=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(depths=(3, 8, 36, 3)),
    **{f"resnet{layers}": _cifar(layers) for layers in (20, 32, 56, 110)},
}
