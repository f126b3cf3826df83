"""Inception-v1 (GoogLeNet): Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; and the base of Inception-v3.

Input [N, in_channels, H, W], designed for 224; output [N, num_classes]. H, W >= 31, with the paper's auxiliary heads
>= 79; `googlenet` >= 15.

`inception-v1` is the paper's table 1 and figure 3. The paper gives no numbers for its local response normalisation and
its initial weights: this file uses AlexNet's normalisation as in Caffe's replication of GoogLeNet (5 channels,
beta 0.75, k 1, alpha 1e-4 divided by the 5 channels, as torch defines it, too) and He et al.'s weights.

`googlenet` matches torchvision's weights. It differs from the paper: batch norm in place of biases and local response
normalisation, 3x3 convolutions where the paper has 5x5, a 2x2 last max-pool, auxiliary heads that average any map to
4x4, dropout 0.2.

Auxiliary heads are for training: `forward(images)` never runs them, `forward(images, auxiliary=True)` returns their
logits, too. With `auxiliary=False` in the config, the form for serving, the state has no name that begins with
`auxiliary.`, and is otherwise the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.blocks import FeaturesAndHead, Widths, check_images

# One module's channels: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
Row = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]
Rows = Annotated[tuple[Annotated[tuple[Row, ...], Field(min_length=1)], ...], Field(min_length=1)]

# Table 1 of the 2015 paper: the modules 3a-3b, 4a-4e, 5a-5b.
TABLE_1: Rows = (
    (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
    ),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    (
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ),
)


class FilterConcat(nn.Module):
    """Parallel branches, concatenated: [N, in, H, W] -> [N, sum of the branches' channels, H', W']."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """The branches' outputs for the same input `x`; H' and W' are the same for all of them."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class InceptionNetwork(FeaturesAndHead):
    """Shared by both generations: a sequence of layers, a head, and auxiliary heads on intermediate layers.

    `heads` maps the index of a layer of `features` to the auxiliary head that reads the layer's output. Images smaller
    than `config.smallest` are refused, with auxiliary heads or without.
    """

    features: nn.Sequential

    def __init__(self, config: Any, features: nn.Sequential, head: nn.Module, heads: dict[int, nn.Module]):
        if config.image_size < config.smallest:
            raise ValueError(f"this network needs images of at least {config.smallest} pixels, got {config.image_size}")
        super().__init__(config, features, head)
        self.taps = tuple(heads)
        self.auxiliary = nn.ModuleList(heads.values())
        self.apply(_initialise)

    def forward(  # type: ignore[override]  # with `auxiliary` it returns a tuple
        self, images: Tensor, *, auxiliary: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Logits [N, num_classes]; with `auxiliary` followed by each auxiliary head's [N, num_classes], first to last.

        Raises:
            ValueError: if images have a wrong shape, or for `auxiliary` on a network without auxiliary heads.
        """
        if not auxiliary:
            return super().forward(images)
        check_images(images, self.config.in_channels, self.config.smallest)
        if not self.taps:
            raise ValueError("this network has no auxiliary heads: its config says auxiliary=False")
        heads = dict(zip(self.taps, self.auxiliary, strict=True))
        auxiliary_logits = []
        x = images
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in heads:
                auxiliary_logits.append(heads[index](x))
        return self.head(x), *auxiliary_logits


def _initialise(module: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan-in), He et al. 2015; without it the form without batch norm hardly trains."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padded: bool = True,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm, ReLU: [N, in, H, W] -> [N, out, ceil(H/s), ceil(W/s)], smaller if not `padded`.

    Without `batch_norm` the convolution has a bias.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = ((height - 1) // 2, (width - 1) // 2) if padded else (0, 0)
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=not batch_norm)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels, eps=1e-3))
    return nn.Sequential(*layers, nn.ReLU(inplace=True))


@dataclass(frozen=True)
class InceptionV1Config:
    """The defaults are the paper's network; `googlenet` in VARIANTS is torchvision's.

    `rows` are the stages: lists of modules, each given by the six columns of table 1. Between two stages is a max-pool
    of stride 2 with a window of `pools`. `stem`: `imagenet` is 7x7 with stride 2, max-pool, 1x1, 3x3, max-pool; `small`
    is one 3x3 convolution with stride 1, for images of 28 to 32 pixels; `small-pool` is `small` and a 2x2 max-pool.
    `stem_channels` has a number for each of the stem's convolutions. `wide_kernel` is the kernel of the third branch,
    whose columns the paper calls 5x5.

    The auxiliary heads read the outputs of the modules `auxiliary_after`, pairs (stage, module) counted from 0. Their
    `auxiliary_pool`: `strided` is the paper's 5x5 window with stride 3, which reduces maps of 14 to 16 to 4x4; maps of
    other sizes are averaged to 4x4 afterwards. `adaptive` averages any map to 4x4. A 1x1 convolution to
    `auxiliary_channels` and a hidden layer of `auxiliary_hidden` follow.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    rows: Rows = TABLE_1
    pools: tuple[Literal[2, 3], ...] = (3, 3)
    stem: Literal["imagenet", "small", "small-pool"] = "imagenet"
    stem_channels: Widths = (64, 64, 192)
    batch_norm: bool = False
    wide_kernel: Literal[5, 3] = 5
    local_response_norm: bool = True
    dropout: float = 0.4
    auxiliary: bool = True
    auxiliary_after: tuple[tuple[int, int], ...] = ((1, 0), (1, 3))
    auxiliary_pool: Literal["strided", "adaptive"] = "strided"
    auxiliary_channels: int = 128
    auxiliary_hidden: int = 1024
    auxiliary_dropout: float = 0.7

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image with which no stage or auxiliary head gets an empty map."""
        side = _image_side(self, len(self.rows) - 1, 1)
        if self.auxiliary and self.auxiliary_pool == "strided":
            return max(side, _image_side(self, self.auxiliary_after[-1][0], 5))
        return side


def _outputs(row: Row) -> int:
    """Output channels of a module: its 1x1, 3x3, 5x5 and pool projection."""
    return row[0] + row[2] + row[4] + row[5]


def _image_side(config: InceptionV1Config, stage: int, maps: int) -> int:
    """Side of the smallest image whose maps in `stage` have the side `maps`, computed from the last stride back."""
    windows: tuple[int, ...] = config.pools[:stage]
    if config.stem != "small":
        windows = (3, 3, *windows) if config.stem == "imagenet" else (2, *windows)
    side = maps
    for window in reversed(windows):
        side = 2 * (side - 1) + window - 1
    return 2 * side - 1 if config.stem == "imagenet" else side


def _check_stages(config: InceptionV1Config) -> None:
    if len(config.pools) != len(config.rows) - 1:
        raise ValueError(f"pools needs a number between each two of {len(config.rows)} stages, got {config.pools}")
    convolutions = 3 if config.stem == "imagenet" else 1
    if len(config.stem_channels) != convolutions:
        raise ValueError(f"the stem {config.stem!r} needs {convolutions} stem_channels, got {config.stem_channels}")


def _check_auxiliary(config: InceptionV1Config) -> None:
    modules = [(stage, number) for stage, rows in enumerate(config.rows) for number in range(len(rows))]
    after = list(config.auxiliary_after)
    if not after or after != [module for module in modules if module in after]:
        raise ValueError(f"auxiliary_after needs (stage, module) pairs in ascending order, all of {modules}: {after}")


def _v1_module(config: InceptionV1Config, in_channels: int, row: Row) -> FilterConcat:
    """Figure 2(b): [N, in, H, W] -> [N, _outputs(row), H, W]."""
    norm = config.batch_norm
    narrow, reduce_3x3, conv_3x3, reduce_wide, conv_wide, projection = row
    return FilterConcat(
        convolution(in_channels, narrow, 1, batch_norm=norm),
        nn.Sequential(
            convolution(in_channels, reduce_3x3, 1, batch_norm=norm),
            convolution(reduce_3x3, conv_3x3, 3, batch_norm=norm),
        ),
        nn.Sequential(
            convolution(in_channels, reduce_wide, 1, batch_norm=norm),
            convolution(reduce_wide, conv_wide, config.wide_kernel, batch_norm=norm),
        ),
        nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            convolution(in_channels, projection, 1, batch_norm=norm),
        ),
    )


def _max_pool(window: int) -> nn.MaxPool2d:
    # Rounding up, as Caffe did, takes 112 to 56 and 56 to 28, the sizes in table 1.
    return nn.MaxPool2d(window, stride=2, ceil_mode=True)


def _response_norm(config: InceptionV1Config) -> list[nn.Module]:
    return [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)] if config.local_response_norm else []


def _v1_stem(config: InceptionV1Config) -> list[nn.Module]:
    norm = config.batch_norm
    if config.stem != "imagenet":
        return [
            convolution(config.in_channels, config.stem_channels[0], 3, batch_norm=norm),  # [N, C, H, W]
            *([_max_pool(2)] if config.stem == "small-pool" else []),  # [N, C, H/2, W/2]
            *_response_norm(config),
        ]
    first, reduced, last = config.stem_channels
    return [
        convolution(config.in_channels, first, 7, stride=2, batch_norm=norm),  # [N, 64, H/2, W/2]
        _max_pool(3),  # [N, 64, H/4, W/4]
        *_response_norm(config),
        convolution(first, reduced, 1, batch_norm=norm),
        convolution(reduced, last, 3, batch_norm=norm),  # [N, 192, H/4, W/4]
        *_response_norm(config),
        _max_pool(3),  # [N, 192, H/8, W/8]
    ]


def _v1_stages(config: InceptionV1Config) -> list[nn.Module]:
    """Modules and pools in one list, so that an index identifies the layer that an auxiliary head reads."""
    layers: list[nn.Module] = []
    channels = config.stem_channels[-1]
    for stage, rows in enumerate(config.rows):
        if stage:
            layers.append(_max_pool(config.pools[stage - 1]))
        for row in rows:
            layers.append(_v1_module(config, channels, row))
            channels = _outputs(row)
    return layers


def _v1_auxiliary_head(config: InceptionV1Config, stage: int, module: int) -> nn.Sequential:
    """The maps of one module -> logits [N, num_classes]."""
    strided = [nn.AvgPool2d(5, stride=3)] if config.auxiliary_pool == "strided" else []
    return nn.Sequential(
        *strided,
        nn.AdaptiveAvgPool2d(4),  # [N, C, 4, 4]
        convolution(
            _outputs(config.rows[stage][module]), config.auxiliary_channels, 1, batch_norm=config.batch_norm
        ),  # [N, 128, 4, 4]
        nn.Flatten(),  # [N, 2048]
        nn.Linear(config.auxiliary_channels * 16, config.auxiliary_hidden),  # [N, 1024]
        nn.ReLU(inplace=True),
        nn.Dropout(config.auxiliary_dropout),
        nn.Linear(config.auxiliary_hidden, config.num_classes),
    )


class InceptionV1(InceptionNetwork):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`."""

    def __init__(self, config: InceptionV1Config):
        _check_stages(config)
        heads: dict[int, nn.Module] = {}
        stem = _v1_stem(config)
        if config.auxiliary:
            _check_auxiliary(config)
            for stage, module in config.auxiliary_after:
                pools_and_modules = stage + sum(len(rows) for rows in config.rows[:stage]) + module
                heads[len(stem) + pools_and_modules] = _v1_auxiliary_head(config, stage, module)
        super().__init__(
            config,
            nn.Sequential(
                *stem,  # [N, 192, H/8, W/8]; small: [N, stem_channels, H, W]
                *_v1_stages(config),  # [N, 1024, H/32, W/32]; small: a half for each stage but the first
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),  # [N, 1024]
            ),
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(_outputs(config.rows[-1][-1]), config.num_classes)),
            heads,
        )


VARIANTS = {
    "inception-v1": InceptionV1Config(),
    "googlenet": InceptionV1Config(
        pools=(3, 2),
        batch_norm=True,
        wide_kernel=3,
        local_response_norm=False,
        dropout=0.2,
        auxiliary_pool="adaptive",
    ),
}
