"""Test-time augmentation: the views of a picture whose class probabilities are averaged.

`flip`: the picture and its mirror image. `ten-crop`: these two and four corner windows with their mirror images, after
Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.
Deviation: the paper cuts its windows of 224 pixels from a picture of 256. Here the picture as the network receives it
is framed in black, an eighth of its side on each side (4 of 32 pixels, as in training's random crops), and the corner
windows of its own size are cut from that; so every view is made from the one preprocessed picture.

`six-view`: the picture and the picture shifted by 1/32 of its side up and left, and down and right, with the edges
reflected, and the mirror images of the three. After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.
Deviation: there the unshifted views count twice as much as the others; here all count alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.preprocess import Preprocess

Tta = Literal["none", "flip", "six-view", "ten-crop"]

# Every kind begins with the views of "flip", and those with the picture itself.
VIEWS: dict[Tta, int] = {"none": 1, "flip": 2, "six-view": 6, "ten-crop": 10}


def views(images: Tensor, kind: Tta, preprocess: Preprocess) -> Iterator[Tensor]:
    """The `VIEWS[kind]` views of normalised pictures [..., C, H, W], each of that shape, the pictures themselves first.

    `preprocess` is the one that normalised them: it says what black is.
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
    """The pictures shifted up and left, then down and right, by 1/32 of their side, at least a pixel."""
    height, width = images.shape[-2:]
    down, right = max(1, height // 32), max(1, width // 32)
    framed = F.pad(images, (right, right, down, down), mode="reflect")
    for corner in (2, 0):
        top, left = corner * down, corner * right
        yield framed[..., top : top + height, left : left + width].contiguous()


def _corners(images: Tensor, preprocess: Preprocess) -> Iterator[Tensor]:
    """Top left, top right, bottom left, bottom right of the framed pictures."""
    height, width = images.shape[-2:]
    down, right = height // 8, width // 8
    black = preprocess.normalise(torch.zeros(1, 1, preprocess.channels, device=images.device))  # [C, 1, 1]
    framed = black.expand(*images.shape[:-2], height + 2 * down, width + 2 * right).clone()
    framed[..., down : down + height, right : right + width] = images
    for top in (0, 2 * down):
        for left in (0, 2 * right):
            yield framed[..., top : top + height, left : left + width].contiguous()
