"""Random changes that leave a picture what it is; every picture of a batch gets its own.

Pictures are float [N, C, H, W] on the 0..255 scale, before normalisation, so that the zeros which come in from outside
are black. Numbers are drawn from a CPU generator and then moved: the same on every device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import AugmentSection


def augment(images: Tensor, config: AugmentSection, generator: torch.Generator) -> Tensor:
    """All that `config` asks for but mixup, which needs the labels: [N, C, H, W] -> the same shape."""
    if config.rotate or config.translate or config.shear or config.scale != (1.0, 1.0):
        images = affine(images, draw_affine(len(images), config, generator))
    if config.crop:
        images = random_crop(images, config.crop, generator)
    if config.flip:
        images = random_flip(images, generator)
    return images


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture mirrored left to right with probability 1/2."""
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to `padding` whole pixels both ways, black coming in from outside."""
    n, _, height, width = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    rows = shift[0, :, None] + torch.arange(height, device=images.device)  # [N, H]
    columns = shift[1, :, None] + torch.arange(width, device=images.device)  # [N, W]
    padded = F.pad(images, (padding,) * 4)
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
    n = len(images)
    # torch has no public Beta draw that takes a generator.
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = torch.from_numpy(numbers.beta(alpha, alpha, n)).float().to(images.device)
    other = torch.randperm(n, generator=generator).to(images.device)
    mixed = torch.lerp(images[other], images, share[:, None, None, None])
    return mixed, torch.lerp(targets[other], targets, share[:, None])
