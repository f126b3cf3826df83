"""Random changes that leave a picture what it is; every picture of a batch gets its own.

Pictures are float [N, C, H, W] on the 0..255 scale, before normalisation, so that the zeros which come in from outside
are black. Numbers are drawn from a CPU generator and then moved: the same on every device.
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

from training.core.seeds import generator as seeded
from training.datasets.degradations import degrade
from training.recipe.config import AugmentSection

# What `rand_augment` chooses from; the first has no effect, and those after `sharpness` have no sign.
OPERATIONS = (
    *("identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
_UNSIGNED = OPERATIONS.index("posterize")
_COLOUR_SAMPLE = 2000


@dataclass(frozen=True)
class Colours:
    """What the changes need to know of the training set: each channel's mean (0..255), and its `colour_basis`."""

    mean: tuple[float, ...]
    basis: Tensor


def augment(images: Tensor, config: AugmentSection, generator: torch.Generator, colours: Colours) -> Tensor:
    """All that `config` asks for, [N, C, H, W] -> the same shape.

    Except for `blend`, which needs the labels, and for the alternating flip, which needs the rows: see `first_flips`.
    """
    if config.rotate or config.translate or config.shear or config.scale != (1.0, 1.0):
        images = affine(images, draw_affine(len(images), config, generator))
    if config.crop:
        images = random_crop(images, config.crop, generator, config.crop_fill)
    if config.flip is True:
        images = random_flip(images, generator)
    if config.rand_augment[0]:
        images = rand_augment(images, *config.rand_augment, colours.mean, generator)
    if config.colour_pca:
        images = colour_pca(images, config.colour_pca, colours.basis, generator)
    if config.cutout:
        images = cutout(images, config.cutout, colours.mean, generator)
    if config.camera.chance:
        images = degrade(images, config.camera, generator)
    return images


def blend(images: Tensor, targets: Tensor, config: AugmentSection, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`mixup` or `cutmix` of pictures and targets [N, K]; one of them by a coin for the batch if `config` has both."""
    mix = config.mixup > 0
    if config.mixup and config.cutmix:
        mix = bool(torch.rand((), generator=generator) < 0.5)
    if mix:
        return mixup(images, targets, config.mixup, generator)
    return cutmix(images, targets, config.cutmix, generator)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture mirrored left to right with probability 1/2."""
    return mirror(images, torch.rand(len(images), generator=generator) < 0.5)


def first_flips(count: int, seed: int) -> Tensor:
    """Which of a data set's `count` pictures the even epochs of an alternating flip mirror: bool [count], half of them.

    The odd epochs mirror the others. After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024: two epochs
    in a row show every picture both ways, where independent flips show half of the pictures one way only.
    """
    return torch.rand(count, generator=seeded(seed, "flip")) < 0.5


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """The pictures for which `chosen` [N] is true, mirrored left to right; the others as they are."""
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(
    images: Tensor, padding: int, generator: torch.Generator, fill: Literal["black", "reflect"] = "black"
) -> Tensor:
    """Each picture moved by up to `padding` whole pixels both ways; `fill` comes in from outside."""
    n, _, height, width = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    rows = shift[0, :, None] + torch.arange(height, device=images.device)  # [N, H]
    columns = shift[1, :, None] + torch.arange(width, device=images.device)  # [N, W]
    padded = F.pad(images, (padding,) * 4, mode="reflect" if fill == "reflect" else "constant")
    which = torch.arange(n, device=images.device)[:, None, None]
    # The channels go last and come back: indices on both sides of a slice put what they choose in front.
    return padded.movedim(1, -1)[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def draw_affine(n: int, config: AugmentSection, generator: torch.Generator) -> Tensor:
    """Matrices [N, 2, 3] from a place in the output to its place in the input, with sides of length 2 about the centre.

    Turn and shear are uniform in degrees to either side, the shift in fractions of a side, the factor of size uniform
    in its logarithm.
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
    """Bilinear, black outside. On pictures that are not square a turn keeps right angles right."""
    height, width = images.shape[-2:]
    aspect = torch.tensor([[1.0, height / width, 1.0], [width / height, 1.0, 1.0]])
    grid = F.affine_grid((matrices * aspect).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each picture and its target [N, K] blended with another's of the batch, by shares from Beta(alpha, alpha).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; here each picture draws its own share.
    """
    share = _draw_beta(len(images), alpha, generator).float().to(images.device)
    other = torch.randperm(len(images), generator=generator).to(images.device)
    mixed = torch.lerp(images[other], images, share[:, None, None, None])
    return mixed, torch.lerp(targets[other], targets, share[:, None])


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box of each picture filled from another's of the batch; targets [N, K] blended by the area that was kept.

    The box has the picture's shape and a share from Beta(alpha, alpha) of its area before it is cut off at the edges;
    its centre is uniform. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", ICCV 2019; here each picture draws its own box.
    """
    n, _, height, width = images.shape
    side = _draw_beta(n, alpha, generator).sqrt()
    other = torch.randperm(n, generator=generator)
    box = _draw_boxes((height, width), (height * side).long(), (width * side).long(), generator).to(images.device)
    kept = 1 - box.float().mean(dim=(2, 3))  # [N, 1]
    other = other.to(images.device)
    return torch.where(box, images[other], images), torch.lerp(targets[other], targets, kept)


def cutout(images: Tensor, side: int, fill: Sequence[float], generator: torch.Generator) -> Tensor:
    """A square of each picture filled with one value a channel, its centre uniform, cut off at the edges.

    DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """
    sides = torch.full((len(images),), side)
    box = _draw_boxes((images.shape[2], images.shape[3]), sides, sides, generator).to(images.device)
    return torch.where(box, torch.tensor(fill, device=images.device)[:, None, None], images)


def _draw_beta(n: int, alpha: float, generator: torch.Generator) -> Tensor:
    """`n` draws from Beta(alpha, alpha), float64."""
    # torch has no public Beta draw that takes a generator.
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    return torch.from_numpy(numbers.beta(alpha, alpha, n))


def _draw_boxes(size: tuple[int, int], heights: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    """Where boxes of those heights and widths [N] about uniform centres cover a picture: bool [N, 1, *size]."""
    covered = []
    for side, extent in zip(size, (heights, widths), strict=True):
        first = torch.randint(side, (len(extent),), generator=generator) - extent // 2
        place = torch.arange(side)
        covered.append((place >= first[:, None]) & (place < (first + extent)[:, None]))  # [N, side]
    return (covered[0][:, :, None] & covered[1][:, None, :])[:, None]


def colour_basis(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> Tensor:
    """The directions in which the colours of pictures [N, H, W, C] vary, for `colour_pca`: float32 [C, C].

    A column is an eigenvector of the covariance of the channels times its eigenvalue, of at most 2,000 of `rows`. The
    paper does not say on which scale its eigenvalues are; here, as is the custom, that of pixels in 0..1. The columns
    are then stretched to 0..255, and signed so that their first number is not negative.
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
    """To every pixel of a picture the same colour, N(0, deviation) times each column of `basis`, see `colour_basis`.

    Section 4.1 of Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    NIPS 2012. As there, what leaves 0..255 is not cut off.
    """
    strength = deviation * torch.randn(len(images), basis.shape[1], generator=generator)
    return images + (strength @ basis.T).to(images.device)[:, :, None, None]


def rand_augment(
    images: Tensor, count: int, magnitude: int, fill: Sequence[float], generator: torch.Generator
) -> Tensor:
    """`count` of the `OPERATIONS` on each picture, of 1 or 3 channels, one after the other and each either way.

    `magnitude` is 0..30, the same for all: 30 is a shear of 0.3, a shift of 150/331 of the side, a turn of 30 degrees,
    a factor of 1 +- 0.9, 4 bits of 8, a solarisation of all. What comes in from outside is `fill`. Pictures are rounded
    to 8 bits. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2020.
    """
    pictures = images.round().clamp(0, 255).to(torch.uint8)
    operations = torch.randint(len(OPERATIONS), (count, len(images)), generator=generator)
    signs = torch.randint(2, (count, len(images)), generator=generator) * (operations < _UNSIGNED)
    apply = _operations(pictures.shape[2], pictures.shape[3], list(fill))
    for group in operations * 2 + signs:  # [N]; pictures of one number go through one call together
        changed = pictures.clone()
        for number in group.unique().tolist():
            operation, sign = divmod(number, 2)
            rows = (group == number).nonzero()[:, 0].to(images.device)
            strength = (-1 if sign else 1) * magnitude / 30
            changed[rows] = apply[OPERATIONS[operation]](pictures[rows], strength)
        pictures = changed
    return pictures.float()


def _operations(height: int, width: int, fill: list[float]) -> dict[str, Callable[[Tensor, float], Tensor]]:
    """Functions of uint8 pictures [N, C, H, W] and a strength in -1..1, in 0..1 where there is no sign."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    def warp(
        images: Tensor, angle: float = 0.0, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
    ) -> Tensor:
        # Shears leave the top left corner where it is, as in the authors' code.
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
