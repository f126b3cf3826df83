"""Camera degradations against plain loops, scipy and Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor

from training.core.seeds import generator
from training.datasets import degradations
from training.datasets.augment import ChannelStatistics, augment
from training.recipe.config import AugmentSection, CameraSection

EVERYTHING = CameraSection(
    chance=0.5, smallest=24, defocus=2.5, motion=9.0, light=0.25, noise=12.0, jpeg=20, grey=True, occlude=True
)


def faces(n: int = 8, channels: int = 3, side: int = 112) -> Tensor:
    """Smooth pictures between 60 and 200, as photos are."""
    coarse = torch.rand(n, channels, 7, 7, generator=generator(0)) * 140 + 60
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)


def test_the_defaults_do_nothing() -> None:
    images = faces()
    assert torch.equal(degradations.degrade(images, CameraSection(chance=1.0), generator(1)), images)
    colours = ChannelStatistics((0.0,) * 3, torch.zeros(3, 3))
    assert augment(images, AugmentSection(), generator(1), colours) is images
    changed = augment(images, AugmentSection(camera=EVERYTHING), generator(1), colours)
    assert not torch.equal(changed, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_degradations_differ_per_image_and_keep_the_scale(channels: int) -> None:
    images = faces(channels=channels)
    before = images.clone()
    changed = degradations.degrade(images, EVERYTHING, generator(2))
    assert torch.equal(images, before)  # the caller's pictures stay as they are
    assert changed.shape == images.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
    assert torch.equal(degradations.degrade(images, EVERYTHING, generator(2)), changed)
    assert not torch.equal(degradations.degrade(images, EVERYTHING, generator(3)), changed)
    same = faces(1).expand(8, -1, -1, -1)
    assert len(torch.unique(degradations.degrade(same, EVERYTHING, generator(2)), dim=0)) > 4


def test_share_of_degraded_images_is_the_chance() -> None:
    images = torch.full((2000, 1, 4, 4), 100.0)
    changed = degradations.degrade(images, CameraSection(chance=0.2, light=0.5), generator(0))
    share = float((changed != images).any(dim=(1, 2, 3)).double().mean())
    assert share == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2000) ** 0.5)


def test_defocus_agrees_with_a_gaussian_filter() -> None:
    images = faces(4)
    sigmas = 2.5 * torch.rand(4, generator=generator(5))
    blurred = degradations.defocus(images, 2.5, generator(5))
    for image, sigma, actual in zip(images, sigmas.tolist(), blurred, strict=True):
        for channel, result in zip(image.numpy(), actual.numpy(), strict=True):
            expected = gaussian_filter(channel.astype(float), sigma, mode="nearest", radius=8)
            assert np.abs(result - expected).max() < 0.05


def test_motion_blur_is_the_mean_along_a_path() -> None:
    images = faces(6)
    blurred = degradations.motion_blur(images, 9.0, generator(4))
    length, turn = torch.rand(2, 6, generator=generator(4)).double()
    rows, columns = np.mgrid[20:90, 20:90].astype(float)
    for image, pixels, angle, actual in zip(images, 9.0 * length, turn * torch.pi, blurred, strict=True):
        total = np.zeros((70, 70))
        for place in np.linspace(-0.5, 0.5, 7):
            x, y = columns + place * float(pixels * angle.cos()), rows + place * float(pixels * angle.sin())
            left, top = np.floor(x).astype(int), np.floor(y).astype(int)
            right, down, grey = x - left, y - top, image[0].double().numpy()
            upper = grey[top, left] * (1 - right) + grey[top, left + 1] * right
            lower = grey[top + 1, left] * (1 - right) + grey[top + 1, left + 1] * right
            total += upper * (1 - down) + lower * down
        assert np.abs(actual[0, 20:90, 20:90].numpy() - total / 7).max() < 0.1


def test_a_small_face_enlarged_has_lost_its_detail() -> None:
    checks = torch.zeros(4, 1, 112, 112)
    checks[:, :, ::2, ::2] = checks[:, :, 1::2, 1::2] = 255
    enlarged = degradations.enlarge_small(checks, 24, generator(0))
    assert float(enlarged.std(dim=(1, 2, 3)).max()) < 40  # of 127 before
    assert float(enlarged.mean()) == pytest.approx(127.5, abs=3)


def test_light_is_a_factor_and_noise_has_its_strength() -> None:
    images = torch.full((500, 1, 8, 8), 128.0)
    factors = degradations.darken(images, 0.25, generator(0))[:, 0, 0, 0] / 128
    assert 0.25 <= float(factors.min()) < 0.27
    assert 0.97 < float(factors.max()) <= 1
    assert float(factors.log().mean()) == pytest.approx(np.log(0.25) / 2, abs=0.06)
    grey = torch.full((500, 3, 16, 16), 128.0)
    deviations = (degradations.sensor_noise(grey, 12.0, generator(0)) - 128).std(dim=(1, 2, 3))
    sigmas = 12.0 * torch.rand(500, 1, 1, 1, generator=generator(0))
    assert torch.allclose(deviations, sigmas[:, 0, 0, 0], rtol=0.15)


def test_grey_agrees_with_pillow() -> None:
    images = faces(2)
    for image, actual in zip(images, degradations.grey(images), strict=True):
        pixels = image.round().byte().movedim(0, -1).numpy()
        expected = np.asarray(Image.fromarray(pixels).convert("L"), float)
        assert np.abs(actual.numpy() - expected).max() < 1.5
    single = faces(2, channels=1)
    assert degradations.grey(single) is single


def test_occlusion_covers_only_its_area() -> None:
    images = faces(40)
    covered = degradations.occlude(images, generator(0))
    changed = (covered != images).any(dim=1)  # [N, 112, 112]
    eyes, mouth = changed[:, 52, 56], changed[:, 92, 56]
    assert torch.equal(eyes, ~mouth)
    assert 8 < int(eyes.sum()) < 32
    for picture, where in zip(covered, changed, strict=True):
        assert float(where.float().mean()) == pytest.approx(0.22, abs=0.06)
        assert len(torch.unique(picture[:, where], dim=1).T) == 1


def test_compression_is_jpeg_in_the_quality_range() -> None:
    images = faces(3).round()
    qualities = torch.randint(20, 96, (3,), generator=generator(6)).tolist()
    for image, quality, actual in zip(images, qualities, degradations.compress(images, 20, generator(6)), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.byte().movedim(0, -1).numpy()).save(buffer, "JPEG", quality=quality)
        expected = np.asarray(Image.open(buffer))
        assert np.array_equal(actual.movedim(0, -1).numpy(), expected.astype(np.float32))
