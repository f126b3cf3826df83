"""Batches of random crops, and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats  # type: ignore[import-untyped]

from models.preprocess import Preprocess
from tests.training.conftest import write_identities
from training.core.errors import DataError
from training.datasets.crops_and_noise import CroppedImages, add_fixed_noise, add_noise
from training.datasets.faces import split_of
from training.recipe.config import AugmentSection
from training.recipe.generative_config import NoiseSection, PicturesSection

UNIT = Preprocess(mode="L", size=(28, 28), mean=(0.0,), std=(255.0,))
NONE = AugmentSection()


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(section: dict[str, object], batch_size: int = 20, preprocess: Preprocess = UNIT) -> CroppedImages:
    return CroppedImages(PicturesSection.model_validate(section), preprocess, batch_size, 1)


def test_epoch_has_each_training_image_once(workshop: Path) -> None:
    pictures = make({"name": "strokes", "validation": 30})
    assert pictures.per_epoch == 5
    seen = torch.cat([pictures.batch(2, index, NONE, draw())[0] for index in range(5)])
    assert seen.shape == (100, 1, 28, 28)
    held = pictures.clean(pictures.held_out)
    as_stored = torch.from_numpy(pictures.set.images[:, :, :, 0].astype(np.float32) / 255)
    for row, picture in enumerate(as_stored):
        count = int((seen[:, 0] == picture).all(dim=(1, 2)).sum())
        assert count == (row not in pictures.held_out)
    assert torch.equal(held[:, 0], as_stored[pictures.held_out])
    numbers = [pictures.batch(2, index, NONE, draw())[1] for index in range(5)]
    rows = np.setdiff1d(np.arange(130), pictures.held_out)
    assert sorted(np.concatenate(numbers)) == sorted(pictures.set.labels[rows])


def test_crops_are_windows_at_all_positions(workshop: Path) -> None:
    pictures = make({"name": "strokes", "validation": 30, "crop": 26, "batch_size": 50})
    whole = torch.from_numpy(pictures.set.images.astype(np.float32) / 255).movedim(-1, 1)
    windows = {(top, left): whole[:, 0, top : top + 26, left : left + 26] for top in range(3) for left in range(3)}
    result = set()
    for index in range(2):
        seen, _ = pictures.batch(0, index, NONE, draw(index))
        assert seen.shape == (50, 1, 26, 26)
        for picture in seen[:, 0]:
            places = [place for place, parts in windows.items() if (parts == picture).all(dim=(1, 2)).any()]
            assert len(places) == 1
            result.update(places)
    assert result == set(windows)
    # The same draws, the same windows; augmentation comes on top.
    plain, again = (pictures.batch(0, 0, NONE, draw(0))[0] for _ in range(2))
    assert torch.equal(plain, again)
    flipped = pictures.batch(0, 0, AugmentSection(flip=True), draw(0))[0]
    mirrored = sum(torch.equal(item, other.flip(-1)) for item, other in zip(flipped, plain, strict=True))
    assert 10 < mirrored < 40


def test_a_data_set_may_have_its_own_size(workshop: Path) -> None:
    within = Preprocess(mode="L", size=(512, 512), fit="within", mean=(0.0,), std=(255.0,))
    pictures = make({"name": "strokes", "validation": 30, "size": 14}, preprocess=within)
    assert pictures.batch(0, 0, NONE, draw())[0].shape == (20, 1, 14, 14)
    assert pictures.clean(pictures.held_out[:3]).shape == (3, 1, 14, 14)
    with pytest.raises(DataError, match="strokes: a crop of 29 from images of"):
        make({"name": "strokes", "validation": 30, "crop": 29})


def test_identities_are_split_as_for_embedders(folders: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for person in range(60):
        images = (Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(3))
        rows += [(image, f"made:{person}") for image in images]
    write_identities(folders / "data/people/train.parquet", rows)
    small = UNIT.model_copy(update={"size": (8, 8)})
    section: dict[str, object] = {"name": "people", "validation": 5, "identities": True}
    pictures = make(section, preprocess=small)

    def splits(numbers: object) -> set[str]:
        return {split_of(pictures.set.classes[number]) for number in np.asarray(numbers)}

    assert len(pictures.held_out) == 5
    assert splits(pictures.set.labels[pictures.held_out]) == {"calibrate"}
    for index in range(pictures.per_epoch):
        assert splits(pictures.batch(0, index, NONE, draw())[1]) == {"train"}
    with pytest.raises(DataError, match="people: 500 validation images from"):
        make(section | {"validation": 500}, preprocess=small)


def test_noise_strength_and_clipping() -> None:
    section = NoiseSection(sigma=(20, 60), clipped=0.25, validation=(25,))
    clean = torch.full((2000, 1, 12, 12), 0.5)
    noise = add_noise(clean, section, draw()) - clean
    deviations = 255 * noise.flatten(1).std(dim=1)
    # Uniform between the ends, up to the sampling error of a deviation from 144 values.
    assert stats.kstest(deviations.numpy(), stats.uniform(20, 40).cdf).statistic < 0.06
    assert abs(float(noise.mean())) < 0.002

    dark = add_noise(torch.zeros(2000, 1, 12, 12), section, draw(1))
    clipped = (dark >= 0).all(dim=(1, 2, 3))
    assert stats.binomtest(int(clipped.sum()), 2000, 0.25).pvalue > 0.001
    assert dark[~clipped].min() < -0.05
    assert dark[clipped].max() <= 1
    never = NoiseSection(sigma=(50, 50), clipped=0, validation=(25,))
    assert not (add_noise(torch.zeros(200, 1, 4, 4), never, draw()) >= 0).all(dim=(1, 2, 3)).any()


def test_validation_noise_is_fixed_per_image() -> None:
    clean, rows = torch.rand(50, 1, 16, 16), np.arange(50) * 3
    noisy = add_fixed_noise(clean, rows, 25.5, seed=4)
    assert torch.equal(noisy[7:9], add_fixed_noise(clean[7:9], rows[7:9], 25.5, seed=4))
    assert float((noisy - clean).std()) == pytest.approx(0.1, rel=0.02)
    for other in (add_fixed_noise(clean, rows, 25.4, 4), add_fixed_noise(clean, rows, 25.5, 5)):
        assert np.corrcoef((noisy - clean).flatten(), (other - clean).flatten())[0, 1] < 0.05
    assert noisy.min() < 0
