"""Test-time augmentation: average the class probabilities over several views of an image.

`flip`: the image and its mirror image. `ten-crop`: `flip` and four corner crops with their mirror images, after
Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.
Deviation: the paper takes crops of 224 pixels from an image of 256. Here the preprocessed image is padded with black by
an eighth of its side on each side (4 of 32 pixels, as in training's random crops), and corner crops of the original
size are taken from that, so that all views come from the preprocessed image.

`six-view`: the image and the image shifted by 1/32 of its side up and left, and down and right, with the edges
reflected, and the mirror images of the three. After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.
Deviation: there the unshifted views have twice the weight; here all weights are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.preprocess import Preprocess

Tta = Literal["none", "flip", "six-view", "ten-crop"]

# The first views of every kind are those of "flip", the image itself first.
VIEWS: dict[Tta, int] = {"none": 1, "flip": 2, "six-view": 6, "ten-crop": 10}


def views(images: Tensor, kind: Tta, preprocess: Preprocess) -> Iterator[Tensor]:
    """The `VIEWS[kind]` views of normalised images [..., C, H, W], each of that shape, the images themselves first.

    `preprocess` is the preprocessing that normalised them; it defines black.
    """
    yield images
    if kind == "none":
        return
    yield images.flip(-1)
    if kind == "flip":
        return
    for shifted in _corners(images, preprocess) if kind == "ten-crop" else _shifted(images):
        yield shifted
        yield shifted.flip(-1)


def _shifted(images: Tensor) -> Iterator[Tensor]:
    """The images shifted up and left, then down and right, by 1/32 of their side, at least a pixel."""
    height, width = images.shape[-2:]
    down, right = max(1, height // 32), max(1, width // 32)
    padded = F.pad(images, (right, right, down, down), mode="reflect")
    for corner in (2, 0):
        top, left = corner * down, corner * right
        yield padded[..., top : top + height, left : left + width].contiguous()


def _corners(images: Tensor, preprocess: Preprocess) -> Iterator[Tensor]:
    """Crops at the top left, top right, bottom left and bottom right of the padded images."""
    height, width = images.shape[-2:]
    down, right = height // 8, width // 8
    black = preprocess.normalise(torch.zeros(1, 1, preprocess.channels, device=images.device))  # [C, 1, 1]
    padded = black.expand(*images.shape[:-2], height + 2 * down, width + 2 * right).clone()
    padded[..., down : down + height, right : right + width] = images
    for top in (0, 2 * down):
        for left in (0, 2 * right):
            yield padded[..., top : top + height, left : left + width].contiguous()
