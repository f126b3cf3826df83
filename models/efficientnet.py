"""EfficientNet: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.

Input [N, in_channels, >=32, >=32], output [N, num_classes]. The base network (B0) was found by an architecture search
for accuracy and cost; B1 to B7 scale its depth, width and resolution at once (equation 3, rounded by hand).

Lite0 to Lite4 (Google, 2020) leave out squeeze-and-excitation, use ReLU6, and do not scale the stem, the head and the
number of blocks in the first and last stage, so that they quantise well.

Deviations: B0-B4 normalise with epsilon 1e-5 and B0-B7 pad symmetrically, as torchvision's weights require;
Lite keeps TensorFlow's SAME padding, as its released weights require. Small images (CIFAR) use `stem_stride=1` and
fewer stride-2 stages in `strides`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import ConvNormAct, FeaturesAndHead, SameConv2d, StochasticDepth, round_channels

# Table 1 of the paper: expansion, kernel, channels, blocks. The strides are settings.
STAGES = (
    (1, 3, 16, 1),
    (6, 3, 24, 2),
    (6, 5, 40, 2),
    (6, 3, 80, 3),
    (6, 5, 112, 3),
    (6, 5, 192, 4),
    (6, 3, 320, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


@dataclass(frozen=True)
class EfficientNetConfig:
    """The defaults are B0. `width` and `depth` multiply channels and blocks; `image_size` is the designed size."""

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    drop_connect: float = 0.2
    squeeze_excite: bool = True
    activation: Literal["silu", "relu6"] = "silu"
    padding: Literal["symmetric", "same"] = "symmetric"
    scale_ends: bool = True
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    stem_stride: int = 2
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=7, max_length=7)] = (1, 2, 2, 2, 1, 2, 1)

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that every stage can halve."""
        return self.stem_stride * math.prod(self.strides)


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean: [N, C, H, W] -> the same."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Each channel multiplied by its gate in 0..1."""
        gates = x.mean(dim=(2, 3), keepdim=True)  # [N, C, 1, 1]
        gates = self.expand(F.silu(self.reduce(gates)))
        return x * torch.sigmoid(gates)


class MBConv(nn.Module):
    """Inverted residual: expand 1x1, depthwise kxk, squeeze-and-excite, project 1x1; a skip if shapes agree."""

    def __init__(
        self, config: EfficientNetConfig, shape: tuple[int, int], expansion: int, kernel: int, stride: int, drop: float
    ):
        super().__init__()
        inputs, outputs = shape
        conv_norm_act = _conv_norm_act(config)
        expanded = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_norm_act(inputs, expanded, 1))
        layers.append(conv_norm_act(expanded, expanded, kernel, stride=stride, groups=expanded))
        if config.squeeze_excite:
            layers.append(SqueezeExcite(expanded, max(1, inputs // 4)))
        self.block = nn.Sequential(*layers, conv_norm_act(expanded, outputs, 1, activation=None))
        self.skip = stride == 1 and inputs == outputs
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)]."""
        y: Tensor = self.block(x)
        return x + self.drop(y) if self.skip else y


def _conv_norm_act(config: EfficientNetConfig) -> partial[ConvNormAct]:
    """The variant's convolution with its normalisation, activation and padding."""
    return partial(
        ConvNormAct,
        norm=partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=config.norm_momentum),
        activation=partial(nn.SiLU if config.activation == "silu" else nn.ReLU6, inplace=True),
        conv=SameConv2d if config.padding == "same" else nn.Conv2d,
    )


def _stages(config: EfficientNetConfig) -> list[nn.Module]:
    """The seven stages as one list of blocks; the probability of dropping a block grows linearly with its depth."""
    width = config.width
    inputs = round_channels(STEM_CHANNELS * width) if config.scale_ends else STEM_CHANNELS
    rows: list[tuple[tuple[int, int], int, int, int]] = []
    for number, ((expansion, kernel, channels, repeats), stage_stride) in enumerate(
        zip(STAGES, config.strides, strict=True)
    ):
        outputs = round_channels(channels * width)
        fixed = not config.scale_ends and number in (0, len(STAGES) - 1)
        blocks = repeats if fixed else math.ceil(repeats * config.depth)
        for block in range(blocks):
            stride = stage_stride if block == 0 else 1
            rows.append(((inputs, outputs), expansion, kernel, stride))
            inputs = outputs
    return [MBConv(config, *row, drop=config.drop_connect * i / len(rows)) for i, row in enumerate(rows)]


class EfficientNet(FeaturesAndHead):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`, best at `config.image_size`."""

    def __init__(self, config: EfficientNetConfig):
        end_width = config.width if config.scale_ends else 1.0
        conv_norm_act = _conv_norm_act(config)
        stem = round_channels(STEM_CHANNELS * end_width)
        last = round_channels(STAGES[-1][2] * config.width)
        top = round_channels(HEAD_CHANNELS * end_width)
        super().__init__(
            config,
            nn.Sequential(
                conv_norm_act(config.in_channels, stem, 3, stride=config.stem_stride),  # [N, 32w, H/2, W/2]
                *_stages(config),  # [N, 320w, H/32, W/32]
                conv_norm_act(last, top, 1),  # [N, 1280w, H/32, W/32]
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),  # [N, 1280w]
            ),
            nn.Sequential(nn.Dropout(config.dropout, inplace=True), nn.Linear(top, config.num_classes)),
        )
        self.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Initialise as the reference code: convolutions N(0, 2 / fan-out), the classifier U(+-1/sqrt(classes))."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = 1.0 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


_EARLY = EfficientNetConfig()
_LATE = replace(_EARLY, norm_eps=1e-3, norm_momentum=0.01)
_LITE = replace(_LATE, squeeze_excite=False, activation="relu6", padding="same", scale_ends=False)

# Rows as published: width, depth, resolution, dropout. B2's released weights of torchvision were evaluated at 288.
ROWS = {
    "efficientnet-b0": (_EARLY, 1.0, 1.0, 224, 0.2),
    "efficientnet-b1": (_EARLY, 1.0, 1.1, 240, 0.2),
    "efficientnet-b2": (_EARLY, 1.1, 1.2, 260, 0.3),
    "efficientnet-b3": (_EARLY, 1.2, 1.4, 300, 0.3),
    "efficientnet-b4": (_EARLY, 1.4, 1.8, 380, 0.4),
    "efficientnet-b5": (_LATE, 1.6, 2.2, 456, 0.4),
    "efficientnet-b6": (_LATE, 1.8, 2.6, 528, 0.5),
    "efficientnet-b7": (_LATE, 2.0, 3.1, 600, 0.5),
    "efficientnet-lite0": (_LITE, 1.0, 1.0, 224, 0.2),
    "efficientnet-lite1": (_LITE, 1.0, 1.1, 240, 0.2),
    "efficientnet-lite2": (_LITE, 1.1, 1.2, 260, 0.3),
    "efficientnet-lite3": (_LITE, 1.2, 1.4, 280, 0.3),
    "efficientnet-lite4": (_LITE, 1.4, 1.8, 300, 0.3),
}
VARIANTS = {
    name: replace(base, width=width, depth=depth, image_size=size, dropout=dropout)
    for name, (base, width, depth, size, dropout) in ROWS.items()
}
