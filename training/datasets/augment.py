"""Random augmentations of batches of images; the parameters are drawn for each image.

Images are float [N, C, H, W] on the 0..255 scale, before normalisation, so that pixels filled with zeros are black.
Random numbers are drawn from a CPU generator and then moved, so that they are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from models.preprocess import Preprocess
from training.core import seeds
from training.datasets.degradations import degrade
from training.recipe.config import AugmentSection, Differentiable

# The choices of `rand_augment`. The first has no effect; those after `sharpness` have no sign.
OPERATIONS = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
_UNSIGNED = OPERATIONS.index("posterize")
_COLOUR_SAMPLE = 2000


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of the training set: each channel's mean (0..255), and its `colour_basis`."""

    mean: tuple[float, ...]
    basis: Tensor


def channel_statistics(
    images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], config: AugmentSection, preprocess: Preprocess
) -> ChannelStatistics:
    """Return the mean of `preprocess` and, if `config` uses it, the colour basis of `rows`, else zeros."""
    channels = preprocess.channels
    basis = colour_basis(images, rows) if config.colour_pca else torch.zeros(channels, channels)
    return ChannelStatistics(preprocess.mean, basis)


def augment(
    images: Tensor, config: AugmentSection, generator: torch.Generator, statistics: ChannelStatistics
) -> Tensor:
    """Apply all augmentations of `config` to images [N, C, H, W].

    Not included: `blend`, which needs the labels, and the alternating flip, which needs the rows (see `first_flips`).
    """
    warps = bool(config.rotate or config.translate or config.shear or config.scale != (1.0, 1.0))
    changes: list[tuple[bool, Callable[[Tensor], Tensor]]] = [
        (warps, lambda x: affine(x, draw_affine(len(x), config, generator))),
        (config.crop > 0, lambda x: random_crop(x, config.crop, generator, config.crop_fill)),
        (config.flip is True, lambda x: random_flip(x, generator)),
        (config.rand_augment[0] > 0, lambda x: rand_augment(x, *config.rand_augment, statistics.mean, generator)),
        (config.colour_pca > 0, lambda x: colour_pca(x, config.colour_pca, statistics.basis, generator)),
        (config.cutout > 0, lambda x: cutout(x, config.cutout, statistics.mean, generator)),
        (config.camera.chance > 0, lambda x: degrade(x, config.camera, generator)),
    ]
    for enabled, change in changes:
        if enabled:
            images = change(images)
    return images


def blend(images: Tensor, targets: Tensor, config: AugmentSection, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Apply `mixup` or `cutmix` to images and targets [N, K]; if `config` has both, a coin decides for the batch."""
    mix = config.mixup > 0
    if config.mixup and config.cutmix:
        mix = bool(torch.rand((), generator=generator) < 0.5)
    if mix:
        return mixup(images, targets, config.mixup, generator)
    return cutmix(images, targets, config.cutmix, generator)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    return mirror(images, torch.rand(len(images), generator=generator) < 0.5)


def first_flips(count: int, seed: int) -> Tensor:
    """Choose which of `count` images the even epochs of an alternating flip mirror: bool [count], half of them true.

    The odd epochs mirror the other half. After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024: two
    consecutive epochs show every image both ways, while independent flips show half of the images one way only.
    """
    return torch.rand(count, generator=seeds.generator(seed, "flip")) < 0.5


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the images for which `chosen` [N] is true left to right."""
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(
    images: Tensor, padding: int, generator: torch.Generator, fill: Literal["black", "reflect"] = "black"
) -> Tensor:
    """Shift each image by up to `padding` whole pixels in both directions; `fill` is the content outside the image."""
    n, _, height, width = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    rows = shift[0, :, None] + torch.arange(height, device=images.device)  # [N, H]
    columns = shift[1, :, None] + torch.arange(width, device=images.device)  # [N, W]
    padded = F.pad(images, (padding,) * 4, mode="reflect" if fill == "reflect" else "constant")
    batch = torch.arange(n, device=images.device)[:, None, None]
    # Channels last while indexing: index tensors on both sides of a slice would put their dimensions first.
    return padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def draw_affine(n: int, config: AugmentSection, generator: torch.Generator) -> Tensor:
    """Draw matrices [N, 2, 3] that map output to input coordinates, -1..1 from edge to edge.

    Rotation and shear are uniform in degrees to either side, the shift is uniform in fractions of a side, the scale
    uniform in its logarithm.
    """
    turn, shear, log_scale, right, down = torch.rand(5, n, generator=generator)
    turn = (2 * turn - 1) * math.radians(config.rotate)
    slant = torch.tan((2 * shear - 1) * math.radians(config.shear))
    low, high = (math.log(side) for side in config.scale)
    scale = torch.exp(low + (high - low) * log_scale)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    matrix = torch.stack([cos, cos * slant - sin, sin, sin * slant + cos], dim=1).view(n, 2, 2)
    shift = torch.stack([2 * right - 1, 2 * down - 1], dim=1) * (2 * config.translate)  # [N, 2]
    return torch.cat([matrix, shift[:, :, None]], dim=2)


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Warp images by `matrices` of `draw_affine`, bilinear, black outside; rotations keep angles at any aspect."""
    height, width = images.shape[-2:]
    aspect = torch.tensor([[1.0, height / width, 1.0], [width / height, 1.0, 1.0]])
    grid = F.affine_grid((matrices * aspect).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each image and its target [N, K] with another of the batch, by shares from Beta(alpha, alpha).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; here the share is drawn for each image.
    """
    share = _draw_beta(len(images), alpha, generator).float().to(images.device)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = torch.lerp(images[other], images, share[:, None, None, None])
    return mixed, torch.lerp(targets[other], targets, share[:, None])


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fill a box of each image from another of the batch; blend targets [N, K] by the area that was kept.

    The box has the image's aspect and, before it is clipped at the edges, a share from Beta(alpha, alpha) of its area;
    its centre is uniform. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", ICCV 2019; here the box is drawn for each image.
    """
    n, _, height, width = images.shape
    side = _draw_beta(n, alpha, generator).sqrt()
    other = torch.randperm(n, generator=generator)
    box = _draw_boxes((height, width), (height * side).long(), (width * side).long(), generator).to(images.device)
    kept = 1 - box.float().mean(dim=(2, 3))  # [N, 1]
    other = other.to(images.device)
    return torch.where(box, images[other], images), torch.lerp(targets[other], targets, kept)


def cutout(images: Tensor, side: int, fill: Sequence[float], generator: torch.Generator) -> Tensor:
    """Fill a square of each image with one value a channel; its centre is uniform, and it is clipped at the edges.

    DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """
    sides = torch.full((len(images),), side)
    box = _draw_boxes((images.shape[2], images.shape[3]), sides, sides, generator).to(images.device)
    return torch.where(box, torch.tensor(fill, device=images.device)[:, None, None], images)


def _draw_beta(n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return `n` draws from Beta(alpha, alpha), float64."""
    # torch has no public function that draws from Beta with a generator.
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    return torch.from_numpy(random.beta(alpha, alpha, n))


def _draw_boxes(size: tuple[int, int], heights: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    """Return masks of boxes with these heights and widths [N] and uniform centres: bool [N, 1, *size]."""
    covered = []
    for side, extent in zip(size, (heights, widths), strict=True):
        first = torch.randint(side, (len(extent),), generator=generator) - extent // 2
        position = torch.arange(side)
        covered.append((position >= first[:, None]) & (position < (first + extent)[:, None]))  # [N, side]
    return (covered[0][:, :, None] & covered[1][:, None, :])[:, None]


def colour_basis(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Tensor:
    """Return the principal components of the colours of images [N, H, W, C], for `colour_pca`: float32 [C, C].

    A column is an eigenvector of the channels' covariance, of at most 2,000 of `rows`, times its eigenvalue. The paper
    does not state the scale of its eigenvalues; here, as is usual, pixels are in 0..1. The columns are then scaled to
    0..255, and their first number is made non-negative.
    """
    chosen = rows[:: -(-len(rows) // _COLOUR_SAMPLE)]
    channels = images.shape[-1]
    count, total, products = 0, np.zeros(channels), np.zeros((channels, channels))
    for first in range(0, len(chosen), 64):
        pixels = images[chosen[first : first + 64]].reshape(-1, channels) / 255
        count += len(pixels)
        total += pixels.sum(axis=0)
        products += pixels.T @ pixels
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    signs = np.where(vectors[0] < 0, -1, 1)
    return torch.from_numpy(255 * vectors * signs * values).float()


def colour_pca(images: Tensor, deviation: float, basis: Tensor, generator: torch.Generator) -> Tensor:
    """Add one colour to all pixels of an image: N(0, deviation) times each column of `basis`, see `colour_basis`.

    Section 4.1 of Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    NIPS 2012. As there, values are not clipped to 0..255.
    """
    strength = deviation * torch.randn(len(images), basis.shape[1], generator=generator)
    return images + (strength @ basis.T).to(images.device)[:, :, None, None]


def rand_augment(
    images: Tensor, count: int, magnitude: int, fill: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Apply `count` random `OPERATIONS`, with random signs, to each image of 1 or 3 channels.

    `magnitude`, 0..30, is the same for all: 30 is a shear of 0.3, a shift of 150/331 of the side, a rotation by 30
    degrees, a factor of 1 +- 0.9, 4 bits of 8, a full solarisation. `fill` is the value outside the image. Images are
    rounded to 8 bits. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
    2020.
    """
    rounded = images.round().clamp(0, 255).to(torch.uint8)
    operations = torch.randint(len(OPERATIONS), (count, len(images)), generator=generator)
    signs = torch.randint(2, (count, len(images)), generator=generator) * (operations < _UNSIGNED)
    apply = _operations(rounded.shape[2], rounded.shape[3], list(fill))
    for group in operations * 2 + signs:  # [N]; one call for all images with the same operation and sign
        changed = rounded.clone()
        for number in group.unique().tolist():
            operation, sign = divmod(number, 2)
            rows = (group == number).nonzero()[:, 0].to(images.device)
            strength = (-1 if sign else 1) * magnitude / 30
            changed[rows] = apply[OPERATIONS[operation]](rounded[rows], strength)
        rounded = changed
    return rounded.float()


def _operations(height: int, width: int, fill: list[float]) -> dict[str, Callable[[Tensor, float], Tensor]]:
    """Return functions of uint8 images [N, C, H, W] and a strength in -1..1, or 0..1 where there is no sign."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    def warp(
        images: Tensor, angle: float = 0.0, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        # Shears are about the top left corner, as in the authors' code.
        centre = [0.0, 0.0] if any(shear) else None
        degrees = [math.degrees(math.atan(slope)) for slope in shear]
        moved: Tensor = tv.affine(
            images, angle, list(shift), 1.0, degrees, InterpolationMode.BILINEAR, fill=fill, center=centre
        )
        return moved

    return {
        "identity": lambda x, _: x,
        "shear-x": lambda x, s: warp(x, shear=(0.3 * s, 0.0)),
        "shear-y": lambda x, s: warp(x, shear=(0.0, 0.3 * s)),
        "translate-x": lambda x, s: warp(x, shift=(int(150 / 331 * width * s), 0)),
        "translate-y": lambda x, s: warp(x, shift=(0, int(150 / 331 * height * s))),
        "rotate": lambda x, s: warp(x, angle=30 * s),
        "brightness": lambda x, s: tv.adjust_brightness(x, 1 + 0.9 * s),
        "saturation": lambda x, s: tv.adjust_saturation(x, 1 + 0.9 * s),
        "contrast": lambda x, s: tv.adjust_contrast(x, 1 + 0.9 * s),
        "sharpness": lambda x, s: tv.adjust_sharpness(x, 1 + 0.9 * s),
        "posterize": lambda x, s: tv.posterize(x, 8 - round(4 * s)),
        "solarize": lambda x, s: tv.solarize(x, 255 * (1 - s)),
        "autocontrast": lambda x, _: tv.autocontrast(x),
        "equalize": lambda x, _: tv.equalize(x),
    }


def augment_differentiably(images: Tensor, operations: Sequence[Differentiable], generator: torch.Generator) -> Tensor:
    """Apply `operations` to images [N, C, H, W] in -1..1; gradients pass to the images.

    `colour`: add up to 0.5 to the brightness, then multiply saturation by 0..2 and contrast by 0.5..1.5. `translation`:
    shift by up to an eighth of the side, grey outside. `cutout`: a grey square of half the side. Zhao, Liu, Lin, Zhu,
    Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020.
    """
    side = images.shape[2]
    if "colour" in operations:
        images = _jitter(images, torch.rand(3, len(images), 1, 1, 1, generator=generator).to(images))
    if "translation" in operations:
        images = random_crop(images, side // 8, generator)
    if "cutout" in operations:
        images = cutout(images, side // 2, [0.0] * images.shape[1], generator)
    return images


def _jitter(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, saturation and contrast by `draws` [3, N, 1, 1, 1] in 0..1."""
    brightness, saturation, contrast = draws
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(dim=1, keepdim=True), images, 2 * saturation)
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, contrast + 0.5)
