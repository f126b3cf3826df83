"""Embedders: a picture, or anything else, to a point on the unit sphere, where near means alike.

FaceResNet, a compact backbone for aligned faces on a CPU. The blocks are those of He, Zhang, Ren, Sun, "Deep Residual
Learning for Image Recognition", CVPR 2016; that a weight for each place of the last map replaces average pooling is
the global depthwise convolution of Chen, Liu, Gao, Han, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face
Verification on Mobile Devices", CCBR 2018: in an aligned crop a place is a part of the face.
    Input [N, in_channels, S, S] with S = `image_size`, made for 112; output [N, num_classes].
    Deviations: plain 3x3 convolutions where MobileFaceNets has depthwise ones, which train slowly on CPUs; ReLU where
    it has PReLU; a stem of stride 2 and no pooling, the ResNet's being made for pictures twice as wide.

Embedder: the features of a network of the registry, and a head of one linear layer and a batch norm, as option E of
Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, then division by the length.
    Input [N, in_channels, S, S], output [N, dimensions], each row of length 1.

SiameseNetwork (Bromley et al., "Signature Verification using a 'Siamese' Time Delay Neural Network", NIPS 1993) and
TripletNetwork (Hoffer, Ailon, "Deep Metric Learning Using Triplet Network", SIMBAD 2015) hold one module and show it
two or three inputs. They do not know what the inputs are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvNormAct, check_images
from models.resnet import RELU, ResidualBlock, ResNetConfig


@dataclass(frozen=True)
class FaceResNetConfig:
    """The defaults have 3.1 M parameters and 427 M multiplications with their additions at 112x112, 139 M at 64x64.

    `depths` counts the blocks of each stage, `widths` their channels.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 112
    depths: tuple[int, ...] = (1, 2, 3, 2)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    dropout: float = 0.0

    @property
    def smallest(self) -> int:
        """The side in pixels of the pictures it reads."""
        return self.image_size


class GlobalDepthwise(nn.Module):
    """A depthwise convolution as large as the map; it starts as average pooling."""

    def __init__(self, channels: int, side: int, *, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, side, side), 1 / side**2))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, side, side] -> [N, channels]."""
        # The same numbers as F.conv2d with groups=channels, which is slow on CPUs for a kernel this large.
        pooled = (x * self.weight).sum(dim=(2, 3))
        return pooled if self.bias is None else pooled + self.bias


class FaceResNet(nn.Module):
    """[N, in_channels, S, S] -> logits [N, num_classes], S = `config.image_size`."""

    def __init__(self, config: FaceResNetConfig):
        super().__init__()
        if not config.depths or len(config.depths) != len(config.widths) or min(config.depths + config.widths) < 1:
            raise ValueError(f"depths {config.depths} and widths {config.widths} need one number >= 1 for each stage")
        self.config = config
        halvings = len(config.widths)  # by the stem and by every stage but the first
        side = math.ceil(config.image_size / 2**halvings)
        width = config.widths[-1]
        self.features = nn.Sequential(
            ConvNormAct(config.in_channels, config.widths[0], 3, stride=2, activation=RELU),  # [N, 32, 56, 56]
            *_face_stages(config),  # [N, 256, 7, 7]
            GlobalDepthwise(width, side),  # [N, 256]
            nn.BatchNorm1d(width),
        )
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(width, config.num_classes))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        check_images(images, self.config.in_channels, self.config.image_size, exact=True)
        logits: Tensor = self.head(self.features(images))
        return logits


def _face_stages(config: FaceResNetConfig) -> list[nn.Module]:
    """Every stage but the first begins with a block of stride 2."""
    form = ResNetConfig(block="basic")
    stages: list[nn.Module] = []
    channels = config.widths[0]
    for number, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        blocks = []
        for block in range(depth):
            blocks.append(ResidualBlock(form, channels, width, stride=2 if number and not block else 1))
            channels = width
        stages.append(nn.Sequential(*blocks))
    return stages


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out), as in `models.resnet`."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class EmbedderConfig:
    """`backbone` is a name of the registry, `backbone_config` changes to its config.

    Channels and size are the embedder's own and are handed on, so they cannot stand in `backbone_config`.
    """

    backbone: str = "face-resnet"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    dimensions: int = 128
    in_channels: int = 3
    image_size: int = 112
    dropout: float = 0.0

    @property
    def smallest(self) -> int:
        """The side in pixels of the pictures it reads."""
        return self.image_size


class UnitSphere(nn.Module):
    """x / |x| for each row, in float32 or better; a row of zeros stays as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=1e-6)


class Embedder(nn.Module):
    """[N, in_channels, S, S] -> [N, dimensions] on the unit sphere, S = `config.image_size`.

    Of `backbone`, any network with `features`, nothing else is kept: the classes' head would be dead weight.
    """

    def __init__(self, config: EmbedderConfig, backbone: nn.Module):
        super().__init__()
        self.config = config
        self.features = backbone.get_submodule("features")  # [N, D]
        shape = (config.in_channels, config.image_size, config.image_size)
        self.head = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(_feature_count(self.features, shape), config.dimensions, bias=False),  # [N, dimensions]
            nn.BatchNorm1d(config.dimensions),
            UnitSphere(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [N, dimensions], each of length 1."""
        check_images(images, self.config.in_channels, self.config.image_size, exact=True)
        embeddings: Tensor = self.head(self.features(images))
        return embeddings


@torch.no_grad()
def _feature_count(features: nn.Module, shape: tuple[int, int, int]) -> int:
    """D of `features`: [N, *shape] -> [N, D], without computing anything."""
    ghost = copy.deepcopy(features).to("meta").eval()
    answer: Tensor = ghost(torch.empty(1, *shape, device="meta"))
    return answer.shape[1]


class SiameseNetwork(nn.Module):
    """One network, two inputs. Its state is that of `network`, whose weights get the sum of both inputs' gradients.

    With `together` the inputs go through as one batch, so that a batch norm sees all of them; without it one after the
    other, which inputs of different shapes need. What is saved and served is `network`.
    """

    def __init__(self, network: nn.Module, *, together: bool = True):
        super().__init__()
        self.network = network
        self.together = together

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [N, ...] and [M, ...], as the network takes them -> embeddings [N, D] and [M, D]."""
        one, two = _embed(self.network, (first, second), together=self.together)
        return one, two


class TripletNetwork(nn.Module):
    """One network, three inputs: anchor, positive, negative. All else is as in `SiameseNetwork`."""

    def __init__(self, network: nn.Module, *, together: bool = True):
        super().__init__()
        self.network = network
        self.together = together

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [N, ...], as the network takes them -> embeddings [N, D] of each."""
        one, two, three = _embed(self.network, (anchor, positive, negative), together=self.together)
        return one, two, three


def _embed(network: nn.Module, inputs: tuple[Tensor, ...], *, together: bool) -> tuple[Tensor, ...]:
    if not together:
        return tuple(network(part) for part in inputs)
    return torch.split(network(torch.cat(inputs)), [len(part) for part in inputs])
