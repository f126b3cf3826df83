"""Classifiers answer the same for JPEGs decoded at a fraction of their size and at full size."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
import torch
from PIL import Image
from torch import nn

from app.images.decoding import ImageLimits, decode
from app.settings import PROJECT
from models import checkpoint
from models.card import ModelCard
from tests.conftest import encode, photo

LIMITS = ImageLimits(bytes=2**25, pixels=50_000_000)


@cache
def classifier(name: str) -> tuple[nn.Module, ModelCard]:
    module, card = checkpoint.load(PROJECT / "weights" / name)
    return module.eval(), card


@torch.inference_mode()
def check_same_classes(name: str, images: Iterable[Image.Image], factor: int) -> None:
    """Compare the probabilities of images, enlarged by `factor`, decoded at full size and at 1/factor of it."""
    module, card = classifier(name)
    min_side = card.preprocess.max_useful_side
    assert min_side is not None
    full, reduced = [], []
    for image in images:
        scale = factor * min_side / min(image.size)
        width, height = (-(-round(length * scale) // factor) * factor for length in image.size)
        data = encode(image.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90)
        small = decode(data, LIMITS, min_side)
        assert small.size == (width // factor, height // factor)
        full.append(card.preprocess(decode(data, LIMITS)))
        reduced.append(card.preprocess(small))
    logits = module(torch.stack(full)), module(torch.stack(reduced))
    first, second = ((each / card.temperature).softmax(dim=1) for each in logits)
    assert torch.equal(first.argmax(dim=1), second.argmax(dim=1))
    assert 0 < float((first - second).abs().max()) <= 0.02


@pytest.mark.parametrize(
    ("name", "factor"), [("efficientnet-lite0", 2), ("vgg-cifar10", 2), ("vgg-cifar10", 4), ("lenet5-mnist", 2)]
)
def test_reduced_decoding_keeps_the_class(name: str, factor: int) -> None:
    check_same_classes(name, map(photo, ("astronaut", "coffee", "chelsea", "rocket")), factor)
