"""Similarity of restored to clean images: PSNR and SSIM. Images are float [N, C, H, W] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.generative import decibels, squared_error

# The paper's Gaussian window: standard deviation in pixels, and truncation in standard deviations (11 x 11 pixels).
_SIGMA, _TRUNCATE = 1.5, 3.5


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image over all channels, in dB, at most 80: float64 [N].

    Raises:
        ValueError: shapes that differ.
    """
    _check(restored, clean)
    return decibels(squared_error(restored.double(), clean.double()))


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity of each image, the mean over pixels and channels: float64 [N], at most 1.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    TIP 2004, with the paper's Gaussian window, as scikit-image computes it. Sides must be at least 11 pixels.

    Raises:
        ValueError: shapes that differ, or smaller images.
    """
    from skimage.metrics import structural_similarity

    _check(restored, clean)
    values = [
        structural_similarity(  # type: ignore[no-untyped-call]
            image.double().numpy(),
            reference.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=_SIGMA,
            truncate=_TRUNCATE,
            use_sample_covariance=False,
        )
        for image, reference in zip(restored.cpu(), clean.cpu(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def _check(restored: Tensor, clean: Tensor) -> None:
    if restored.shape != clean.shape or restored.ndim != 4:
        raise ValueError(f"expected two batches [N, C, H, W], got {list(restored.shape)} and {list(clean.shape)}")
