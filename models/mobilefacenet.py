"""MobileFaceNet: Chen, Liu, Gao, Han, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
Mobile Devices", CCBR 2018 (arXiv 1804.07573).

Input [N, in_channels, 112, 112], an aligned face; output [N, dimensions], each row of length 1. MobileNetV2's inverted
residuals (Sandler et al., CVPR 2018) with PReLU, and a global depthwise convolution in place of average pooling: in an
aligned crop each position of the last map is a part of the face, so each position has a weight of its own.

Deviations, all as in the published weights of sirius-ai/MobileFaceNet_TF: TensorFlow's SAME padding; a linear 1x1
convolution after the first depthwise one; one more linear layer of 512 before the embedding; 192 dimensions (paper:
128). With `norm=False` every convolution has a bias and no batch normalisation, which is folded into the published
file's weights. The division by the length is part of the network.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from models.blocks import FeaturesAndHead, FixedSizeConfig, SameConv2d
from models.embedder import GlobalDepthwise, UnitSphere

# Table 1 of the paper: expansion t, output channels c, blocks n, stride s of the first block.
STAGES = (
    (2, 64, 5, 2),
    (4, 128, 1, 2),
    (2, 128, 6, 1),
    (4, 128, 1, 2),
    (2, 128, 2, 1),
)
STEM_CHANNELS = 64
LAST_CHANNELS = 512
STRIDE = 16  # of the whole network: 112 pixels become a 7x7 map


@dataclass(frozen=True)
class MobileFaceNetConfig(FixedSizeConfig):
    """The published variant: 1.3 M parameters and 0.2 G multiplications with their additions at 112x112.

    `norm`: batch normalisation after each convolution; False: a bias instead.
    """

    dimensions: int = 192
    in_channels: int = 3
    image_size: Annotated[int, Field(ge=STRIDE, multiple_of=STRIDE)] = 112
    norm: bool = True


def _conv(
    config: MobileFaceNetConfig, inputs: int, outputs: int, kernel: int, *, stride: int = 1, linear: bool = False
) -> nn.Sequential:
    """Convolution (depthwise where `kernel` > 1 keeps the channels), batch norm or bias, PReLU unless `linear`."""
    depthwise = kernel > 1 and inputs == outputs
    conv = partial(SameConv2d, stride=stride) if stride > 1 else partial(nn.Conv2d, padding=kernel // 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = conv(inputs, outputs, kernel, groups=inputs if depthwise else 1, bias=not config.norm)
    if config.norm:
        layers["norm"] = nn.BatchNorm2d(outputs)
    if not linear:
        layers["prelu"] = nn.PReLU(outputs)
    return nn.Sequential(layers)


class Bottleneck(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (linear); a skip if shapes agree.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride].
    """

    def __init__(self, config: MobileFaceNetConfig, inputs: int, outputs: int, expansion: int, stride: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv(config, inputs, wide, 1)
        self.depthwise = _conv(config, wide, wide, 3, stride=stride)
        self.project = _conv(config, wide, outputs, 1, linear=True)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EmbeddingHead(nn.Module):
    """Global depthwise convolution, two linear layers, division by the length: [N, 512, S, S] -> [N, dimensions]."""

    def __init__(self, config: MobileFaceNetConfig):
        super().__init__()
        width, bias = LAST_CHANNELS, not config.norm
        layers: list[nn.Module] = [GlobalDepthwise(width, config.image_size // STRIDE, bias=bias)]  # [N, 512]
        for outputs in (width, config.dimensions):
            if config.norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.Linear(width, outputs, bias=bias))
        if config.norm:
            layers.append(nn.BatchNorm1d(config.dimensions))
        self.layers = nn.Sequential(*layers, UnitSphere())

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        embeddings: Tensor = self.layers(x)
        return embeddings


class MobileFaceNet(FeaturesAndHead):
    """[N, in_channels, S, S] -> embeddings [N, dimensions] of length 1, S = `config.image_size`."""

    def __init__(self, config: MobileFaceNetConfig):
        stem = STEM_CHANNELS
        blocks: list[nn.Module] = []
        channels = stem
        for expansion, width, count, stride in STAGES:
            for block in range(count):
                blocks.append(Bottleneck(config, channels, width, expansion, stride if not block else 1))
                channels = width
        super().__init__(
            config,
            nn.Sequential(
                _conv(config, config.in_channels, stem, 3, stride=2),  # [N, 64, 56, 56]
                _conv(config, stem, stem, 3),  # [N, 64, 56, 56]
                _conv(config, stem, stem, 1, linear=True),  # [N, 64, 56, 56]
                *blocks,  # [N, 128, 7, 7]
                _conv(config, channels, LAST_CHANNELS, 1),  # [N, 512, 7, 7]
            ),
            EmbeddingHead(config),
        )
        self.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), biases 0; PReLU slopes 0.25 as in its paper (He et al., ICCV 2015)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
