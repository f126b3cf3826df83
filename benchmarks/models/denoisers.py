"""What benchmarks/models/denoising.py compares: methods of scikit-image, BM3D, and networks of weights folders.

Every method is told the noise's standard deviation, but for the networks, which are blind to it. Pictures are float64
[N, C, H, W] with clean values in 0..1, `sigma` is on that scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models import checkpoint
from models.denoiser import Denoiser
from models.generative import ReconstructionSubmodel
from training.core.errors import DataError
from training.metrics.reconstruction import psnr

Restore = Callable[[Tensor, float], Tensor]

_ROWS_AT_ONCE = 100


@dataclass(frozen=True)
class Method:
    """A name for the table; what makes its figures other ones (`version`); and what it may be set to, named.

    The first candidate whose mean PSNR on training pictures is the best is the one that is measured.
    """

    name: str
    candidates: Mapping[str, Restore]
    version: str = ""

    def tuned(self, noisy: Tensor, clean: Tensor, sigma: float) -> tuple[str, Restore]:
        """The best candidate for those training pictures, with its name."""
        if len(self.candidates) == 1:
            return next(iter(self.candidates.items()))
        quality = {
            name: float(psnr(restore(noisy, sigma).clamp(0, 1), clean).mean())
            for name, restore in self.candidates.items()
        }
        best = max(quality, key=quality.__getitem__)
        return best, self.candidates[best]


def classical() -> list[Method]:
    """The noisy picture itself and the methods that nothing was trained for, with their settings."""
    means = {
        f"h {h:g} sigma, {patch}x{patch}": partial(_non_local_means, h=h, patch=patch)
        for patch in (3, 5, 7)
        for h in (0.4, 0.6, 0.8, 1.0)
    }
    variations = {
        f"weight {weight:g} sigma": partial(_total_variation, weight=weight)
        for weight in (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5)
    }
    profiles = {f"profile {name}": partial(_bm3d, profile=name) for name in ("np", "vn")}
    return [
        Method("noisy", {"": lambda noisy, sigma: noisy}),
        Method("non-local means", means),
        Method("total variation", variations),
        Method("BM3D", profiles),
    ]


def network(folder: Path) -> Method:
    """A denoiser or a VAE of a weights folder.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: a network that does not denoise, or not pictures in 0..1.
    """
    module, card = checkpoint.load(folder)
    if card.task != "denoise" or set(card.preprocess.mean) != {0.0} or set(card.preprocess.std) != {255.0}:
        raise DataError(f"{folder}: not a network that denoises pictures in 0..1")
    restore = module if isinstance(module, Denoiser) else ReconstructionSubmodel(module)

    @torch.inference_mode()
    def answer(noisy: Tensor, sigma: float) -> Tensor:
        return torch.cat([restore(part) for part in torch.split(noisy.float(), _ROWS_AT_ONCE)]).double()

    return Method(card.name, {"": answer}, card.version)


def _each(noisy: Tensor, restore: Callable[[Tensor], object]) -> Tensor:
    """Pictures one by one, [H, W, C] each, as these packages take them."""
    answers: Sequence[Tensor] = [torch.as_tensor(restore(one.movedim(0, -1))) for one in noisy]
    return torch.stack(
        [answer.reshape(one.movedim(0, -1).shape) for answer, one in zip(answers, noisy, strict=True)]
    ).movedim(-1, 1)


def _non_local_means(noisy: Tensor, sigma: float, *, h: float, patch: int) -> Tensor:
    """Buades, Coll, Morel, "A Non-Local Algorithm for Image Denoising", CVPR 2005; the slow form is the better one."""
    from skimage.restoration import denoise_nl_means

    settings = {"patch_size": patch, "patch_distance": 8, "h": h * sigma, "sigma": sigma, "fast_mode": False}
    return _each(noisy, lambda one: denoise_nl_means(one.numpy(), channel_axis=-1, **settings))


def _total_variation(noisy: Tensor, sigma: float, *, weight: float) -> Tensor:
    """Chambolle, "An Algorithm for Total Variation Minimization and Applications", JMIV 2004."""
    from skimage.restoration import denoise_tv_chambolle

    settings = {"weight": weight * sigma, "eps": 1e-5, "max_num_iter": 1000}
    return _each(noisy, lambda one: denoise_tv_chambolle(one.numpy(), channel_axis=-1, **settings))  # type: ignore[no-untyped-call]


def _bm3d(noisy: Tensor, sigma: float, *, profile: str) -> Tensor:
    """Makinen, Azzari, Foi, "Collaborative Filtering of Correlated Noise", IEEE TIP 2020: the authors' own package."""
    import bm3d

    def restore(one: Tensor) -> object:
        pixels = one.numpy()
        return (
            bm3d.bm3d(pixels[..., 0], sigma, profile)
            if pixels.shape[-1] == 1
            else bm3d.bm3d_rgb(pixels, sigma, profile)
        )

    return _each(noisy, restore)
