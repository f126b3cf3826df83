"""Embedders: networks that map an image, or another input, to a point on the unit sphere; similar inputs lie close.

FaceResNet, a compact backbone for aligned faces on a CPU. The blocks are those of He, Zhang, Ren, Sun, "Deep Residual
Learning for Image Recognition", CVPR 2016. The global depthwise convolution of Chen, Liu, Gao, Han, "MobileFaceNets:
Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices", CCBR 2018, replaces average pooling: each
position of the last map has a weight, since in an aligned crop it is a part of the face.
    Input [N, in_channels, S, S] with S = `image_size`, designed for 112; output [N, num_classes].
    Deviations: full 3x3 convolutions where MobileFaceNets has depthwise ones, which train slowly on CPUs; ReLU where it
    has PReLU; a stem of stride 2 and no pooling, since the ResNet's stem is for images twice as wide.

Embedder: the features of a network of the registry, and a head of a linear layer and a batch norm, as option E of
Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, then division by the length.
    Input [N, in_channels, S, S], output [N, dimensions], each row of length 1.

SiameseNetwork applies one module to several inputs of any kind: two in Bromley et al., "Signature Verification using a
'Siamese' Time Delay Neural Network", NIPS 1993; three in Hoffer, Ailon, "Deep Metric Learning Using Triplet Network",
SIMBAD 2015.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvNormAct, FeaturesAndHead, FixedSizeConfig, Widths
from models.resnet import RELU, ResNetConfig, initialise, residual_stages


@dataclass(frozen=True)
class FaceResNetConfig(FixedSizeConfig):
    """The defaults have 3.1 M parameters and 427 M multiply-accumulates at 112x112, 139 M at 64x64.

    `depths` counts the blocks of each stage, `widths` their channels.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 112
    depths: Widths = (1, 2, 3, 2)
    widths: Widths = (32, 64, 128, 256)
    dropout: float = 0.0


class GlobalDepthwise(nn.Module):
    """A depthwise convolution as large as the map, initialised as average pooling."""

    def __init__(self, channels: int, side: int, *, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, side, side), 1 / side**2))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, side, side] -> [N, channels]."""
        # Equal to F.conv2d with groups=channels, which is slow on CPUs for a kernel of this size.
        pooled = (x * self.weight).sum(dim=(2, 3))
        return pooled if self.bias is None else pooled + self.bias


class FaceResNet(FeaturesAndHead):
    """[N, in_channels, S, S] -> logits [N, num_classes], S = `config.image_size`."""

    def __init__(self, config: FaceResNetConfig):
        halvings = len(config.widths)  # by the stem and by every stage but the first
        side = math.ceil(config.image_size / 2**halvings)
        width = config.widths[-1]
        super().__init__(
            config,
            nn.Sequential(
                ConvNormAct(config.in_channels, config.widths[0], 3, stride=2, activation=RELU),  # [N, 32, 56, 56]
                *residual_stages(ResNetConfig(block="basic"), config.depths, config.widths),  # [N, 256, 7, 7]
                GlobalDepthwise(width, side),  # [N, 256]
                nn.BatchNorm1d(width),
            ),
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, config.num_classes)),
        )
        self.apply(initialise)


@dataclass(frozen=True)
class EmbedderConfig(FixedSizeConfig):
    """`backbone` is a name of the registry, `backbone_config` overrides settings of its config.

    Channels and size are passed on from the embedder, so `backbone_config` cannot have them.
    """

    backbone: str = "face-resnet"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    dimensions: int = 128
    in_channels: int = 3
    image_size: int = 112
    dropout: float = 0.0


class UnitSphere(nn.Module):
    """x / |x| for each row, in float32 or better; a row of zeros is unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=1e-6)


class Embedder(FeaturesAndHead):
    """[N, in_channels, S, S] -> [N, dimensions] on the unit sphere, S = `config.image_size`.

    Of `backbone`, a network with `features`, only the features are kept.
    """

    def __init__(self, config: EmbedderConfig, backbone: nn.Module):
        features = backbone.get_submodule("features")  # [N, D]
        shape = (config.in_channels, config.image_size, config.image_size)
        super().__init__(
            config,
            features,
            nn.Sequential(
                nn.Dropout(config.dropout),
                nn.Linear(_feature_count(features, shape), config.dimensions, bias=False),  # [N, dimensions]
                nn.BatchNorm1d(config.dimensions),
                UnitSphere(),
            ),
        )


@torch.no_grad()
def _feature_count(features: nn.Module, shape: tuple[int, int, int]) -> int:
    """D of `features`: [N, *shape] -> [N, D], found on the meta device."""
    shapes_only = copy.deepcopy(features).to("meta").eval()
    output: Tensor = shapes_only(torch.empty(1, *shape, device="meta"))
    return output.shape[1]


class SiameseNetwork(nn.Module):
    """Applies one network to several inputs; its weights get the sum of all inputs' gradients.

    With `single_batch` the inputs are one batch, over which a batch norm takes its statistics; without it they run one
    after the other, as inputs of different shapes must. `network` is saved and served.
    """

    def __init__(self, network: nn.Module, *, single_batch: bool = True):
        super().__init__()
        self.network = network
        self.single_batch = single_batch

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs [N, ...], [M, ...], as the network takes them -> embeddings [N, D], [M, D] in the same order."""
        if not self.single_batch:
            return tuple(self.network(batch) for batch in inputs)
        return torch.split(self.network(torch.cat(inputs)), [len(batch) for batch in inputs])
