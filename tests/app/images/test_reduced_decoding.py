"""JPEGs decoded at a fraction of their size against the same decoded in full: what classifiers make of both."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from app.images.decoding import Limits, decode
from app.settings import PROJECT
from models import checkpoint
from models.card import ModelCard
from tests.conftest import encode, photo

LIMITS = Limits(bytes=2**25, pixels=50_000_000)
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


@cache
def classifier(name: str) -> tuple[nn.Module, ModelCard]:
    module, card = checkpoint.load(PROJECT / "weights" / name)
    return module.eval(), card


def enlarged(image: Image.Image, side: int, multiple: int) -> bytes:
    """As a JPEG whose shorter side is `side`, or a little more, and both are multiples of that."""
    scale = side / min(image.size)
    width, height = (-(-round(length * scale) // multiple) * multiple for length in image.size)
    return encode(image.resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90)


@torch.inference_mode()
def both(name: str, files: Iterable[bytes], factor: int) -> tuple[Tensor, Tensor]:
    """Probabilities [N, classes] from pictures decoded in full, and from the same at 1/factor of their sides."""
    module, card = classifier(name)
    full, reduced = [], []
    for data in files:
        whole, small = decode(data, LIMITS), decode(data, LIMITS, card.preprocess.max_useful_side)
        assert small.size == (whole.width // factor, whole.height // factor)
        full.append(card.preprocess(whole))
        reduced.append(card.preprocess(small))
    logits = module(torch.stack(full)), module(torch.stack(reduced))
    first, second = ((each / card.temperature).softmax(dim=1) for each in logits)
    return first, second


def assert_alike(full: Tensor, reduced: Tensor) -> None:
    assert torch.equal(full.argmax(dim=1), reduced.argmax(dim=1))
    assert 0 < float((full - reduced).abs().max()) <= 0.02


@pytest.mark.parametrize(
    ("name", "factor"), [("efficientnet-lite0", 2), ("vgg-cifar10", 2), ("vgg-cifar10", 4), ("lenet5-mnist", 2)]
)
def test_photos_are_classified_alike(name: str, factor: int) -> None:
    enough = classifier(name)[1].preprocess.max_useful_side
    assert enough is not None
    full, reduced = both(name, (enlarged(photo(one), factor * enough, factor) for one in PHOTOS), factor)
    assert_alike(full, reduced)


@pytest.mark.data
@pytest.mark.parametrize(("name", "data"), [("vgg-cifar10", "cifar10"), ("lenet5-mnist", "mnist")])
def test_test_pictures_are_classified_alike(name: str, data: str, datasets: Callable[[str], Path]) -> None:
    enough = classifier(name)[1].preprocess.max_useful_side
    assert enough is not None
    pictures = first_pictures(datasets(data) / "test.parquet", 60)
    full, reduced = both(name, (enlarged(one, 2 * enough, 2) for one in pictures), 2)
    assert_alike(full, reduced)


def first_pictures(file: Path, count: int) -> Iterator[Image.Image]:
    rows = pyarrow.parquet.read_table(file, columns=["image"]).slice(0, count).column("image").to_pylist()
    return (Image.open(io.BytesIO(row["bytes"])) for row in rows)
