"""Photos as cameras take and store them: slightly out of focus, with the sensor's noise, and compressed.

Foi, Trimeche, Katkovnik, Egiazarian, "Practical Poissonian-Gaussian Noise Modeling and Fitting for Single-Image Raw
Data", IEEE TIP 17, 2008: the variance of a sensor's noise grows linearly with the light. Deviation: here it grows with
the stored value, after the camera's tone curve, and neighbouring pixels have independent noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.core.seeds import generator
from training.datasets.degradations import compress, defocus
from training.datasets.images import Indices
from training.recipe.generative_config import CameraNoiseSection


def photograph(clean: Tensor, section: CameraNoiseSection, draw: torch.Generator) -> Tensor:
    """Return each image [N, C, H, W] in 0..1 as a camera would store it, in 0..1; the strengths differ by image.

    A share of 1/2 is stored as JPEG. Random numbers come from the CPU generator `draw`.
    """
    strengths = torch.rand(3, len(clean), 1, 1, 1, generator=draw).to(clean.device)
    images = defocus(255 * clean, section.blur, draw) if section.blur else 255 * clean
    shot, read = section.shot * strengths[0], section.read * strengths[1]
    noise = torch.randn(clean.shape, generator=draw).to(clean.device)
    images = (images + (shot * images + read**2).sqrt() * noise).round().clamp(0, 255)
    compressed = strengths[2, :, 0, 0, 0] < 0.5
    if compressed.any():
        images[compressed] = compress(images[compressed], section.jpeg, draw)
    return images / 255


def photograph_each(clean: Tensor, rows: Indices, section: CameraNoiseSection, seed: int) -> Tensor:
    """Return images [N, C, H, W] as `photograph` does, depending on the seed and each image's row only."""
    draws = (generator(seed, "camera", int(row)) for row in rows)
    return torch.cat([photograph(image[None], section, draw) for image, draw in zip(clean, draws, strict=True)])
