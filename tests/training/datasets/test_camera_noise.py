"""Photos with a camera's faults: noise that grows with the light, blur, compression of half of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from training.datasets.camera_noise import photograph, photograph_each
from training.datasets.crops_and_noise import add_noise
from training.recipe.generative_config import CameraNoiseSection, NoiseSection


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def camera(**settings: float) -> CameraNoiseSection:
    return CameraNoiseSection.model_validate({"share": 1, **settings})


def test_variance_grows_with_the_light() -> None:
    clean = torch.full((600, 1, 40, 80), 40 / 255)
    clean[..., 40:] = 160 / 255
    noise = 255 * (photograph(clean, camera(shot=3, jpeg=95), draw()) - clean)
    dark, bright = noise[..., :40].flatten(1).var(dim=1), noise[..., 40:].flatten(1).var(dim=1)
    assert float(bright.mean() / dark.mean()) == pytest.approx(4, rel=0.05)
    assert stats.kstest((bright / 160).numpy(), stats.uniform(0, 3).cdf).statistic < 0.08


def test_read_noise_is_the_same_at_all_values() -> None:
    clean = torch.linspace(0.3, 0.7, 600)[:, None, None, None].expand(-1, 1, 40, 40)
    noise = 255 * (photograph(clean, camera(read=12), draw(1)) - clean)
    deviations = noise.flatten(1).std(dim=1)
    assert stats.kstest(deviations.numpy(), stats.uniform(0, 12).cdf).statistic < 0.08
    assert abs(np.corrcoef(deviations, clean[:, 0, 0, 0])[0, 1]) < 0.15


def test_half_of_the_photos_are_compressed() -> None:
    clean = torch.randint(0, 256, (400, 3, 16, 16), generator=draw()) / 255
    taken = photograph(clean, camera(jpeg=30), draw(2))
    assert ((255 * taken - (255 * taken).round()).abs() < 1e-3).all()
    assert float(taken.min()) >= 0
    assert float(taken.max()) <= 1
    untouched = torch.isclose(taken, clean).all(dim=3).all(dim=2).all(dim=1)
    assert stats.binomtest(int(untouched.sum()), 400, 0.5).pvalue > 0.001


def test_blur_keeps_the_light() -> None:
    point = torch.zeros(50, 1, 21, 21)
    point[..., 10, 10] = 1
    plain = [image for image in 255 * photograph(point, camera(blur=1), draw(3)) if image.max() > 0]
    widths = [float(image[0, 10].count_nonzero()) for image in plain]
    assert min(widths) >= 1
    assert max(widths) >= 5
    stripes = torch.tensor([0.2, 0.8]).repeat(8, 1).repeat_interleave(8, dim=1)[None, None].expand(60, 3, -1, -1)
    means = photograph(stripes, camera(blur=1), draw(4)).mean(dim=(1, 2, 3))
    assert float((means - 0.5).abs().max()) < 0.01


def test_validation_photos_are_fixed_per_image() -> None:
    clean, rows, section = torch.rand(20, 3, 16, 16, generator=draw()), np.arange(20) * 3, camera(shot=2, read=5)
    taken = photograph_each(clean, rows, section, seed=4)
    assert torch.equal(taken[7:9], photograph_each(clean[7:9], rows[7:9], section, seed=4))
    assert not torch.equal(taken, photograph_each(clean, rows, section, seed=5))


def test_a_share_of_the_images_are_photos() -> None:
    clean = torch.full((1000, 1, 8, 8), 0.5)
    section = NoiseSection(sigma=(20, 30), clipped=0, validation=(25,))
    some = section.model_copy(update={"camera": camera().model_copy(update={"share": 0.3})})
    noisy = add_noise(clean, some, draw())
    photos = torch.isclose(255 * noisy, torch.tensor(128.0)).all(dim=3).all(dim=2)[:, 0]
    assert stats.binomtest(int(photos.sum()), 1000, 0.3).pvalue > 0.001
    # White noise is what it was without photos.
    assert torch.equal(noisy[~photos], add_noise(clean, section, draw())[~photos])


def test_batches_without_photos_keep_their_white_noise() -> None:
    section = NoiseSection(sigma=(20, 30), clipped=0, validation=(25,))
    some = section.model_copy(update={"camera": camera(blur=0.8, jpeg=50).model_copy(update={"share": 0.5})})
    clean = torch.rand(1, 3, 8, 8, generator=draw())
    alone = [torch.equal(add_noise(clean, some, draw(n)), add_noise(clean, section, draw(n))) for n in range(200)]
    assert stats.binomtest(sum(alone), 200, 0.5).pvalue > 0.001
