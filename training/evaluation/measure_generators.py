"""Measure generators against two references: real images, and a Gaussian distribution of pixels.

Generated and real images are converted to bytes in the generator's size; one extractor computes their features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import checkpoint
from models.card import Metric, ModelCard
from models.detector import Pixels
from models.generative import SupportsDecode, latents
from models.preprocess import Preprocess
from models.vae import VAE
from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets import images
from training.datasets.crops_and_noise import one_hot
from training.datasets.faces import rows_of
from training.datasets.images import ImageSet, Indices
from training.metrics import distribution, likelihood
from training.metrics.feature_extractor import ExtractedFeatures, Extractor

SEED = 0
IMPORTANCE_SAMPLES = 64
# Largest number of images of each set for precision and recall, which need all distances between them.
MANIFOLD_ROWS = 10_000
_ROWS_AT_ONCE = 500


class Spread(NamedTuple):
    """Mean distance between images of a class, relative to real images of it: the mean and the minimum over classes."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Quality:
    """Figures of a set of images against the real test images. Bounds are in nats per image, shares 0..1.

    `asked` is the share classified as the requested class; `shares` are the lowest and the highest share of a
    recognised class. `inception`, `asked` and `shares` are None without classes; `bounds` (ELBO, IWAE) are None for all
    but VAEs.
    """

    name: str
    frechet: float
    kernel: float
    manifolds: distribution.Manifolds
    spread: Spread
    inception: float | None = None
    shares: tuple[float, float] | None = None
    asked: float | None = None
    bounds: tuple[float, float] | None = None


class Samples(NamedTuple):
    """Images uint8 [N, H, W, C], and their requested labels [N], if any."""

    pixels: Pixels
    labels: Tensor | None


@dataclass(frozen=True)
class Group:
    """Generators with the same preprocessing, and their references: real training images, and the Gaussian."""

    preprocess: Preprocess
    test: int
    held_out: int
    floor: Quality
    generators: tuple[Quality, ...]
    ceiling: Quality


@dataclass(frozen=True)
class Figures:
    """All groups of one data set with `samples` images of each generator."""

    dataset: str
    extractor: Extractor
    samples: int
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class RealImages:
    """The images of a data set with one preprocessing, and the rows for training and for testing."""

    train: ImageSet
    train_rows: Indices
    test: ImageSet
    test_rows: Indices

    @classmethod
    def load(cls, dataset: str, preprocess: Preprocess) -> RealImages:
        """Load a data set; for one of identities, with the splits of `training.datasets.faces`.

        Raises:
            DatasetNotFoundError, DataError: see `images.load`.
        """
        train = images.load(dataset, "train", preprocess)
        if all(":" in name for name in train.classes):
            return cls(train, rows_of(train, "train"), train, rows_of(train, "test"))
        test = images.load(dataset, "test", preprocess)
        return cls(train, np.arange(len(train.labels)), test, np.arange(len(test.labels)))

    def training_sample(self, count: int) -> Pixels:
        """Return at most `count` random training images."""
        chosen = np.random.default_rng(derive(SEED, "floor")).permutation(self.train_rows)[:count]
        return np.asarray(self.train.images[np.sort(chosen)])


@dataclass(frozen=True)
class ImageSets:
    """The images that extractors judge, and bounds of VAEs on `held_out` test images; by the generator's name.

    `trained_with` are the names of the networks in whose features the generators were trained, "" for none.
    """

    real: RealImages
    held_out: int
    floor: Pixels
    generated: Mapping[str, Samples]
    trained_with: Mapping[str, str]
    ceiling: Pixels
    bounds: Mapping[str, tuple[float, float] | None]


class Reference:
    """The features of the real test images, against which other sets are measured."""

    def __init__(self, extracted: ExtractedFeatures):
        self._extracted = extracted
        self._moments = distribution.moments(extracted.features)
        self._spread = self._spread_of(extracted)

    def compare(self, name: str, extracted: ExtractedFeatures, asked: Tensor | None = None) -> Quality:
        """Measure another set of images; `asked` are their requested labels [N]."""
        classes, real = extracted.probabilities.shape[1], self._extracted.features
        shares = extracted.labels.bincount(minlength=classes).double() / len(extracted.labels)
        varied = self._spread > 0  # classes with two real images or more
        ratios = self._spread_of(extracted)[varied] / self._spread[varied]
        return Quality(
            name=name,
            frechet=distribution.frechet_distance(self._moments, distribution.moments(extracted.features)),
            kernel=distribution.kernel_distance(real, extracted.features),
            manifolds=distribution.precision_recall(real[:MANIFOLD_ROWS], extracted.features[:MANIFOLD_ROWS]),
            spread=Spread(float(ratios.mean()), float(ratios.min())),
            inception=distribution.inception_score(extracted.probabilities) if classes else None,
            shares=(float(shares.min()), float(shares.max())) if classes else None,
            asked=None if asked is None else float((extracted.labels == asked).double().mean()),
        )

    def _spread_of(self, extracted: ExtractedFeatures) -> Tensor:
        return distribution.within_class_distance(
            extracted.features, extracted.labels, max(1, extracted.probabilities.shape[1])
        )


def measure(
    folders: Sequence[Path], dataset: str, judges: Sequence[Path], samples: int, held_out: int
) -> list[Figures]:
    """Measure `samples` images of each generator by each judge, and bounds of VAEs on `held_out` test images (0: all).

    A generator that was trained in the features of a judge is not measured by it.

    Raises:
        CheckpointError: if a folder has no model. DataError: if a model is not a generator, or has other classes than
            an extractor; see also `RealImages.load`.
    """
    extractors = [Extractor(judge) for judge in judges]
    loaded = [_load(folder, extractors) for folder in folders]

    def geometry(model: tuple[nn.Module, ModelCard]) -> str:
        return model[1].preprocess.model_dump_json(exclude={"mean", "std"})

    groups = [
        _groups(list(members), dataset, extractors, samples, held_out)
        for _, members in itertools.groupby(sorted(loaded, key=geometry), key=geometry)
    ]
    by_extractor = zip(*groups, strict=True)
    return [
        Figures(dataset, extractor, samples, judged) for extractor, judged in zip(extractors, by_extractor, strict=True)
    ]


def _load(folder: Path, extractors: Sequence[Extractor]) -> tuple[nn.Module, ModelCard]:
    network, card = checkpoint.load(folder)
    if not isinstance(network, SupportsDecode):
        raise DataError(f"{folder}: a network to {card.task} is not a generator")
    for extractor in extractors:
        if card.classes and card.classes != extractor.card.classes:
            raise DataError(
                f"{card.name} has the classes {card.classes}, {extractor.card.name} {extractor.card.classes}"
            )
    return network, card


def _groups(
    members: Sequence[tuple[nn.Module, ModelCard]],
    dataset: str,
    extractors: Sequence[Extractor],
    samples: int,
    held_out: int,
) -> list[Group]:
    """Return the figures of generators with the same preprocessing by each extractor."""
    preprocess = members[0][1].preprocess
    real = RealImages.load(dataset, preprocess)
    rows = real.test_rows[: held_out or None]
    sets = ImageSets(
        real=real,
        held_out=len(rows),
        floor=real.training_sample(samples),
        generated={card.name: draw(network, card, samples, SEED) for network, card in members},
        trained_with={card.name: _trained_with(card) for _, card in members},
        ceiling=gaussian(real.train, real.train_rows, samples, SEED),
        bounds={card.name: held_out_bounds(network, card, real, rows) for network, card in members},
    )
    return [_judge(extractor, preprocess, sets) for extractor in extractors]


def _trained_with(card: ModelCard) -> str:
    """Return the name of the network in whose features the generator was trained; "" if there was none."""
    features = card.training.recipe.get("features") if card.training else None
    return Path(features["folder"]).name if features else ""


def _judge(extractor: Extractor, preprocess: Preprocess, sets: ImageSets) -> Group:
    real = sets.real
    has_classes = extractor.card.classes == real.test.classes

    def extract(pixels: Pixels) -> ExtractedFeatures:
        features, probabilities = extractor(pixels)
        # Probabilities of classes that the data set does not have say nothing about its images.
        return ExtractedFeatures(features, probabilities if has_classes else probabilities[:, :0])

    reference = Reference(extract(np.asarray(real.test.images[real.test_rows])))
    generators = (
        replace(reference.compare(name, extract(samples.pixels), samples.labels), bounds=sets.bounds[name])
        for name, samples in sets.generated.items()
        if sets.trained_with[name] != extractor.card.name
    )
    return Group(
        preprocess=preprocess,
        test=len(real.test_rows),
        held_out=sets.held_out,
        floor=reference.compare("real training images", extract(sets.floor)),
        generators=tuple(generators),
        ceiling=reference.compare("Gaussian of pixels", extract(sets.ceiling)),
    )


def draw(network: nn.Module, card: ModelCard, count: int, seed: int, labels: Tensor | None = None) -> Samples:
    """Return the first `count` samples of a seed as the service generates them; labels are random unless given."""
    if labels is None:  # without classes they are ignored
        labels = torch.randint(len(card.classes) or 1, (count,), generator=generator(seed, "labels"))
    return Samples(np.concatenate(list(_batches(network, card, count, seed, labels))), labels if card.classes else None)


@torch.inference_mode()
def _batches(network: nn.Module, card: ModelCard, count: int, seed: int, labels: Tensor) -> Iterator[Pixels]:
    assert isinstance(network, SupportsDecode)  # noqa: S101  checked by `_load`
    for first in range(0, count, _ROWS_AT_ONCE):
        indices = range(first, min(first + _ROWS_AT_ONCE, count))
        noise = torch.stack([latents(seed, index, network.config.latent) for index in indices])
        planes = one_hot(labels[first : indices.stop], len(card.classes))
        yield card.preprocess.denormalise(network.decode(noise, planes)).numpy()


def gaussian(dataset: ImageSet, rows: Indices, count: int, seed: int) -> Pixels:
    """Sample the normal distribution with mean and covariance of the pixels of `rows`: uint8 [count, H, W, C].

    A sum of the centred images with normal weights has this distribution. It needs no covariance matrix, which for
    colour images of 64 x 64 has 151 million elements.
    """
    shape = dataset.images.shape[1:]
    mean = np.zeros(int(np.prod(shape)))
    blocks = np.array_split(rows, max(1, len(rows) // _ROWS_AT_ONCE))
    for block in blocks:
        mean += dataset.images[block].reshape(len(block), -1).sum(axis=0, dtype=np.float64) / len(rows)
    random = np.random.default_rng(derive(seed, "gaussian"))
    samples = np.tile(mean.astype(np.float32), (count, 1))
    for block in blocks:
        centred = (dataset.images[block].reshape(len(block), -1) - mean).astype(np.float32)
        weights = random.standard_normal((count, len(block)), dtype=np.float32)
        samples += weights @ centred / np.float32(np.sqrt(max(len(rows) - 1, 1)))
    return samples.round().clip(0, 255).astype(np.uint8).reshape(count, *shape)


def held_out_bounds(network: nn.Module, card: ModelCard, real: RealImages, rows: Indices) -> tuple[float, float] | None:
    """Return a VAE's mean ELBO and mean IWAE-`IMPORTANCE_SAMPLES` of the test images `rows`, in nats."""
    if not isinstance(network, VAE):
        return None
    batch = card.preprocess.normalise(torch.from_numpy(np.asarray(real.test.images[rows])))
    labels = one_hot(torch.from_numpy(real.test.labels[rows]), len(card.classes))
    bounds = likelihood.bounds(network, batch, labels, IMPORTANCE_SAMPLES, SEED)
    return float(bounds.elbo.mean()), float(bounds.importance_weighted.mean())


def card_metrics(figures: Figures, group: Group, quality: Quality) -> list[Metric]:
    """Return the figures of a generator for its card."""
    values = {
        "frechet_distance": quality.frechet,
        "kernel_distance": quality.kernel,
        "precision": quality.manifolds.precision,
        "recall": quality.manifolds.recall,
        "spread": quality.spread.mean,
        "spread_lowest": quality.spread.lowest,
        "inception_score": quality.inception,
        "share_lowest": quality.shares and quality.shares[0],
        "share_highest": quality.shares and quality.shares[1],
        "asked": quality.asked,
    }
    where = f"{figures.samples:,} samples, {figures.dataset} test ({group.test:,}), {figures.extractor.name}"
    metrics = [Metric(name=name, value=value, data=where) for name, value in values.items() if value is not None]
    if quality.bounds is not None:
        where = f"{figures.dataset} test ({group.held_out:,})"
        names = ("elbo", f"iwae_{IMPORTANCE_SAMPLES}")
        bounds = zip(names, quality.bounds, strict=True)
        metrics += [Metric(name=name, value=value, data=where) for name, value in bounds]
    return metrics
