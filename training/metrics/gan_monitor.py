"""Monitor the training of a GAN: balance of the two networks, and whether the generator has collapsed.

The losses of two adversaries say little about progress. So samples are compared with validation images in the features
of a shipped network, which is not the one that evaluates the finished generator.
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
from training.metrics.feature_extractor import ExtractedFeatures, Extractor
from training.recipe.gan_config import WatchSection

Pixels = npt.NDArray[np.uint8]

# A class or a mode counts as generated if its share of the samples is at least this part of its share of real images.
_MIN_SHARE = 0.25
_NEIGHBOURS = 3


class Balance(NamedTuple):
    """How well a discriminator separates real from generated images, all in 0..1.

    `accuracy`: the share of scores on the correct side of 0, real and generated images weighing the same. `lead`: the
    difference of the mean probabilities of being real; 0 if it cannot separate them, 1 if it is sure.
    """

    accuracy: Tensor
    lead: Tensor


def balance(real: Tensor, fake: Tensor) -> Balance:
    """Return the balance for the scores of real [N] and of generated images [M]."""
    accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
    return Balance(accuracy, (real.sigmoid().mean() - fake.sigmoid().mean()).clamp(min=0))


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the Euclidean norm of all gradients in the module, a scalar; 0 if there are none."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


class CollapseMonitor:
    """Compares samples with real images uint8 [N, H, W, C], whose features are extracted once."""

    def __init__(self, section: WatchSection, extractor: Extractor, real: Pixels, seed: int):
        self._section = section
        self._extractor = extractor
        extracted = extractor(real)
        self._real = ExtractedFeatures(
            extracted.features[: section.samples], extracted.probabilities[: section.samples]
        )
        self._moments = distribution.moments(extracted.features)
        self._classes = len(extractor.card.classes) or 1
        self._centres = _modes(extracted.features, section.modes, seed)
        self._shares = _shares(self._nearest(extracted.features), section.modes)
        self._class_shares = _shares(extracted.labels, self._classes)
        self._spread = distribution.within_class_distance(self._real.features, self._real.labels, self._classes)

    @property
    def features(self) -> str:
        """The name of the features, as `lenet5-mnist features`."""
        return self._extractor.name

    def figures(self, samples: Pixels, labels: Tensor | None) -> dict[str, float]:
        """Return figures of generated images uint8 [M, H, W, C]; `labels` [M] are their requested classes, if any.

        frechet     distance of the features' distributions
        precision, recall   see `distribution.precision_recall`
        modes       how many of `modes` groups of real images occur among the samples
        diversity   pairwise distance within a class as a multiple of that of real images; the mean over classes
        classes     how many classes the extractor recognises; only if it is a classifier
        asked       share of samples that it recognises as the requested class
        """
        extracted = self._extractor(samples)
        real = self._real.features
        manifolds = distribution.precision_recall(real, extracted.features, _NEIGHBOURS)
        figures = {
            "frechet": distribution.frechet_distance(self._moments, distribution.moments(extracted.features)),
            "precision": manifolds.precision,
            "recall": manifolds.recall,
            "modes": float(
                _count_generated(_shares(self._nearest(extracted.features), len(self._centres)), self._shares)
            ),
            "diversity": self._diversity(extracted),
        }
        if self._classes > 1:
            figures["classes"] = float(_count_generated(_shares(extracted.labels, self._classes), self._class_shares))
            if labels is not None:
                figures["asked"] = float((extracted.labels == labels).double().mean())
        return figures

    def check(self, figures: Mapping[str, float], epoch: int) -> None:
        """Check the figures of `epoch`, which counts from 1.

        Raises:
            CollapsedError: they show a collapse.
        """
        section, signs = self._section, []
        if epoch <= section.grace:
            return
        present = int((self._class_shares > 0).sum())
        if figures.get("classes", present) < section.coverage * present:
            signs.append(f"{figures['classes']:.0f} of {present} classes are drawn")
        if figures["modes"] < section.modes_covered * section.modes:
            signs.append(f"{figures['modes']:.0f} of {section.modes} kinds of images are drawn")
        if figures["diversity"] < section.diversity:
            signs.append(f"images of a class differ {figures['diversity']:.2f} times as much as real ones")
        if signs:
            raise CollapsedError(f"the generator has collapsed in epoch {epoch}: {'; '.join(signs)}", figures)

    def _nearest(self, features: Tensor) -> Tensor:
        return torch.cdist(features.double(), self._centres).argmin(dim=1)

    def _diversity(self, extracted: ExtractedFeatures) -> float:
        """Classes without spread among the real images, such as those with one image, do not count."""
        spread = distribution.within_class_distance(extracted.features, extracted.labels, self._classes)
        varied = self._spread > 0
        return float((spread[varied] / self._spread[varied]).mean())


def _modes(features: Tensor, count: int, seed: int) -> Tensor:
    """Return the centres [count, D] of groups of real images, by k-means, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about an empty group, whose share is 0
        centres, _ = kmeans2(features.double().numpy(), count, minit="++", rng=np.random.default_rng(seed))
    return torch.from_numpy(centres)


def _shares(numbers: Tensor, count: int) -> Tensor:
    """Return the share of each of 0..count-1 among `numbers`: [count], 0..1."""
    return torch.bincount(numbers, minlength=count).double() / len(numbers)


def _count_generated(shares: Tensor, real: Tensor) -> int:
    """Return the number of kinds, among those of the real images, that the generator draws often enough."""
    return int(((real > 0) & (shares >= _MIN_SHARE * real)).sum())
