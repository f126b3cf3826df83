"""Preprocessing against torchvision's transforms, and on pictures of every shape."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms

from models.preprocess import Preprocess
from tests.conftest import photo

IMAGENET = Preprocess(size=(224, 224), crop_fraction=0.875, mean=(127.0,) * 3, std=(128.0,) * 3)
DIGITS = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.3,), std=(78.6,))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_it_is_torchvisions_resize_and_centre_crop(name: str) -> None:
    reference = transforms.Compose(
        [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )(photo(name))
    expected = np.asarray(reference, dtype=float)
    difference = np.abs(IMAGENET.pixels(photo(name)).astype(float) - expected).mean()
    # torchvision rounds the resized side and the crop's corner to whole pixels. Where there is something to round
    # (chelsea, rocket), that moves the window by up to half a pixel each: never more than by one.
    exact = name in ("astronaut", "coffee")
    one_pixel = np.abs(np.diff(expected, axis=1)).mean()
    assert difference <= (0.02 if exact else 0.6 * one_pixel)


def test_a_square_picture_is_torchvisions_to_the_last_level() -> None:
    square = photo("astronaut")  # 512 x 512: nothing to round
    reference = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
            transforms.Lambda(lambda pixels: pixels.float()),
            transforms.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )(square)
    assert (IMAGENET(square) - reference).abs().max() <= 1 / 128 + 1e-6


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("seen", [(224, 224), (200, 100), (64, 64), (512, 512)])
def test_an_array_that_is_shrunk_whole_is_what_pillow_makes_of_it(
    interpolation: Literal["bilinear", "bicubic"], seen: tuple[int, int]
) -> None:
    size = (64, 64) if seen[0] == seen[1] else (50, 100)
    preprocess = Preprocess(size=size, interpolation=interpolation, pad=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    picture = photo("astronaut").resize(seen)
    pixels = preprocess.pixels(np.array(picture))
    assert pixels.shape == (size[0] + 6, size[1] + 6, 3)
    difference = np.abs(pixels.astype(int) - preprocess.pixels(picture).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("preprocess", [IMAGENET, DIGITS, DIGITS.model_copy(update={"fit": "within", "pad": 0})])
@pytest.mark.parametrize("seen", [(224, 224), (300, 200), (20, 20), (28, 28)])
def test_any_other_array_is_the_picture_that_it_is(preprocess: Preprocess, seen: tuple[int, int]) -> None:
    picture = photo("astronaut").resize(seen)
    assert np.array_equal(preprocess.pixels(np.array(picture)), preprocess.pixels(picture))


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    digit = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
    pixels = DIGITS.pixels(digit)
    assert pixels.shape == (32, 32, 1)
    assert np.array_equal(pixels[2:-2, 2:-2, 0], np.asarray(digit))
    assert pixels[:2].sum() == pixels[-2:].sum() == pixels[:, :2].sum() == pixels[:, -2:].sum() == 0
    assert DIGITS(digit).shape == DIGITS.shape == (1, 32, 32)


def test_normalising_is_one_line_of_numpy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    expected = ((pixels - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)).transpose(0, 3, 1, 2)
    torch.testing.assert_close(IMAGENET.normalise(torch.from_numpy(pixels)), torch.from_numpy(expected).float())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 255.0), (127.5, 127.5), (116.3, 58.4)])
def test_denormalising_gives_every_pixel_back(mean: float, std: float) -> None:
    preprocess = Preprocess(size=(16, 16), mean=(mean,) * 3, std=(std, std / 2, std))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3)
    assert torch.equal(preprocess.denormalise(preprocess.normalise(pixels)), pixels)
    assert preprocess.denormalise(torch.full((3, 1, 1), 99.0)).tolist() == [[[255] * 3]]
    assert preprocess.denormalise(torch.full((3, 1, 1), -99.0)).tolist() == [[[0] * 3]]


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1)])
def test_an_absurd_picture_costs_no_more_than_a_square_one(size: tuple[int, int]) -> None:
    grey = Image.new("RGB", size, (10, 200, 30))
    started = time.process_time()
    pixels = IMAGENET.pixels(grey)
    assert time.process_time() - started < 0.5  # 30,000 rows of 224 would be 6.7 M pixels and more
    assert pixels.shape == (224, 224, 3)
    assert np.array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[10, 200, 30]])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 40), st.booleans(), st.sampled_from(["L", "RGB"]))
def test_any_size_comes_out_in_shape(long: int, short: int, upright: bool, mode: str) -> None:
    size = (short, long) if upright else (long, short)
    for preprocess in (IMAGENET, DIGITS):
        pixels = preprocess.pixels(Image.new(mode, size, "white"))
        channels, height, width = preprocess.shape
        assert pixels.shape == (height, width, channels)
        assert pixels.dtype == np.uint8
        assert pixels.max() == 255


@pytest.mark.parametrize(
    ("size", "seen"),
    [((64, 48), (64, 48)), ((10, 7), (10, 7)), ((128, 64), (64, 32)), ((64, 96), (32, 48)), ((9000, 1), (64, 1))],
)
def test_within_shrinks_the_whole_picture_and_never_enlarges_it(size: tuple[int, int], seen: tuple[int, int]) -> None:
    within = Preprocess(size=(48, 64), fit="within", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    picture = photo("coffee").resize(size)
    assert within.fitted_size(*size) == seen
    assert within.shape == (3, 48, 64)
    assert np.array_equal(within.pixels(picture), np.asarray(picture.resize(seen, Image.Resampling.BILINEAR)))
    assert np.array_equal(within.pixels(picture.convert("RGBA")), within.pixels(picture))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (1.0,)},
        {"std": (0.0, 1.0, 1.0)},
        {"size": (0, 10)},
        {"crop_fraction": 0.0},
        {"mode": "CMYK"},
        {"colour": "RGB"},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"std": (float("inf"), 1.0, 1.0)},
        {"fit": "within"},  # and a crop
        {"fit": "within", "crop_fraction": 1.0, "pad": 2},
        {"fit": "stretch"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(IMAGENET.model_dump() | wrong)
