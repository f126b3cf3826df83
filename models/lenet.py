"""LeNet, two generations.

LeNet-1989: LeCun et al., "Backpropagation Applied to Handwritten Zip Code Recognition", Neural Computation 1, 1989.
    Input [N, 1, 16, 16], output [N, 10]; 9,760 free parameters.
    Deviation: the paper does not print which 8 of H1's 12 maps each H2 map reads; here the maps form three groups of
    four, and a group of H2 reads the two other groups of H1.

LeNet-5: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86, 1998.
    Input [N, 1, 32, 32], output [N, 10]; 60,000 free parameters.
    Deviations: the RBF codes are new 7x12 drawings of the digits, in the style of the paper's figure 3, whose bitmaps
    are printed as a figure only. Subsampling takes the mean of a window where the paper takes the sum; its trainable
    gain compensates. Weights are initialised by torch's defaults, not uniformly in +-2.4 / fan-in.

`LeNet5Config` covers the paper's form (scaled tanh, trainable subsampling, table I, RBF output) and the usual modern
form (ReLU, max-pooling, full connections, linear output).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import FeaturesAndHead, FixedSizeConfig

# Table I of the paper: which of S2's 6 maps (columns) each of C3's 16 maps (rows) is connected to.
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip

H2_TABLE = tuple(tuple(i for i in range(12) if i // 4 != j // 4) for j in range(12))

# Ten 7x12 glyphs, one per line: # is +1 (ink), . is -1.
DIGIT_GLYPHS = (
    "..###.. .#...#. #.....# #.....# #.....# #.....# #.....# #.....# #.....# .#...#. ..###.. .......",
    "...#... ..##... .#.#... ...#... ...#... ...#... ...#... ...#... ...#... ...#... .#####. .......",
    ".#####. #.....# ......# ......# .....#. ....#.. ...#... ..#.... .#..... #...... ####### .......",
    ".#####. #.....# ......# ......# ..####. ......# ......# ......# ......# #.....# .#####. .......",
    ".....#. ....##. ...#.#. ..#..#. .#...#. #....#. ####### .....#. .....#. .....#. .....#. .......",
    "####### #...... #...... #...... ######. ......# ......# ......# ......# #.....# .#####. .......",
    "..####. .#..... #...... #...... ######. #.....# #.....# #.....# #.....# #.....# .#####. .......",
    "####### ......# .....#. .....#. ....#.. ....#.. ...#... ...#... ..#.... ..#.... ..#.... .......",
    ".#####. #.....# #.....# #.....# .#####. #.....# #.....# #.....# #.....# #.....# .#####. .......",
    ".#####. #.....# #.....# #.....# #.....# .###### ......# ......# ......# .....#. .####.. .......",
)


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), both papers' squashing function: f(1) = 1 and f(-1) = -1."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return 1.7159 * torch.tanh(x * (2.0 / 3.0))


class TableConv2d(nn.Conv2d):
    """A convolution whose output map j reads the input maps table[j] only; the rest of the kernel is held at zero."""

    table: Tensor

    def __init__(self, in_channels: int, table: tuple[tuple[int, ...], ...], kernel_size: int, **kwargs: int | bool):
        super().__init__(in_channels, len(table), kernel_size, **kwargs)  # type: ignore[arg-type]
        mask = torch.zeros(len(table), in_channels, 1, 1)
        for output, inputs in enumerate(table):
            mask[output, list(inputs)] = 1
        self.register_buffer("table", mask, persistent=False)
        with torch.no_grad():
            self.weight.mul_(mask)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, len(table), H', W']."""
        return F.conv2d(x, self.weight * self.table, self.bias, self.stride, self.padding)


class UnitBias(nn.Module):
    """A bias for every unit of a map: LeNet-1989 shares kernels, not biases."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, size, size] -> the same."""
        return x + self.bias


class Subsampling(nn.Module):
    """LeNet-5's S layers: the mean of each 2x2 window, times a trainable gain per map, plus a trainable bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, channels, H/2, W/2]."""
        return F.avg_pool2d(x, 2) * self.gain + self.bias


class EuclideanRBF(nn.Module):
    """LeNet-5's output layer: logit_i = -||x - code_i||^2, with fixed drawings of digits as codes (+1 ink, -1 not)."""

    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        pixels = [[1.0 if c == "#" else -1.0 for c in glyph if c != " "] for glyph in DIGIT_GLYPHS]
        self.register_buffer("codes", torch.tensor(pixels))  # [10, 84]

    def forward(self, x: Tensor) -> Tensor:
        """[N, 84] -> logits [N, 10]."""
        return -((x[:, None, :] - self.codes) ** 2).sum(dim=2)


@dataclass(frozen=True)
class LeNet1989Config(FixedSizeConfig):
    """The width of the classifier, and its input, which is 16x16 grey in the paper."""

    num_classes: int = 10
    in_channels: int = 1
    image_size: Literal[16] = 16


class LeNet1989(FeaturesAndHead):
    """[N, 1, 16, 16] -> logits [N, num_classes]. Background is -1, ink +1, in the paper."""

    def __init__(self, config: LeNet1989Config):
        super().__init__(
            config,
            nn.Sequential(
                nn.ConstantPad2d(2, -1.0),  # [N, 1, 20, 20]: outside the image is background
                nn.Conv2d(config.in_channels, 12, 5, stride=2, bias=False),  # H1 [N, 12, 8, 8]
                UnitBias(12, 8),
                ScaledTanh(),
                nn.ConstantPad2d(2, -1.0),  # [N, 12, 12, 12]
                TableConv2d(12, H2_TABLE, 5, stride=2, bias=False),  # H2 [N, 12, 4, 4]
                UnitBias(12, 4),
                ScaledTanh(),
                nn.Flatten(),  # [N, 192]
                nn.Linear(192, 30),  # H3 [N, 30]
                ScaledTanh(),
            ),
            nn.Linear(30, config.num_classes),
        )


@dataclass(frozen=True)
class LeNet5Config(FixedSizeConfig):
    """The defaults are the paper's network; `lenet5-relu` in the registry is the modern form."""

    num_classes: int = 10
    in_channels: int = 1
    image_size: Literal[32] = 32
    activation: Literal["tanh", "relu"] = "tanh"
    pooling: Literal["trainable", "max"] = "trainable"
    connections: Literal["table", "full"] = "table"
    output: Literal["rbf", "linear"] = "rbf"
    dropout: float = 0.0


def _activation(config: LeNet5Config) -> nn.Module:
    return ScaledTanh() if config.activation == "tanh" else nn.ReLU(inplace=True)


def _pooling(config: LeNet5Config, channels: int) -> nn.Module:
    # The paper applies the activation after subsampling, too; after max-pooling a second ReLU would have no effect.
    if config.pooling == "trainable":
        return nn.Sequential(Subsampling(channels), _activation(config))
    return nn.MaxPool2d(2)


class LeNet5(FeaturesAndHead):
    """[N, in_channels, 32, 32] -> logits [N, num_classes]. In the paper background is -0.1 and ink 1.175."""

    def __init__(self, config: LeNet5Config):
        if config.output == "rbf" and config.num_classes != 10:
            raise ValueError(f"the RBF output has codes for the 10 digits, not for {config.num_classes} classes")
        c3 = TableConv2d(6, C3_TABLE, 5) if config.connections == "table" else nn.Conv2d(6, 16, 5)
        super().__init__(
            config,
            nn.Sequential(
                nn.Conv2d(config.in_channels, 6, 5),  # C1 [N, 6, 28, 28]
                _activation(config),
                _pooling(config, 6),  # S2 [N, 6, 14, 14]
                c3,  # C3 [N, 16, 10, 10]
                _activation(config),
                _pooling(config, 16),  # S4 [N, 16, 5, 5]
                nn.Conv2d(16, 120, 5),  # C5 [N, 120, 1, 1]
                _activation(config),
                nn.Flatten(),  # [N, 120]
                nn.Dropout(config.dropout),
                nn.Linear(120, 84),  # F6 [N, 84]
                _activation(config),
            ),
            EuclideanRBF() if config.output == "rbf" else nn.Linear(84, config.num_classes),
        )
