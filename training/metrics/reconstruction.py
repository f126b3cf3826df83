"""How near a restored picture is to the clean one: PSNR and SSIM. Pictures are float [N, C, H, W] in 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.generative import decibels, squared_error

# The paper's window: a Gaussian of this standard deviation in pixels, cut off at 3.5 of them, 11 x 11.
_SIGMA, _TRUNCATE = 1.5, 3.5


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, 80 at most, all channels together: float64 [N].

    Raises:
        ValueError: shapes that differ.
    """
    _check(restored, clean)
    return decibels(squared_error(restored.double(), clean.double()))


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity of each picture, the mean over pixels and channels: float64 [N], at most 1.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    TIP 2004, with the paper's Gaussian window, as scikit-image computes it. Sides must be at least 11 pixels.

    Raises:
        ValueError: shapes that differ, smaller pictures.
    """
    from skimage.metrics import structural_similarity

    _check(restored, clean)
    values = [
        structural_similarity(  # type: ignore[no-untyped-call]
            one.double().numpy(),
            other.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=_SIGMA,
            truncate=_TRUNCATE,
            use_sample_covariance=False,
        )
        for one, other in zip(restored.cpu(), clean.cpu(), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def _check(restored: Tensor, clean: Tensor) -> None:
    if restored.shape != clean.shape or restored.ndim != 4:
        raise ValueError(f"expected two batches [N, C, H, W], got {list(restored.shape)} and {list(clean.shape)}")
