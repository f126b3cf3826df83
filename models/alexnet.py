"""AlexNet: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.

Input [N, in_channels, H, W] (H, W >= 63, designed for 224), output [N, num_classes]. `alexnet2012` is the paper's
network: ReLU, local response normalisation, overlapping pooling, two towers, dropout; each is a setting. `alexnet` is
the one-tower form that torchvision publishes, after Krizhevsky, "One weird trick for parallelizing convolutional neural
networks", 2014.

Deviations: 224 pixels, a kernel of 11 and a stride of 4 do not give the paper's 55x55 maps without 2 pixels of padding.
Two towers are two groups of channels in one convolution. The last maps are averaged to `pool_size` x `pool_size`, which
has no effect at 224 and permits other sizes. Small images (CIFAR) use another `stem`, narrower `hidden` layers and a
smaller `pool_size`.

The paper's pixels are 0 to 255 minus their mean. With pixels of unit variance its normalisation has almost no effect,
since alpha is small, and its initial weights give a far weaker signal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import FeaturesAndHead, Widths, hidden_layers

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class AlexNetConfig:
    """The defaults are the paper's network.

    `channels` are the convolutions' outputs, `stem` the first's kernel, stride and padding in pixels, `hidden`
    the widths of the fully connected layers before the classifier. `overlapping_pooling` is a window of 3 with stride
    2, without it a window of 2. With 2 `groups` the second, fourth and fifth convolution read their own tower only.
    `dropout` acts on the outputs of the hidden layers, as in the paper, or on their inputs, as in torchvision. `init`
    is the paper's N(0, 0.01^2), He et al. 2015 or torch's default.
    """

    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (96, 256, 384, 384, 256)
    stem: tuple[PositiveInt, PositiveInt, NonNegativeInt] = (11, 4, 2)
    hidden: Widths = (4096, 4096)
    pool_size: PositiveInt = 6
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    local_response_norm: bool = True
    overlapping_pooling: bool = True
    groups: Literal[1, 2] = 2
    dropout: float = 0.5
    dropout_on: Literal["outputs", "inputs"] = "outputs"
    init: Literal["paper", "he", "torch"] = "paper"

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image of which one pixel is left after the third pooling."""
        kernel, stride, padding = self.stem
        side = 15 if self.overlapping_pooling else 8  # the first convolution's output: 15 -> 7 -> 3 -> 1
        return max(1, (side - 1) * stride + kernel - 2 * padding)

    @property
    def widths(self) -> tuple[int, ...]:
        """Values per image in the pooled maps, then in each hidden layer; the last are the features."""
        return (self.channels[-1] * self.pool_size**2, *self.hidden)


class LocalResponseNorm(nn.Module):
    """Section 3.3: x_i / (2 + 1e-4 * sum of x_j^2 over the five channels around i)^0.75.

    torch's layer takes the mean of the squares where the paper takes the sum, and is about three times slower on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same."""
        squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))  # [N, C + 4, H, W]
        window_sum = reduce(torch.add, (squares[:, i : i + x.shape[1]] for i in range(5)))
        root = torch.rsqrt(2.0 + 1e-4 * window_sum)  # power -0.5; its root is the power -0.25
        return x * (root * root.sqrt())


def _convolutions(config: AlexNetConfig) -> list[nn.Module]:
    """Five convolutions; the first two are normalised and pooled, the last is pooled."""
    layers: list[nn.Module] = []
    shapes = [config.stem, (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]
    inputs = config.in_channels
    for number, ((kernel, stride, padding), outputs) in enumerate(zip(shapes, config.channels, strict=True), start=1):
        groups = config.groups if number in (2, 4, 5) else 1
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups))
        layers.append(ACTIVATIONS[config.activation]())
        if config.local_response_norm and number in (1, 2):
            layers.append(LocalResponseNorm())
        if number in (1, 2, 5):
            layers.append(nn.MaxPool2d(3 if config.overlapping_pooling else 2, stride=2))  # 55 -> 27 -> 13 -> 6
        inputs = outputs
    return layers


class AlexNet(FeaturesAndHead):
    """[N, in_channels, H, W] -> logits [N, num_classes]; any H, W >= `config.smallest`."""

    def __init__(self, config: AlexNetConfig):
        if config.stem[2] >= config.stem[0]:
            raise ValueError(f"stem needs a padding below the kernel, got {config.stem}")
        drops_inputs = config.dropout_on == "inputs"
        activation = ACTIVATIONS[config.activation]
        super().__init__(
            config,
            nn.Sequential(
                *_convolutions(config),  # [N, 256, 6, 6]
                nn.AdaptiveAvgPool2d(config.pool_size),  # [N, 256, 6, 6]
                nn.Flatten(),  # [N, 9216]
                *hidden_layers(config.widths, activation, config.dropout, drop_inputs=drops_inputs),  # [N, 4096]
            ),
            nn.Sequential(
                *([] if drops_inputs else [nn.Dropout(config.dropout)]),
                nn.Linear(config.widths[-1], config.num_classes),
            ),
        )
        _initialise(self)


def _initialise(network: AlexNet) -> None:
    """Initialise by `init`.

    `paper`: weights N(0, 0.01^2), biases 0 in the first and third convolution and the classifier, 1 elsewhere.
    `he`: weights N(0, 2 / fan-in), biases 0.
    """
    init = network.config.init
    if init == "torch":
        return
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    zero_bias = (layers[0], layers[2], layers[-1])
    for layer in layers:
        if init == "he":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            # A positive bias gives the following ReLU positive inputs, and so gradients, early.
            nn.init.constant_(layer.bias, 0.0 if init == "he" or layer in zero_bias else 1.0)


VARIANTS = {
    "alexnet": AlexNetConfig(
        channels=(64, 192, 384, 256, 256),
        local_response_norm=False,
        groups=1,
        dropout_on="inputs",
        init="torch",
    ),
    "alexnet2012": AlexNetConfig(),
}
