"""Watching a GAN: who is winning, and whether the generator has collapsed onto a few pictures.

Losses of two players say little, so the samples themselves are looked at, through the features of a shipped network
that is not the one that judges the finished generator. What is real there are validation pictures.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]
from torch import Tensor, nn

from training.core.errors import CollapsedError
from training.metrics import distribution
from training.metrics.feature_extractor import Extractor, Sight
from training.recipe.gan_config import WatchSection

Pixels = npt.NDArray[np.uint8]

# A class or a mode counts as drawn with at least this part of the share it has of the real pictures.
_ENOUGH = 0.25
_NEIGHBOURS = 3


class Balance(NamedTuple):
    """Of a discriminator's scores, all in 0..1.

    `accuracy`: the share that is on its side of 0, of real and generated pictures alike. `lead`: how far apart the mean
    probabilities of being real are; 0 if it cannot tell them apart, 1 if it is sure.
    """

    accuracy: Tensor
    lead: Tensor


def balance(real: Tensor, fake: Tensor) -> Balance:
    """From scores [N] and [M]; scalars."""
    accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return Balance(accuracy, (real.sigmoid().mean() - fake.sigmoid().mean()).clamp(min=0))


def gradient_norm(module: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients that lie in the module, a scalar; 0 where there are none."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


class Watch:
    """Compares samples with real pictures uint8 [N, H, W, C], whose features are taken once."""

    def __init__(self, section: WatchSection, extractor: Extractor, real: Pixels, seed: int):
        self._section = section
        self._extractor = extractor
        sight = extractor(real)
        self._real = Sight(sight.features[: section.samples], sight.probabilities[: section.samples])
        self._moments = distribution.moments(sight.features)
        self._classes = len(extractor.card.classes) or 1
        self._centres = _modes(sight.features, section.modes, seed)
        self._shares = _shares(self._nearest(sight.features), section.modes)
        self._class_shares = _shares(sight.labels, self._classes)
        self._spread = distribution.within_class_distance(self._real.features, self._real.labels, self._classes)

    @property
    def features(self) -> str:
        """As `lenet5-mnist features`: whose they are."""
        return self._extractor.name

    def figures(self, samples: Pixels, labels: Tensor | None) -> dict[str, float]:
        """Of generated pictures uint8 [M, H, W, C] and, where they were asked for, their classes [M].

        frechet     distance of the features' distributions, which `features` are named with it
        precision, recall   see `quality.precision_recall`
        modes       how many of `modes` groups of real pictures occur among the samples
        diversity   pairwise distance within a class, as a multiple of real pictures'; the mean over classes
        classes     how many classes the extractor sees, of a classifier only
        asked       share of samples in which it sees the class that was asked for
        """
        sight = self._extractor(samples)
        real = self._real.features
        manifolds = distribution.precision_recall(real, sight.features, _NEIGHBOURS)
        figures = {
            "frechet": distribution.frechet_distance(self._moments, distribution.moments(sight.features)),
            "precision": manifolds.precision,
            "recall": manifolds.recall,
            "modes": float(_drawn(_shares(self._nearest(sight.features), len(self._centres)), self._shares)),
            "diversity": self._diversity(sight),
        }
        if self._classes > 1:
            figures["classes"] = float(_drawn(_shares(sight.labels, self._classes), self._class_shares))
            if labels is not None:
                figures["asked"] = float((sight.labels == labels).double().mean())
        return figures

    def check(self, figures: Mapping[str, float], epoch: int) -> None:
        """Stop a run that has collapsed; `epoch` counts from 1.

        Raises:
            CollapsedError: with what is missing, and the figures.
        """
        section, signs = self._section, []
        if epoch <= section.grace:
            return
        present = int((self._class_shares > 0).sum())
        if figures.get("classes", present) < section.coverage * present:
            signs.append(f"{figures['classes']:.0f} of {present} classes are drawn")
        if figures["modes"] < section.modes_covered * section.modes:
            signs.append(f"{figures['modes']:.0f} of {section.modes} kinds of pictures are drawn")
        if figures["diversity"] < section.diversity:
            signs.append(f"pictures of a class differ {figures['diversity']:.2f} times as much as real ones")
        if signs:
            raise CollapsedError(f"the generator has collapsed in epoch {epoch}: {'; '.join(signs)}", figures)

    def _nearest(self, features: Tensor) -> Tensor:
        return torch.cdist(features.double(), self._centres).argmin(dim=1)

    def _diversity(self, sight: Sight) -> float:
        """A class that has no spread among the real pictures, as when there is but one of it, does not count."""
        spread = distribution.within_class_distance(sight.features, sight.labels, self._classes)
        known = self._spread > 0
        return float((spread[known] / self._spread[known]).mean())


def _modes(features: Tensor, count: int, seed: int) -> Tensor:
    """Centres [count, D] of groups of real pictures, by k-means, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty group: it has no share and so is not missed
        centres, _ = kmeans2(features.double().numpy(), count, minit="++", rng=np.random.default_rng(seed))
    return torch.from_numpy(centres)


def _shares(numbers: Tensor, count: int) -> Tensor:
    """How often each of 0..count-1 occurs, [count] in 0..1."""
    return torch.bincount(numbers, minlength=count).double() / len(numbers)


def _drawn(shares: Tensor, real: Tensor) -> int:
    """Of how many kinds that real pictures have there are enough."""
    return int(((real > 0) & (shares >= _ENOUGH * real)).sum())
