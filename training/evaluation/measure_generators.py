"""Figures of networks that draw pictures, beside two references: real pictures, and a plain Gaussian of pixels.

All pictures, drawn and real, become bytes in the generator's own size and are then read by one extractor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.card import Metric, ModelCard
from models.generative import SupportsDecode, latents
from models.preprocess import Preprocess
from models.vae import VAE
from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets import images as data
from training.datasets.faces import rows_of
from training.metrics import distribution, likelihood
from training.metrics.feature_extractor import Extractor, Sight

SEED = 0
IMPORTANCE_SAMPLES = 64
# Of each set, at most: all distances between its pictures are computed.
MANIFOLD_ROWS = 10_000
_ROWS_AT_ONCE = 500

Pixels = npt.NDArray[np.uint8]


class Range(NamedTuple):
    """Of shares, 0..1: the lowest and the highest."""

    low: float
    high: float


class Spread(NamedTuple):
    """Mean distance between two pictures of a class over that between two real ones: over classes, and the least."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Quality:
    """One set of pictures against the real test pictures. Bounds are in nats a picture, shares 0..1.

    `asked` is the share read as the class that was asked for; `shares` are those of the classes as they were read.
    `inception`, `asked` and `shares` are None where there are no classes, `bounds` (ELBO, IWAE) but for a VAE.
    """

    name: str
    frechet: float
    kernel: float
    manifolds: distribution.Manifolds
    spread: Spread
    inception: float | None = None
    shares: Range | None = None
    asked: float | None = None
    bounds: tuple[float, float] | None = None
    card: ModelCard | None = None


class Samples(NamedTuple):
    """uint8 [N, H, W, C], and the labels [N] that were asked for, None where there are none."""

    pixels: Pixels
    labels: Tensor | None


@dataclass(frozen=True)
class Group:
    """Generators of one geometry with their references: the figures of real training pictures, and of the Gaussian."""

    preprocess: Preprocess
    test: int
    held_out: int
    floor: Quality
    generators: tuple[Quality, ...]
    ceiling: Quality


@dataclass(frozen=True)
class Figures:
    """All groups of one data set, read by one extractor, `samples` of each generator."""

    dataset: str
    extractor: Extractor
    samples: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Real:
    """Pictures of a data set in one geometry, and which of them are for training and for testing."""

    train: data.ImageSet
    train_rows: data.Indices
    test: data.ImageSet
    test_rows: data.Indices

    @classmethod
    def load(cls, dataset: str, preprocess: Preprocess) -> Real:
        """Of a data set of identities the splits of `training.datasets.faces`.

        Raises:
            DatasetNotFoundError, DataError: see `data.load`.
        """
        train = data.load(dataset, "train", preprocess)
        if all(":" in name for name in train.classes):
            return cls(train, rows_of(train, "train"), train, rows_of(train, "test"))
        test = data.load(dataset, "test", preprocess)
        return cls(train, np.arange(len(train.labels)), test, np.arange(len(test.labels)))

    def some(self, count: int) -> Pixels:
        """At most that many training pictures, drawn at random."""
        chosen = np.random.default_rng(derive(SEED, "floor")).permutation(self.train_rows)[:count]
        return np.asarray(self.train.images[np.sort(chosen)])


class Truth:
    """The test pictures as the extractor sees them."""

    def __init__(self, sight: Sight):
        self._sight = sight
        self._moments = distribution.moments(sight.features)
        self._spread = self._spread_of(sight)

    def judge(self, name: str, sight: Sight, asked: Tensor | None = None) -> Quality:
        """Another set of pictures; `asked` are the labels [N] that they should have."""
        classes, real = sight.probabilities.shape[1], self._sight.features
        shares = sight.labels.bincount(minlength=classes).double() / len(sight.labels)
        varied = self._spread > 0  # a class of which there are two real pictures
        ratios = self._spread_of(sight)[varied] / self._spread[varied]
        return Quality(
            name=name,
            frechet=distribution.frechet_distance(self._moments, distribution.moments(sight.features)),
            kernel=distribution.kernel_distance(real, sight.features),
            manifolds=distribution.precision_recall(real[:MANIFOLD_ROWS], sight.features[:MANIFOLD_ROWS]),
            spread=Spread(float(ratios.mean()), float(ratios.min())),
            inception=distribution.inception_score(sight.probabilities) if classes else None,
            shares=Range(float(shares.min()), float(shares.max())) if classes else None,
            asked=None if asked is None else float((sight.labels == asked).double().mean()),
        )

    def _spread_of(self, sight: Sight) -> Tensor:
        return distribution.within_class_distance(sight.features, sight.labels, max(1, sight.probabilities.shape[1]))


def measure(folders: Sequence[Path], dataset: str, judge: Path, samples: int, held_out: int) -> Figures:
    """`samples` pictures of each generator; the bounds of VAEs on the first `held_out` test pictures, 0 for all.

    Raises:
        CheckpointError: a folder without a model. DataError: a model that draws nothing, or that is conditional on
            other classes than the extractor's; see `Real.load`.
    """
    extractor = Extractor(judge)
    loaded = [_load(folder, extractor) for folder in folders]

    def geometry(one: tuple[nn.Module, ModelCard]) -> str:
        return one[1].preprocess.model_dump_json(exclude={"mean", "std"})

    groups = [
        _group(list(members), dataset, extractor, samples, held_out)
        for _, members in itertools.groupby(sorted(loaded, key=geometry), key=geometry)
    ]
    return Figures(dataset, extractor, samples, tuple(groups))


def _load(folder: Path, extractor: Extractor) -> tuple[nn.Module, ModelCard]:
    network, card = checkpoint.load(folder)
    if not isinstance(network, SupportsDecode):
        raise DataError(f"{folder}: a network to {card.task} draws no pictures from nothing")
    if card.classes and card.classes != extractor.card.classes:
        raise DataError(f"{card.name} draws {card.classes}, {extractor.card.name} knows {extractor.card.classes}")
    return network, card


def _group(
    members: Sequence[tuple[nn.Module, ModelCard]], dataset: str, extractor: Extractor, samples: int, held_out: int
) -> Group:
    preprocess = members[0][1].preprocess
    real = Real.load(dataset, preprocess)
    truth = Truth(extractor(np.asarray(real.test.images[real.test_rows])))
    rows = real.test_rows[: held_out or None]
    return Group(
        preprocess=preprocess,
        test=len(real.test_rows),
        held_out=len(rows),
        floor=truth.judge("real training pictures", extractor(real.some(samples))),
        generators=tuple(_judge(network, card, truth, extractor, samples, (real, rows)) for network, card in members),
        ceiling=truth.judge("Gaussian of pixels", extractor(gaussian(real.train, real.train_rows, samples, SEED))),
    )


def _judge(
    network: nn.Module,
    card: ModelCard,
    truth: Truth,
    extractor: Extractor,
    samples: int,
    held_out: tuple[Real, data.Indices],
) -> Quality:
    drawn = draw(network, card, samples, SEED)
    found = truth.judge(card.name, extractor(drawn.pixels), drawn.labels)
    bounds = held_out_bounds(network, card, *held_out) if isinstance(network, VAE) else None
    return replace(found, bounds=bounds, card=card)


def draw(network: nn.Module, card: ModelCard, count: int, seed: int, labels: Tensor | None = None) -> Samples:
    """The first `count` samples of a seed, as the service would draw them; labels at random unless they are given."""
    if card.classes and labels is None:
        labels = torch.randint(len(card.classes), (count,), generator=generator(seed, "labels"))
    return Samples(np.concatenate(list(_drawn(network, card, count, seed, labels))), labels if card.classes else None)


@torch.inference_mode()
def _drawn(network: nn.Module, card: ModelCard, count: int, seed: int, labels: Tensor | None) -> Iterator[Pixels]:
    assert isinstance(network, SupportsDecode)  # noqa: S101  as `_load` made sure
    for first in range(0, count, _ROWS_AT_ONCE):
        places = range(first, min(first + _ROWS_AT_ONCE, count))
        noise = torch.stack([latents(seed, place, network.config.latent) for place in places])
        chosen = one_hot(None if labels is None else labels[first : places.stop], len(places), card)
        yield card.preprocess.denormalise(network.decode(noise, chosen)).numpy()


def one_hot(labels: Tensor | None, count: int, card: ModelCard) -> Tensor:
    """float32 [count, classes], [count, 0] for a network without classes."""
    if labels is None or not card.classes:
        return torch.zeros(count, 0)
    return F.one_hot(labels, len(card.classes)).float()


def gaussian(pictures: data.ImageSet, rows: data.Indices, count: int, seed: int) -> Pixels:
    """Samples of the normal distribution with the mean and the covariance of those pictures' pixels, as bytes.

    A sum of the centred pictures with normal weights has just this distribution, and no matrix of pixels by pixels is
    needed, which for colour pictures of 64 x 64 would have 151 million elements.
    """
    shape = pictures.images.shape[1:]
    mean = np.zeros(int(np.prod(shape)))
    blocks = np.array_split(rows, max(1, len(rows) // _ROWS_AT_ONCE))
    for block in blocks:
        mean += pictures.images[block].reshape(len(block), -1).sum(axis=0, dtype=np.float64) / len(rows)
    random = np.random.default_rng(derive(seed, "gaussian"))
    drawn = np.tile(mean.astype(np.float32), (count, 1))
    for block in blocks:
        centred = (pictures.images[block].reshape(len(block), -1) - mean).astype(np.float32)
        weights = random.standard_normal((count, len(block)), dtype=np.float32)
        drawn += weights @ centred / np.float32(np.sqrt(max(len(rows) - 1, 1)))
    return drawn.round().clip(0, 255).astype(np.uint8).reshape(count, *shape)


def held_out_bounds(vae: VAE, card: ModelCard, real: Real, rows: data.Indices) -> tuple[float, float]:
    """Mean ELBO and mean IWAE-`IMPORTANCE_SAMPLES` of those test pictures, in nats."""
    pictures = card.preprocess.normalise(torch.from_numpy(np.asarray(real.test.images[rows])))
    labels = one_hot(torch.from_numpy(real.test.labels[rows]), len(rows), card)
    found = likelihood.bounds(vae, pictures, labels, IMPORTANCE_SAMPLES, SEED)
    return float(found.elbo.mean()), float(found.importance_weighted.mean())


def card_metrics(figures: Figures, group: Group, found: Quality) -> list[Metric]:
    """What a generator's card says of it."""
    values = {
        "frechet_distance": found.frechet,
        "kernel_distance": found.kernel,
        "precision": found.manifolds.precision,
        "recall": found.manifolds.recall,
        "spread": found.spread.mean,
        "spread_lowest": found.spread.lowest,
        "inception_score": found.inception,
        "share_lowest": found.shares and found.shares.low,
        "share_highest": found.shares and found.shares.high,
        "asked": found.asked,
    }
    where = f"{figures.samples:,} samples, {figures.dataset} test ({group.test:,}), {figures.extractor.name}"
    metrics = [Metric(name=name, value=value, data=where) for name, value in values.items() if value is not None]
    if found.bounds is not None:
        where = f"{figures.dataset} test ({group.held_out:,})"
        names = ("elbo", f"iwae_{IMPORTANCE_SAMPLES}")
        bounds = zip(names, found.bounds, strict=True)
        metrics += [Metric(name=name, value=value, data=where) for name, value in bounds]
    return metrics
