"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.

Input [N, in_channels, H, W] (H, W >= 32 with five stages, designed for 224), output [N, num_classes]. Convolutions are
3x3 and keep the size; a 2x2 max-pool ends each stage. VGG-11, 13, 16 and 19 are table 1's columns A, B, D and E.

Deviations: the last maps are averaged to `pool_size` x `pool_size`, which has no effect at 224 and permits other
sizes; convolutions are initialised as by He et al. 2015, where the paper initialises deep networks from trained shallow
ones; `-bn` adds batch normalisation, unknown to the paper, and keeps the convolutions' biases, as torchvision's
weights require. Small images (CIFAR) use fewer `stages`, no `hidden` layers and a `pool_size` of 1.
Further settings for them, after Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024: a `stem`
without padding before the stages, GELU in place of ReLU, a max-pool after the first convolution of each stage instead
of the last, and the maximum of the last maps in place of their average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

from models.blocks import FeaturesAndHead, Widths, hidden_layers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": partial(nn.ReLU, inplace=True), "gelu": nn.GELU}


@dataclass(frozen=True)
class VGGConfig:
    """The defaults are VGG-16. `stages` holds the output channels of each convolution, a tuple for each stage.

    `hidden` are the widths of the fully connected layers before the classifier; `dropout` follows each of them, or the
    pooled features where there are none. A `pool_size` of 1 is global pooling, by `pool`. `stem` is the number of
    filters and the kernel side of a first convolution without padding or normalisation; (0, 0) for none. `halve` is the
    convolution of a stage that its 2x2 max-pool follows; after the first it precedes the normalisation.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    stages: Annotated[tuple[Widths, ...], Field(min_length=1)] = (
        (64, 64),
        (128, 128),
        (256, 256, 256),
        (512, 512, 512),
        (512, 512, 512),
    )
    batch_norm: bool = False
    hidden: tuple[PositiveInt, ...] = (4096, 4096)
    dropout: float = 0.5
    pool_size: PositiveInt = 7
    stem: tuple[int, int] = (0, 0)
    activation: Literal["relu", "gelu"] = "relu"
    halve: Literal["first", "last"] = "last"
    pool: Literal["average", "max"] = "average"

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that every stage can halve."""
        return (1 << len(self.stages)) + max(0, self.stem[1] - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Values per image in the pooled maps, then in each hidden layer; the last are the features."""
        return (self.stages[-1][-1] * self.pool_size**2, *self.hidden)


def _stages(config: VGGConfig) -> list[nn.Module]:
    layers: list[nn.Module] = []
    activation, inputs = ACTIVATIONS[config.activation], config.in_channels
    filters, side = config.stem
    if filters:
        layers += [nn.Conv2d(inputs, filters, side), activation()]  # [N, filters, H - side + 1, W - side + 1]
        inputs = filters
    for stage in config.stages:
        for place, outputs in enumerate(stage):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if config.halve == "first" and place == 0:
                layers.append(nn.MaxPool2d(2))  # [N, stage[0], H/2, W/2]
            if config.batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(activation())
            inputs = outputs
        if config.halve == "last":
            layers.append(nn.MaxPool2d(2))  # [N, stage[-1], H/2, W/2]
    return layers


class VGG(FeaturesAndHead):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`.

    The features are the last hidden layer's, [N, hidden[-1]], or the pooled maps without hidden layers.
    """

    def __init__(self, config: VGGConfig):
        if config.stem != (0, 0) and min(config.stem) < 1:
            raise ValueError(f"stem needs a number of filters and a kernel side, both >= 1, got {config.stem}")
        pool = nn.AdaptiveMaxPool2d if config.pool == "max" else nn.AdaptiveAvgPool2d
        super().__init__(
            config,
            nn.Sequential(
                *_stages(config),  # [N, 512, H/32, W/32]
                pool(config.pool_size),  # [N, 512, 7, 7]
                nn.Flatten(),  # [N, 25088]
                *hidden_layers(config.widths, ACTIVATIONS["relu"], config.dropout),  # [N, 4096]
            ),
            nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.widths[-1], config.num_classes)),
        )
        self.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, 2 / fan-out) as He et al. 2015, fully connected layers N(0, 0.01^2) as the paper; biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


# Table 1: convolutions in each of the five stages, whose channels are 64, 128, 256, 512, 512.
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
VARIANTS = {
    f"{name}{suffix}": VGGConfig(
        stages=tuple((width,) * depth for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True)),
        batch_norm=suffix == "-bn",
    )
    for suffix in ("", "-bn")
    for name, depths in DEPTHS.items()
}
