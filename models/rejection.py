"""Decide by a classifier's logits whether an image shows none of its classes.

The score is the energy of Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, at temperature 1:
-log(sum(exp(logits))). It is low for images like those that the network was trained on. Its quantiles on validation
images are stored in the card, so that a caller can state the share of the classes' own images that may be rejected.
"""

from __future__ import annotations

import math
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from models.matching import CardModel

# The shares that a caller may state, and those whose quantiles are stored; between them the energy is interpolated.
SMALLEST_SHARE, LARGEST_SHARE = 0.001, 0.5
SHARES = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
# With fewer images the energy of the smallest share would be that of a single image.
MIN_IMAGES = 1000

Share = Annotated[float, Field(ge=SMALLEST_SHARE, le=LARGEST_SHARE)]


class EnergyQuantile(CardModel):
    """The energy that a share `share` of the validation images exceeds."""

    share: Share
    energy: float


class Rejection(CardModel):
    """The energies of `images` validation images, described by `data`; `quantiles` fall in share and rise in energy."""

    quantiles: Annotated[tuple[EnergyQuantile, ...], Field(min_length=2)]
    images: Annotated[int, Field(ge=MIN_IMAGES)]
    data: str

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        shares = [quantile.share for quantile in self.quantiles]
        energies = [quantile.energy for quantile in self.quantiles]
        if shares != sorted(set(shares), reverse=True) or energies != sorted(energies):
            raise ValueError("quantiles must fall in share and rise in energy")
        if (shares[0], shares[-1]) != (LARGEST_SHARE, SMALLEST_SHARE):
            raise ValueError(f"quantiles must reach from {LARGEST_SHARE} to {SMALLEST_SHARE}")
        return self

    def threshold(self, share: float) -> float:
        """Return the energy that a share of the classifier's own images exceeds.

        It is interpolated linearly in the logarithm of the share.

        Raises:
            ValueError: if `share` is outside `SMALLEST_SHARE`..`LARGEST_SHARE`.
        """
        if not SMALLEST_SHARE <= share <= LARGEST_SHARE:
            raise ValueError(f"the share must be within {SMALLEST_SHARE}..{LARGEST_SHARE}, not {share:g}")
        positions = [-math.log(quantile.share) for quantile in self.quantiles]
        return float(np.interp(-math.log(share), positions, [quantile.energy for quantile in self.quantiles]))


def energies(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the energy of each row of logits: [N, K] -> [N]."""
    logits = logits.astype(np.float64)
    largest = logits.max(axis=1)
    result: npt.NDArray[np.float64] = -(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))
    return result


def fit_rejection(logits: npt.NDArray[np.floating], data: str) -> Rejection:
    """Return the quantiles of the energy of validation images, from their logits [N, K].

    The images must be of the classifier's classes, and from neither its training nor its test set.

    Raises:
        ValueError: if there are fewer than `MIN_IMAGES` rows, or logits are not finite.
    """
    if len(logits) < MIN_IMAGES or not np.isfinite(logits).all():
        raise ValueError(f"rejection needs finite logits of at least {MIN_IMAGES} images, not {len(logits)}")
    quantiles = np.quantile(energies(logits), [1 - share for share in SHARES])
    return Rejection(
        quantiles=tuple(
            EnergyQuantile(share=share, energy=float(energy)) for share, energy in zip(SHARES, quantiles, strict=True)
        ),
        images=len(logits),
        data=data,
    )
