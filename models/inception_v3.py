"""Inception-v3: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision",
CVPR 2016.

Input [N, in_channels, H, W], designed for 299; output [N, num_classes]. H, W >= 75, with the auxiliary head >= 299.

Deviations, all as in the network that Google released and torchvision has: the stem has a 1x1 convolution and a
max-pool where table 1 has 3x3 convolutions, the modules of the 35x35 grid keep one 5x5 convolution, the 17x17 grid has
four modules and a reduction, and the one auxiliary head ends in a 5x5 convolution. He et al.'s initial weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.inception import FilterConcat, InceptionNetwork, convolution


@dataclass(frozen=True)
class InceptionV3Config:
    """The defaults are the released network."""

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 299
    dropout: float = 0.5
    auxiliary: bool = True

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image: the last grid is 1x1, the auxiliary head's input 17x17."""
        return 299 if self.auxiliary else 75


def _grid_35(in_channels: int, projection: int) -> FilterConcat:
    """Figure 5, in which one 5x5 convolution stays: [N, in, H, W] -> [N, 224 + projection, H, W]."""
    return FilterConcat(
        convolution(in_channels, 64, 1),
        nn.Sequential(convolution(in_channels, 48, 1), convolution(48, 64, 5)),
        nn.Sequential(convolution(in_channels, 64, 1), convolution(64, 96, 3), convolution(96, 96, 3)),
        nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), convolution(in_channels, projection, 1)),
    )


def _reduction_35(in_channels: int) -> FilterConcat:
    """Figure 10: [N, in, H, W] -> [N, in + 480, (H-1)//2, (W-1)//2]."""
    return FilterConcat(
        convolution(in_channels, 384, 3, stride=2, padded=False),
        nn.Sequential(
            convolution(in_channels, 64, 1), convolution(64, 96, 3), convolution(96, 96, 3, stride=2, padded=False)
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _grid_17(in_channels: int, width: int) -> FilterConcat:
    """Figure 6, n = 7, `width` channels inside: [N, in, H, W] -> [N, 768, H, W]."""
    return FilterConcat(
        convolution(in_channels, 192, 1),
        nn.Sequential(
            convolution(in_channels, width, 1), convolution(width, width, (1, 7)), convolution(width, 192, (7, 1))
        ),
        nn.Sequential(
            convolution(in_channels, width, 1),
            convolution(width, width, (7, 1)),
            convolution(width, width, (1, 7)),
            convolution(width, width, (7, 1)),
            convolution(width, 192, (1, 7)),
        ),
        nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), convolution(in_channels, 192, 1)),
    )


def _reduction_17(in_channels: int) -> FilterConcat:
    """The second reduction: [N, in, H, W] -> [N, in + 512, (H-1)//2, (W-1)//2]."""
    return FilterConcat(
        nn.Sequential(convolution(in_channels, 192, 1), convolution(192, 320, 3, stride=2, padded=False)),
        nn.Sequential(
            convolution(in_channels, 192, 1),
            convolution(192, 192, (1, 7)),
            convolution(192, 192, (7, 1)),
            convolution(192, 192, 3, stride=2, padded=False),
        ),
        nn.MaxPool2d(3, stride=2),
    )


def _grid_8(in_channels: int) -> FilterConcat:
    """Figure 7, two of whose branches end in two parallel convolutions: [N, in, H, W] -> [N, 2048, H, W]."""
    return FilterConcat(
        convolution(in_channels, 320, 1),
        nn.Sequential(
            convolution(in_channels, 384, 1),
            FilterConcat(convolution(384, 384, (1, 3)), convolution(384, 384, (3, 1))),
        ),
        nn.Sequential(
            convolution(in_channels, 448, 1),
            convolution(448, 384, 3),
            FilterConcat(convolution(384, 384, (1, 3)), convolution(384, 384, (3, 1))),
        ),
        nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), convolution(in_channels, 192, 1)),
    )


def _grids() -> list[nn.Module]:
    """The modules of the three grids; the auxiliary head reads the output of the second grid's last module."""
    return [
        _grid_35(192, 32),  # [N, 256, 35, 35]
        _grid_35(256, 64),  # [N, 288, 35, 35]
        _grid_35(288, 64),
        _reduction_35(288),  # [N, 768, 17, 17]
        *(_grid_17(768, width) for width in (128, 160, 160, 192)),
        _reduction_17(768),  # [N, 1280, 8, 8]
        _grid_8(1280),  # [N, 2048, 8, 8]
        _grid_8(2048),
    ]


def _auxiliary_head(num_classes: int) -> nn.Sequential:
    """The 17x17 maps [N, 768, 17, 17] -> logits [N, num_classes]."""
    return nn.Sequential(
        nn.AvgPool2d(5, stride=3),  # [N, 768, 5, 5]
        convolution(768, 128, 1),  # [N, 128, 5, 5]
        convolution(128, 768, 5, padded=False),  # [N, 768, 1, 1]
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),  # [N, 768]
        nn.Linear(768, num_classes),
    )


class InceptionV3(InceptionNetwork):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`."""

    def __init__(self, config: InceptionV3Config):
        stem = [
            convolution(config.in_channels, 32, 3, stride=2, padded=False),  # [N, 32, 149, 149]
            convolution(32, 32, 3, padded=False),  # [N, 32, 147, 147]
            convolution(32, 64, 3),  # [N, 64, 147, 147]
            nn.MaxPool2d(3, stride=2),  # [N, 64, 73, 73]
            convolution(64, 80, 1),  # [N, 80, 73, 73]
            convolution(80, 192, 3, padded=False),  # [N, 192, 71, 71]
            nn.MaxPool2d(3, stride=2),  # [N, 192, 35, 35]
        ]
        grids = _grids()
        super().__init__(
            config,
            nn.Sequential(
                *stem,
                *grids,  # [N, 2048, 8, 8]
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),  # [N, 2048]
            ),
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2048, config.num_classes)),
            {len(stem) + 7: _auxiliary_head(config.num_classes)} if config.auxiliary else {},
        )
