"""PSNR and SSIM of restored images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from training.metrics.reconstruction import psnr, ssim


def pair(channels: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    clean = torch.rand(3, channels, 20, 24, generator=draw)
    return (clean + 0.1 * torch.randn(clean.shape, generator=draw)).clamp(0, 1), clean


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_agrees_with_scikit_image(channels: int) -> None:
    restored, clean = pair(channels)
    reference = [
        peak_signal_noise_ratio(item.numpy(), other.numpy(), data_range=1.0)  # type: ignore[no-untyped-call]
        for item, other in zip(clean.double(), restored.double(), strict=True)
    ]
    assert psnr(restored, clean).tolist() == pytest.approx(reference, rel=1e-6)
    assert psnr(clean, clean).tolist() == pytest.approx([80.0] * 3)


def windowed(restored: np.ndarray, clean: np.ndarray) -> float:
    """The paper's formula with its 11 x 11 Gaussian window, where the window fits."""
    along = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(along, along) / np.outer(along, along).sum()
    values = []
    for top in range(clean.shape[0] - 10):
        for left in range(clean.shape[1] - 10):
            x, y = restored[top : top + 11, left : left + 11], clean[top : top + 11, left : left + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
            both = (window * x * y).sum() - mx * my
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_agrees_with_the_formula(channels: int) -> None:
    restored, clean = pair(channels)
    expected = [
        np.mean([windowed(item[n], other[n]) for n in range(channels)])
        for item, other in zip(restored.double().numpy(), clean.double().numpy(), strict=True)
    ]
    assert ssim(restored, clean).tolist() == pytest.approx(expected, rel=1e-4)
    assert ssim(clean, clean).tolist() == pytest.approx([1.0] * 3)


def test_shapes_that_differ_are_refused() -> None:
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="two batches"):
            measure(torch.zeros(1, 1, 20, 20), torch.zeros(1, 1, 20, 21))
