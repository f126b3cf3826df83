"""Augmentation against what it should be: identities, flips, plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.augment import affine, augment, draw_affine, mixup, random_crop, random_flip
from training.config import AugmentSection
from training.seeds import generator


def pictures(n: int = 6, channels: int = 2, height: int = 9, width: int = 9) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator(0)) * 254 + 1  # nothing in it is black


def matrix(rows: list[list[float]], n: int = 6) -> Tensor:
    return torch.tensor(rows).expand(n, 2, 3)


def test_the_defaults_do_nothing() -> None:
    images = pictures()
    assert augment(images, AugmentSection(), generator(1)) is images


def test_no_turn_is_the_picture_itself() -> None:
    images = pictures(width=7)
    drawn = draw_affine(6, AugmentSection(), generator(1))
    assert torch.equal(drawn, matrix([[1, 0, 0], [0, 1, 0]]))
    torch.testing.assert_close(affine(images, drawn), images, rtol=0, atol=1e-3)


def test_a_quarter_turn_is_rot90() -> None:
    images = pictures()
    turned = affine(images, matrix([[0, -1, 0], [1, 0, 0]]))  # above in the output is right in the input
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), rtol=0, atol=1e-2)


def test_a_turn_of_an_oblong_picture_keeps_distances() -> None:
    images = torch.zeros(1, 1, 11, 21)
    images[0, 0, 5, 13] = 100  # three pixels right of the centre
    turned = affine(images, matrix([[0, -1, 0], [1, 0, 0]], 1))
    assert divmod(int(turned.argmax()), 21) == (2, 10)  # three pixels above it
    assert float(turned.max()) == pytest.approx(100, abs=1e-2)


def test_a_shift_brings_in_black() -> None:
    images = pictures()
    moved = affine(images, matrix([[1, 0, 2 * 2 / 9], [0, 1, 0]]))  # two pixels of nine, sides of length 2
    torch.testing.assert_close(moved, F.pad(images, (0, 2))[..., 2:], rtol=0, atol=1e-2)


def test_matrices_are_turn_times_shear_within_the_recipe_s_ranges() -> None:
    config = AugmentSection(rotate=30, translate=0.1, scale=(0.5, 2.0), shear=20)
    drawn = draw_affine(500, config, generator(2))
    numbers = torch.rand(5, 500, generator=generator(2))
    for row in range(0, 500, 50):
        turn, slant = ((2 * float(x) - 1) * math.radians(d) for x, d in zip(numbers[:2, row], (30, 20), strict=True))
        scale = 0.5 * 4 ** float(numbers[2, row])
        rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        expected = rotation @ torch.tensor([[1.0, math.tan(slant)], [0.0, 1.0]]) / scale
        torch.testing.assert_close(drawn[row, :, :2], expected)
    assert float(drawn[:, :, 2].abs().max()) <= 0.2
    assert float(drawn[:, :, 2].abs().max()) > 0.19
    areas = torch.linalg.det(drawn[:, :, :2]) ** -0.5
    assert 0.5 - 1e-5 <= float(areas.min()) < 0.52
    assert 1.92 < float(areas.max()) <= 2 + 1e-5


def test_each_picture_is_mirrored_or_not() -> None:
    images = pictures(400)
    flipped = random_flip(images, generator(1))
    mirrored = [bool(torch.equal(new, old.flip(-1))) for new, old in zip(flipped, images, strict=True)]
    kept = [bool(torch.equal(new, old)) for new, old in zip(flipped, images, strict=True)]
    assert [a != b for a, b in zip(mirrored, kept, strict=True)] == [True] * 400
    assert 150 < sum(mirrored) < 250


def test_each_crop_is_a_window_of_the_padded_picture() -> None:
    images = pictures(200, height=5, width=7)
    cropped = random_crop(images, 2, generator(1))
    padded = F.pad(images, (2, 2, 2, 2))
    places = set()
    for new, wide in zip(cropped, padded, strict=True):
        fits = [(y, x) for y in range(5) for x in range(5) if torch.equal(new, wide[:, y : y + 5, x : x + 7])]
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) == 25


def test_mixup_blends_pictures_and_targets_by_the_same_share() -> None:
    n = 50
    images = torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)  # a picture's value names it
    targets = F.one_hot(torch.arange(n)).float()
    mixed, soft = mixup(images, targets, 0.4, generator(1))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(n))
    torch.testing.assert_close(mixed[:, 0, 0, 0], soft @ torch.arange(n).float())
    share = soft.diagonal()
    assert bool(((soft > 0).sum(dim=1) <= 2).all())
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9


def test_all_of_it_repeats_with_its_generator_and_stays_in_range() -> None:
    config = AugmentSection(rotate=10, translate=0.1, scale=(0.9, 1.1), shear=5, crop=2, flip=True)
    first = augment(pictures(), config, generator(1))
    assert torch.equal(first, augment(pictures(), config, generator(1)))
    assert not torch.equal(first, augment(pictures(), config, generator(2)))
    assert first.shape == (6, 2, 9, 9)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 255 + 1e-3
