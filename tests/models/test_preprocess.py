"""Preprocessing against torchvision's transforms, for images of every shape."""

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
def test_pixels_are_torchvisions_resize_and_centre_crop(name: str) -> None:
    reference = transforms.Compose(
        [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )(photo(name))
    expected = np.asarray(reference, dtype=float)
    difference = np.abs(IMAGENET.pixels(photo(name)).astype(float) - expected).mean()
    # torchvision rounds the resized side and the crop's corner to whole pixels, which moves the window of chelsea and
    # rocket by up to half a pixel each, at most one pixel.
    exact = name in ("astronaut", "coffee")
    one_pixel = np.abs(np.diff(expected, axis=1)).mean()
    assert difference <= (0.02 if exact else 0.6 * one_pixel)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resized", [(224, 224), (200, 100), (64, 64), (512, 512), (90, 70)])
def test_array_is_resized_like_a_pillow_image(
    mode: Literal["L", "RGB"], interpolation: Literal["bilinear", "bicubic"], resized: tuple[int, int]
) -> None:
    size = (50, 100) if resized == (200, 100) else (64, 64)
    channels = len(mode)
    preprocess = Preprocess(
        mode=mode, size=size, interpolation=interpolation, pad=3, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    image = photo("astronaut").resize(resized).convert(mode)
    pixels = preprocess.pixels(np.array(image).reshape(*resized[::-1], channels))
    assert pixels.shape == (size[0] + 6, size[1] + 6, channels)
    difference = np.abs(pixels.astype(int) - preprocess.pixels(image).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@pytest.mark.parametrize("preprocess", [IMAGENET, DIGITS, DIGITS.model_copy(update={"fit": "within", "pad": 0})])
@pytest.mark.parametrize("resized", [(224, 224), (300, 200), (20, 20), (28, 28)])
def test_other_arrays_are_converted_to_images(preprocess: Preprocess, resized: tuple[int, int]) -> None:
    image = photo("astronaut").resize(resized)
    assert np.array_equal(preprocess.pixels(np.array(image)), preprocess.pixels(image))


def test_image_of_the_right_size_is_unchanged() -> None:
    digit = Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28))
    pixels = DIGITS.pixels(digit)
    assert pixels.shape == (32, 32, 1)
    assert np.array_equal(pixels[2:-2, 2:-2, 0], np.asarray(digit))
    assert pixels[:2].sum() == pixels[-2:].sum() == pixels[:, :2].sum() == pixels[:, -2:].sum() == 0
    assert DIGITS(digit).shape == DIGITS.shape == (1, 32, 32)


def test_normalise_is_numpys() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)
    expected = ((pixels - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)).transpose(0, 3, 1, 2)
    torch.testing.assert_close(IMAGENET.normalise(torch.from_numpy(pixels)), torch.from_numpy(expected).float())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 255.0), (127.5, 127.5), (116.3, 58.4)])
def test_denormalise_is_the_inverse(mean: float, std: float) -> None:
    preprocess = Preprocess(size=(16, 16), mean=(mean,) * 3, std=(std, std / 2, std))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3)
    assert torch.equal(preprocess.denormalise(preprocess.normalise(pixels)), pixels)
    assert preprocess.denormalise(torch.full((3, 1, 1), 99.0)).tolist() == [[[255] * 3]]
    assert preprocess.denormalise(torch.full((3, 1, 1), -99.0)).tolist() == [[[0] * 3]]


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1)])
def test_extreme_aspect_ratio_has_bounded_cost(size: tuple[int, int]) -> None:
    grey = Image.new("RGB", size, (10, 200, 30))
    started = time.process_time()
    pixels = IMAGENET.pixels(grey)
    assert time.process_time() - started < 0.5  # 30,000 rows of 224 would be 6.7 M pixels
    assert pixels.shape == (224, 224, 3)
    assert np.array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [[10, 200, 30]])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 40), st.booleans(), st.sampled_from(["L", "RGB"]))
def test_output_has_the_shape_for_any_size(long: int, short: int, upright: bool, mode: str) -> None:
    size = (short, long) if upright else (long, short)
    for preprocess in (IMAGENET, DIGITS):
        pixels = preprocess.pixels(Image.new(mode, size, "white"))
        channels, height, width = preprocess.shape
        assert pixels.shape == (height, width, channels)
        assert pixels.dtype == np.uint8
        assert pixels.max() == 255


@pytest.mark.parametrize(
    ("size", "resized"),
    [((64, 48), (64, 48)), ((10, 7), (10, 7)), ((128, 64), (64, 32)), ((64, 96), (32, 48)), ((9000, 1), (64, 1))],
)
def test_within_shrinks_and_never_enlarges(size: tuple[int, int], resized: tuple[int, int]) -> None:
    within = Preprocess(size=(48, 64), fit="within", interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    image = photo("coffee").resize(size)
    assert within.fitted_size(*size) == resized
    assert within.shape == (3, 48, 64)
    assert np.array_equal(within.pixels(image), np.asarray(image.resize(resized, Image.Resampling.BILINEAR)))
    assert np.array_equal(within.pixels(image.convert("RGBA")), within.pixels(image))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (1.0,)},
        {"std": (0.0, 1.0, 1.0)},
        {"colour": "RGB"},
        {"mean": (float("nan"), 0.0, 0.0)},
        {"std": (float("inf"), 1.0, 1.0)},
        {"fit": "within"},  # with a crop
        {"fit": "within", "crop_fraction": 1.0, "pad": 2},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(IMAGENET.model_dump() | wrong)
