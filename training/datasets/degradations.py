"""Degradations of an aligned face by a door camera: small, blurred, dark, noisy, compressed, grey, partly covered.

Each function degrades all of the float images [N, C, H, W] on the 0..255 scale; `degrade` applies each kind to a random
subset of the images. Random numbers come from a CPU generator.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.recipe.config import CameraSection

# Top, bottom, left, right of an aligned face, as shares of its side: covered by sunglasses, and by a mask or scarf.
_EYES = (0.34, 0.60, 0.14, 0.86)
_MOUTH = (0.62, 1.00, 0.16, 0.84)
_TAPS = 7  # samples along a motion path

Change = Callable[[Tensor, torch.Generator], Tensor]


def degrade(images: Tensor, config: CameraSection, generator: torch.Generator) -> Tensor:
    """Apply each kind that `config` enables to a random share `config.chance` of the images; the shape is kept.

    They are applied in the order of image formation: occlusion, light, motion and focus, distance, sensor, compression.
    """
    changes: list[tuple[bool, Change]] = [
        (config.occlude, occlude),
        (config.grey, lambda x, draw: grey(x)),
        (config.light < 1, lambda x, draw: darken(x, config.light, draw)),
        (config.motion > 0, lambda x, draw: motion_blur(x, config.motion, draw)),
        (config.defocus > 0, lambda x, draw: defocus(x, config.defocus, draw)),
        (config.smallest > 0, lambda x, draw: enlarge_small(x, config.smallest, draw)),
        (config.noise > 0, lambda x, draw: sensor_noise(x, config.noise, draw)),
        (config.jpeg < 100, lambda x, draw: compress(x, config.jpeg, draw)),
    ]
    images = images.clone()
    for change in (change for enabled, change in changes if enabled):
        rows = (torch.rand(len(images), generator=generator) < config.chance).nonzero()[:, 0].to(images.device)
        if len(rows):
            images[rows] = change(images[rows], generator)
    return images


def occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cover the eyes, or nose and mouth, of each image with a random colour."""
    n, channels, height, width = images.shape
    images = images.clone()
    colours = 255 * torch.rand(n, channels, 1, 1, generator=generator).to(images.device)
    over_eyes = torch.rand(n, generator=generator) < 0.5
    for covered, (top, bottom, left, right) in ((over_eyes, _EYES), (~over_eyes, _MOUTH)):
        rows, columns = (
            slice(round(top * height), round(bottom * height)),
            slice(round(left * width), round(right * width)),
        )
        images[covered.to(images.device), :, rows, columns] = colours[covered.to(images.device)]
    return images


def grey(images: Tensor) -> Tensor:
    """Set all three channels to the luma (ITU-R BT.601); images of one channel are unchanged."""
    if images.shape[1] != 3:
        return images
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def darken(images: Tensor, lowest: float, generator: torch.Generator) -> Tensor:
    """Multiply each image by a factor between `lowest` and 1, uniform in its logarithm."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
    return images * torch.exp(share * math.log(lowest))


def motion_blur(images: Tensor, longest: float, generator: torch.Generator) -> Tensor:
    """Average each image along a straight path of up to `longest` pixels in a random direction."""
    n, _, height, width = images.shape
    length, turn = torch.rand(2, n, generator=generator)
    angle = turn * math.pi
    # Normalised coordinates run from -1 to 1 over a side.
    step = longest * length[:, None] * torch.stack([angle.cos() * 2 / width, angle.sin() * 2 / height], dim=1)
    matrices = torch.eye(2, 3).repeat(n, 1, 1)
    blurred = torch.zeros_like(images)
    for position in torch.linspace(-0.5, 0.5, _TAPS):
        matrices[:, :, 2] = position * step
        grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
        blurred += F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return blurred / _TAPS


def defocus(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Blur each image with a Gaussian of a random standard deviation of up to `largest` pixels."""
    n, channels, height, width = images.shape
    sigma = (largest * torch.rand(n, generator=generator)).clamp_min(1e-3)
    radius = math.ceil(3 * largest)
    position = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-0.5 * (position / sigma[:, None]) ** 2)  # [N, K]
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).to(images.device)
    kernels = kernels.repeat_interleave(channels, dim=0)[:, None]  # [N C, 1, K]
    stacked = F.pad(images, (radius,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * radius, -1)
    blurred = F.conv2d(stacked, kernels[:, :, None, :], groups=n * channels)
    blurred = F.conv2d(blurred, kernels[:, :, :, None], groups=n * channels)
    return blurred.view(n, channels, height, width)


def enlarge_small(images: Tensor, smallest: int, generator: torch.Generator) -> Tensor:
    """Reduce each image to a random side of at least `smallest` pixels, and enlarge it again."""
    height, width = images.shape[-2:]
    share = torch.rand(len(images), generator=generator)
    sides = torch.exp(math.log(smallest) + share * math.log(min(height, width) / smallest)).round().int().tolist()
    results = []
    for image, side in zip(images, sides, strict=True):
        small = F.interpolate(image[None], (side, side), mode="bilinear", antialias=True)
        results.append(F.interpolate(small, (height, width), mode="bicubic"))
    return torch.cat(results).clamp(0, 255)


def sensor_noise(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to each image, with a random standard deviation of up to `largest` of 255."""
    sigma = largest * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = sigma * torch.randn(images.shape, generator=generator)
    return (images + noise.to(images.device)).clamp(0, 255)


def compress(images: Tensor, lowest: int, generator: torch.Generator) -> Tensor:
    """Compress each image as JPEG with a random quality between `lowest` and 95."""
    qualities = torch.randint(lowest, 96, (len(images),), generator=generator).tolist()
    pixels = images.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    decoded = []
    for image, quality in zip(pixels, qualities, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze()).save(buffer, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(buffer)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).movedim(-1, 1).to(images)
