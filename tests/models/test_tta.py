"""The views of test-time augmentation against torchvision's crops of padded images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from models.preprocess import Preprocess
from models.tta import VIEWS, Tta, views
from tests.conftest import photo

SIZES = [(32, 32, 0), (28, 28, 2), (24, 40, 0), (224, 224, 0)]


def preprocessing(height: int, width: int, pad: int) -> Preprocess:
    return Preprocess(size=(height, width), pad=pad, mean=(125.3, 123.0, 113.9), std=(63.0, 62.1, 66.7))


@pytest.mark.parametrize(("height", "width", "pad"), SIZES)
def test_ten_crop_is_torchvisions_of_the_padded_image(height: int, width: int, pad: int) -> None:
    preprocess = preprocessing(height, width, pad)
    pixels = preprocess.pixels(photo("coffee"))
    height, width = preprocess.shape[1:]
    down, right = height // 8, width // 8
    padded = np.pad(pixels, ((down, down), (right, right), (0, 0)))
    crops = tv.ten_crop(preprocess.normalise(torch.from_numpy(padded)), [height, width])
    actual = list(views(preprocess.normalise(torch.from_numpy(pixels.copy())), "ten-crop", preprocess))
    assert len(actual) == VIEWS["ten-crop"]
    # torchvision's order: four corners and the centre, then those of the mirror image, in which left is right.
    for view, index in zip(actual, (4, 9, 0, 6, 1, 5, 2, 8, 3, 7), strict=True):
        assert torch.equal(view, crops[index])
        assert view.is_contiguous()


@pytest.mark.parametrize("kind", ["six-view", "ten-crop"])
def test_batch_has_the_views_of_its_images(kind: Tta) -> None:
    preprocess = preprocessing(32, 32, 0)
    images = torch.stack([preprocess(photo(name)) for name in ("coffee", "rocket", "chelsea")])
    single = [list(views(image, kind, preprocess)) for image in images]
    for number, view in enumerate(views(images, kind, preprocess)):
        assert torch.equal(view, torch.stack([image_views[number] for image_views in single]))


@pytest.mark.parametrize(("height", "width", "pad"), SIZES)
def test_six_views_are_windows_of_numpys_reflection(height: int, width: int, pad: int) -> None:
    preprocess = preprocessing(height, width, pad)
    image = preprocess(photo("coffee"))
    height, width = preprocess.shape[1:]
    down, right = max(1, height // 32), max(1, width // 32)
    padded = np.pad(image.numpy(), ((0, 0), (down, down), (right, right)), mode="reflect")
    actual = [view.numpy() for view in views(image, "six-view", preprocess)]
    assert len(actual) == VIEWS["six-view"]
    windows = [image.numpy(), padded[:, 2 * down :, 2 * right :], padded[:, :height, :width]]
    for number, window in enumerate(windows):
        assert np.array_equal(actual[2 * number], window)
        assert np.array_equal(actual[2 * number + 1], window[..., ::-1])


@pytest.mark.parametrize("kind", VIEWS)
def test_first_views_are_the_image_and_its_mirror_image(kind: Tta) -> None:
    preprocess = preprocessing(32, 32, 0)
    image = preprocess(photo("coffee"))
    actual: list[Tensor] = list(views(image, kind, preprocess))
    assert len(actual) == VIEWS[kind]
    for view, other in zip(actual, (image, image.flip(-1)), strict=False):
        assert torch.equal(view, other)
