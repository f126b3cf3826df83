"""Augmentation against plain loops, numpy, scikit-learn and torchvision."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare  # type: ignore[import-untyped]
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from training.core.seeds import generator
from training.datasets.augment import (
    ChannelStatistics,
    affine,
    augment,
    augment_differentiably,
    blend,
    colour_basis,
    colour_pca,
    cutmix,
    cutout,
    draw_affine,
    first_flips,
    mirror,
    mixup,
    rand_augment,
    random_flip,
)
from training.recipe.config import AugmentSection

COLOURS = ChannelStatistics((100.5, 50.25), torch.tensor([[4.0, -1.0], [3.0, 2.0]]))


def pictures(n: int = 6, channels: int = 2, height: int = 9, width: int = 9) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator(0)) * 254 + 1  # nothing in it is black


def matrix(rows: list[list[float]], n: int = 6) -> Tensor:
    return torch.tensor(rows).expand(n, 2, 3)


@pytest.mark.parametrize("config", [AugmentSection(), AugmentSection(flip="alternating")])
def test_defaults_and_alternating_flip_change_nothing(config: AugmentSection) -> None:
    images = pictures()
    assert augment(images, config, generator(1), COLOURS) is images


def test_affine_agrees_with_numpy() -> None:
    images = pictures()
    assert torch.equal(draw_affine(6, AugmentSection(), generator(1)), matrix([[1, 0, 0], [0, 1, 0]]))
    cases: list[tuple[list[list[float]], Tensor]] = [
        ([[1, 0, 0], [0, 1, 0]], images),
        ([[0, -1, 0], [1, 0, 0]], torch.rot90(images, 1, (2, 3))),  # above in the output is right in the input
        ([[1, 0, 2 * 2 / 9], [0, 1, 0]], F.pad(images, (0, 2))[..., 2:]),  # two pixels of nine, sides of length 2
    ]
    for rows, expected in cases:
        torch.testing.assert_close(affine(images, matrix(rows)), expected, rtol=0, atol=1e-2)


def test_rotation_of_an_oblong_image_keeps_distances() -> None:
    images = torch.zeros(1, 1, 11, 21)
    images[0, 0, 5, 13] = 100  # three pixels right of the centre
    turned = affine(images, matrix([[0, -1, 0], [1, 0, 0]], 1))
    assert divmod(int(turned.argmax()), 21) == (2, 10)  # three pixels above it
    assert float(turned.max()) == pytest.approx(100, abs=1e-2)


def test_affine_matrices_are_rotation_times_shear_in_range() -> None:
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


@pytest.mark.parametrize(("fill", "mode"), [("black", "constant"), ("reflect", "reflect")])
def test_each_crop_is_a_window_of_the_padded_image(
    fill: Literal["black", "reflect"], mode: Literal["constant", "reflect"]
) -> None:
    images = pictures(200, height=5, width=7)
    cropped = augment(images, AugmentSection(crop=2, crop_fill=fill), generator(1), COLOURS)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=mode)
    positions = set()
    for new, wide in zip(cropped.numpy(), padded, strict=True):
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(new, wide[:, y : y + 5, x : x + 7])]
        assert len(fits) == 1
        positions.add(fits[0])
    assert len(positions) == 25


def test_random_halves_of_the_images_are_mirrored() -> None:
    first = first_flips(10_000, 3)
    assert 4800 < int(first.sum()) < 5200
    assert torch.equal(first, first_flips(10_000, 3))
    assert not torch.equal(first, first_flips(10_000, 4))
    images, chosen = pictures(400), torch.rand(400, generator=generator(1)) < 0.5
    expected = [image.numpy()[:, :, ::-1] if flips else image for image, flips in zip(images, chosen, strict=True)]
    assert np.array_equal(random_flip(images, generator(1)).numpy(), np.stack(expected))
    assert torch.equal(mirror(images, chosen), random_flip(images, generator(1)))


def test_mixup_blends_images_and_targets_by_the_same_share() -> None:
    n = 50
    images, targets = named(n)
    mixed, soft = mixup(images, targets, 0.4, generator(1))
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(n))
    torch.testing.assert_close(mixed[:, 0, 0, 0], soft @ torch.arange(n).float())
    share = soft.diagonal()
    assert bool(((soft > 0).sum(dim=1) <= 2).all())
    assert float(share.min()) < 0.1
    assert float(share.max()) > 0.9


def named(n: int, height: int = 8, width: int = 12) -> tuple[Tensor, Tensor]:
    """Pictures whose value names them, and their targets [N, N]."""
    images = torch.arange(n).float()[:, None, None, None].expand(n, 1, height, width).contiguous()
    return images, F.one_hot(torch.arange(n)).float()


def test_cutmix_pastes_one_box_and_weights_by_area() -> None:
    n = 300
    images, targets = named(n)
    mixed, soft = cutmix(images, targets, 1.0, generator(1))
    sizes = set()
    for row, picture in enumerate(mixed[:, 0]):
        inside = (picture != row).nonzero()
        expected = torch.zeros(n)
        expected[row] = 1 - len(inside) / 96
        if len(inside):
            height, width = (inside.amax(dim=0) - inside.amin(dim=0) + 1).tolist()
            assert len(inside) == height * width  # a whole box
            (other,) = picture[picture != row].unique().long().tolist()  # of one other image
            expected[other] = len(inside) / 96
            sizes.add((height, width))
        torch.testing.assert_close(soft[row], expected)
    # A whole side would need the whole share.
    heights, widths = map(set, zip(*sizes, strict=True))
    assert (heights, widths) == (set(range(1, 8)), set(range(1, 12)))
    # What is cut off at the edges makes the boxes smaller than their uniform shares.
    assert 0.55 < float(soft.diagonal().mean()) < 0.75


def test_cutmix_box_side_is_the_root_of_its_share() -> None:
    images, targets = named(2000, 32, 32)
    _, soft = cutmix(images, targets, 50.0, generator(2))  # nearly always half of the area: a side of 22
    kept = soft.diagonal()
    assert float(kept.min()) > 1 - 26 * 26 / 1024
    # Expected over uniform centres: a side of 22 keeps 22 - (11 * 12 / 2 + 10 * 11 / 2) / 32 pixels of its own.
    side = 22 - (11 * 12 / 2 + 10 * 11 / 2) / 32
    assert float(kept.mean()) == pytest.approx(1 - (side / 32) ** 2, abs=0.02)


def test_mixup_and_cutmix_alternate_at_random() -> None:
    images, targets = named(20)
    config = AugmentSection(mixup=0.4, cutmix=1.0)
    patched = 0
    for seed in range(200):
        mixed, soft = blend(images, targets, config, generator(seed))
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(20))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), soft @ torch.arange(20).float())
        patched += not torch.equal(mixed, mixed[:, :, :1, :1].expand_as(mixed))
    assert 75 < patched < 125


@pytest.mark.parametrize("side", [1, 4, 5, 30])
def test_cutout_squares_have_uniform_centres(side: int) -> None:
    images = pictures(600, height=7, width=9)
    cut = cutout(images, side, COLOURS.mean, generator(1))
    filled = cut == torch.tensor(COLOURS.mean)[None, :, None, None]
    expected = set()
    for y, x in itertools.product(range(7), range(9)):
        square = torch.zeros(7, 9, dtype=torch.bool)
        square[max(y - side // 2, 0) : y - side // 2 + side, max(x - side // 2, 0) : x - side // 2 + side] = True
        expected.add(tuple(square.flatten().tolist()))
    assert torch.equal(filled[:, 0], filled[:, 1])
    assert torch.equal(cut[~filled], images[~filled])
    assert {tuple(mask[0].flatten().tolist()) for mask in filled} == expected


def test_colour_basis_agrees_with_pca() -> None:
    numbers = np.random.default_rng(1)
    skew = numbers.normal(size=(3, 3)) * 25
    pixels = (numbers.normal(size=(5000, 4, 6, 3)) @ skew + 128).round().clip(0, 255).astype(np.uint8)
    rows = np.arange(1, 5000, 2)  # 2,500: every second one is looked at
    basis = colour_basis(pixels, rows).double().numpy()
    analysis = PCA().fit(pixels[rows[::2]].reshape(-1, 3) / 255)
    for column, vector, value in zip(basis.T[::-1], analysis.components_, analysis.explained_variance_, strict=True):
        expected = 255 * value * vector * np.sign(vector[0])
        np.testing.assert_allclose(column, expected, rtol=2e-3, atol=1e-3)
    # With every row within the bound, all of them count: other pixels, another basis.
    assert not np.allclose(colour_basis(pixels, rows[:2000:2]).numpy(), basis, rtol=1e-4)


def test_colour_pca_adds_one_colour_to_a_whole_picture() -> None:
    images = pictures(4000)
    changed = colour_pca(images, 0.1, COLOURS.basis, generator(1))
    added = (changed - images).double()
    colour = added[:, :, 0, 0]
    torch.testing.assert_close(added, colour[:, :, None, None].expand_as(added), rtol=0, atol=1e-4)
    covariance = 0.01 * (COLOURS.basis @ COLOURS.basis.T).double()
    torch.testing.assert_close(torch.cov(colour.T), covariance, rtol=0.1, atol=0.005)
    torch.testing.assert_close(colour.mean(dim=0), torch.zeros(2).double(), rtol=0, atol=0.03)


def smooth(channels: int) -> Tensor:
    """A picture uint8 [C, 16, 20] with soft edges, as photographs have them."""
    coarse = torch.rand(1, channels, 4, 5, generator=generator(3)) * 255
    return F.interpolate(coarse, (16, 20), mode="bicubic")[0].clamp(10, 240).to(torch.uint8)


def outcomes(pictures: Tensor) -> Tensor:
    """Those of [N, C, H, W] that differ by more than a rounding, as float."""
    result: list[Tensor] = []
    for picture in pictures.float():
        if all(float((picture - other).abs().max()) > 2 for other in result):
            result.append(picture)
    return torch.stack(result)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_agrees_with_torchvision(channels: int, magnitude: int) -> None:
    picture, fill = smooth(channels), [100.0, 50.0, 20.0][:channels]
    reference = v2.RandAugment(num_ops=1, magnitude=magnitude, interpolation="bilinear", fill=fill)
    torch.manual_seed(1)
    expected = outcomes(torch.stack([reference(picture) for _ in range(400)]))
    changed = rand_augment(picture.float().expand(400, -1, -1, -1), 1, magnitude, fill, generator(1))
    assert changed.dtype == torch.float32
    ours = outcomes(changed)
    assert len(ours) == len(expected)
    assert len(ours) > (15 if magnitude else 2)
    for item in ours:
        assert float((item - expected).abs().amax(dim=(1, 2, 3)).min()) <= 1


def test_operations_of_rand_augment_are_equally_likely_and_independent() -> None:
    images, fill = smooth(3).float().expand(7000, -1, -1, -1), [100.0, 50.0, 20.0]
    changed = rand_augment(images, 1, 20, fill, generator(4))
    _, operations, counts = np.unique(changed.flatten(1), axis=0, return_inverse=True, return_counts=True)
    # Nine operations with two signs; the identity and four others without.
    assert chisquare(np.sort(counts), [7000 / 28] * 18 + [7000 / 14] * 5).pvalue > 0.01
    pairs = np.zeros((23, 23))
    np.add.at(pairs, (operations[::2], operations[1::2]), 1)
    assert chi2_contingency(pairs).pvalue > 0.01
    other = torch.cat([images[:30], 255 - images[:30]])
    same, different = (rand_augment(batch, 1, 20, fill, generator(4))[:30] for batch in (images[:60], other))
    assert torch.equal(same, different)


def test_two_operations_are_composed() -> None:
    fill, picture = [9.0, 9.0, 9.0], smooth(3).float()
    once = outcomes(rand_augment(picture.expand(400, -1, -1, -1), 1, 12, fill, generator(1)))
    assert len(once) > 15
    expected = torch.cat([rand_augment(item.expand(200, -1, -1, -1), 1, 12, fill, generator(2)) for item in once])
    twice = rand_augment(picture.expand(60, -1, -1, -1), 2, 12, fill, generator(3))
    distances = [float((item - expected).abs().mean(dim=(1, 2, 3)).min()) for item in twice]
    assert max(distances) < 0.5  # a rounding of the first may become more in the second, in few places
    alone = [float((item - once).abs().mean(dim=(1, 2, 3)).min()) for item in twice]
    assert sum(distance > 0.5 for distance in alone) > 30


@pytest.mark.parametrize(
    "config",
    [
        AugmentSection(rotate=10, translate=0.1, scale=(0.9, 1.1), shear=5, crop=2, flip=True, cutout=3),
        AugmentSection(rand_augment=(2, 9), colour_pca=0.1, cutout=3, crop=1),
    ],
)
def test_augmentation_repeats_with_its_generator_and_keeps_its_input(config: AugmentSection) -> None:
    colours = ChannelStatistics((9.0, 8.0, 7.0), torch.eye(3))
    images = pictures(channels=3)
    before = images.clone()
    first = augment(images, config, generator(1), colours)
    assert torch.equal(first, augment(images, config, generator(1), colours))
    assert not torch.equal(first, augment(images, config, generator(2), colours))
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, torch.float32)
    assert config.colour_pca or 0 <= float(first.min()) <= float(first.max()) <= 255 + 1e-3


def test_differentiable_augmentation_is_a_loop_over_images() -> None:
    images = torch.rand(5, 3, 16, 16, generator=generator(0)) * 2 - 1
    changed = augment_differentiably(images, ("cutout", "translation", "colour"), generator(1))
    draw = generator(1)
    brightness, saturation, contrast = torch.rand(3, 5, generator=draw).tolist()
    down, right = torch.randint(0, 5, (2, 5), generator=draw).tolist()
    top, left = torch.randint(16, (5,), generator=draw).tolist(), torch.randint(16, (5,), generator=draw).tolist()
    for n, image in enumerate(images.double().numpy()):
        expected = image + brightness[n] - 0.5
        grey = expected.mean(axis=0)
        expected = grey + 2 * saturation[n] * (expected - grey)
        expected = expected.mean() + (0.5 + contrast[n]) * (expected - expected.mean())
        expected = np.pad(expected, ((0, 0), (2, 2), (2, 2)))[:, down[n] : down[n] + 16, right[n] : right[n] + 16]
        expected[:, max(0, top[n] - 4) : top[n] + 4, max(0, left[n] - 4) : left[n] + 4] = 0
        np.testing.assert_allclose(changed[n].numpy(), expected, rtol=0, atol=1e-5)


def test_differentiable_augmentation_passes_gradients() -> None:
    images = torch.rand(2, 3, 8, 8, generator=generator(0), dtype=torch.float64).requires_grad_()

    def changed(x: Tensor) -> Tensor:
        return augment_differentiably(x, ("colour", "translation", "cutout"), generator(1))

    assert torch.autograd.gradcheck(changed, images)
    assert augment_differentiably(images, (), generator(1)) is images
