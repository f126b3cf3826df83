"""Measure a face embedder on test data: verification, identification, and the card's thresholds and probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models.card import ModelCard
from models.matching import Matching, Threshold
from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets import images
from training.datasets.degradations import degrade
from training.datasets.faces import ComparedPairs, draw_pairs, rows_of, source_of
from training.datasets.images import ImageSet, Indices
from training.datasets.protocols import ListedPairs, Search, orl_searches, random_search, read_lfw, read_orl, read_views
from training.evaluation.embedded_faces import EmbeddedFaces, FaceEmbedder, embed_photos, load_detector
from training.metrics.verification import (
    Floats,
    Reliability,
    Scores,
    accuracy_over_folds,
    cross_validated_accuracy,
    first_candidates,
    fmr_interval,
    open_set,
    reliability,
)
from training.recipe.config import CameraSection

RATES = (1e-1, 1e-2, 1e-3)
# False match rates at which the card's thresholds are checked.
CHECKED_RATES = (1e-2, 1e-3)
FPIRS = (1e-1, 1e-2)
# As calibration draws them by default, so that each source has the same weight.
MATED, IMPOSTORS = 10, 100_000
# A source with fewer people is not shown by itself: their confidence interval would say nothing.
MIN_PEOPLE = 10
GALLERIES = 10
SEED = 0
# The images of ORL, 92x112, are tight crops. The detector finds a face in nearly all of them; enlarged twice, in all.
ORL_ENLARGED = 2
_AT_ONCE = 256

# The degradations of the second photo of each pair in the line "a camera's photo", each on half of the photos.
CAMERA = CameraSection(
    chance=0.5, smallest=24, defocus=2.5, motion=9.0, light=0.25, noise=12.0, jpeg=20, grey=True, occlude=False
)


@dataclass(frozen=True)
class Verification:
    """1:1 figures of one set; `accuracy` over ten folds and its standard error, if the set's protocol defines it."""

    name: str
    scores: Scores
    images: int
    failures: int = 0
    accuracy: tuple[float, float] | None = None


class ThresholdCheck(NamedTuple):
    """The card's threshold for the false match rate `fmr`, the rate measured there and its interval, all 0..1."""

    name: str
    fmr: float
    threshold: Threshold
    measured: float
    interval: tuple[float, float]


class Average(NamedTuple):
    """Mean and standard deviation over galleries."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Average:
        """Return the average of two values or more."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)))


@dataclass(frozen=True)
class Identification:
    """1:N figures of one set; `fnir` by FPIR, empty if the protocol enrols all subjects.

    `mated` and `impostor` are the mean numbers of searches of an open-set gallery.
    """

    name: str
    subjects: int
    images: int
    failures: int
    rank_one: Average
    fnir: Mapping[float, Average]
    mated: float = 0.0
    impostor: float = 0.0


@dataclass
class Figures:
    """All figures; `people` is the number of test identities in the data set."""

    card: ModelCard
    dataset: str
    people: int
    reliability: Reliability
    threshold_checks: list[ThresholdCheck]
    verifications: list[Verification]
    identifications: list[Identification]


def measure(folder: Path, dataset: str, lfw: Path | None, orl: Path | None, detector: Path) -> Figures:
    """Return all figures of the embedder in `folder`.

    Raises:
        CheckpointError, DataError, DatasetNotFoundError: see `FaceEmbedder`, `load_detector`, `images.load`, `rows_of`,
            `training.datasets.protocols`; the test identities have no mated or no non-mated pairs.
    """
    embedder = FaceEmbedder(folder)
    faces = images.load(dataset, "train", embedder.card.preprocess)
    rows = rows_of(faces, "test")
    # Errors in these folders are reported before the long computation begins.
    lfw_people = read_lfw(lfw) if lfw else None
    views = read_views(lfw, lfw_people) if lfw and lfw_people else {}
    orl_people = read_orl(orl) if orl else None
    detect = load_detector(detector) if lfw or orl else None
    figures = on_identities(embedder, dataset, faces, rows)
    if detect and lfw_people:
        photos = embed_photos(lfw_people, detect, embedder)
        figures.verifications += [verify(f"LFW {name}", photos, pairs) for name, pairs in views.items()]
        figures.identifications.append(identify("LFW", photos))
    if detect and orl_people:
        photos = embed_photos(orl_people, detect, embedder, ORL_ENLARGED)
        figures.identifications.append(identify_closed_set("ORL", photos, orl_searches(orl_people)))
    return figures


class _SourceFigures(NamedTuple):
    """The test images `rows` of one source, or of all; pairs of them, the pairs' identities [P, 2] and similarities."""

    name: str
    rows: Indices
    pairs: ComparedPairs
    identities: Indices
    similarities: Floats

    @property
    def verification(self) -> Verification:
        return Verification(self.name, Scores.of(self.similarities, self.pairs.mated), len(self.rows))


def on_identities(embedder: FaceEmbedder, dataset: str, faces: ImageSet, rows: Indices) -> Figures:
    """Measure on the identities of `rows`, ascending: pairs within each source, galleries of one source each.

    Raises:
        DataError: there are no mated or no non-mated pairs.
    """
    embedded = EmbeddedFaces(embedder.rows(faces, rows), faces.labels[rows], np.ones(len(rows), bool))
    everyone, *sources = [
        _source_figures(name, faces, chosen, rows, embedded) for name, chosen in _sources(dataset, faces, rows).items()
    ]
    camera = embedder.rows(degraded_faces(faces, rows), np.arange(len(rows)))
    matching = embedder.matching
    probabilities = np.array([matching.probability(value) for value in everyone.similarities])
    return Figures(
        card=embedder.card,
        dataset=dataset,
        people=len(np.unique(embedded.labels)),
        reliability=reliability(probabilities, everyone.identities, matching.prior, seed=SEED),
        threshold_checks=[check for part in (everyone, *sources) for check in _check_thresholds(part, matching)],
        verifications=[
            *(part.verification for part in (everyone, *sources)),
            verify_against(f"{dataset}, all, a camera's photo", everyone.pairs, rows, embedded.vectors, camera),
        ],
        # Two sources may contain one person under two names, so no gallery has people of both.
        identifications=[identify(part.name, embedded.take(np.searchsorted(rows, part.rows))) for part in sources],
    )


def degraded_faces(faces: ImageSet, rows: Indices) -> ImageSet:
    """Return the images of `rows`, [len(rows), H, W, C], with the degradations `CAMERA` of a door camera."""
    parts = []
    for first in range(0, len(rows), _AT_ONCE):
        pixels = torch.from_numpy(np.asarray(faces.images[rows[first : first + _AT_ONCE]])).movedim(-1, 1).float()
        degraded = degrade(pixels, CAMERA, generator(SEED, "camera", first))
        parts.append(degraded.round().clamp(0, 255).byte().movedim(1, -1).numpy())
    return ImageSet(np.concatenate(parts), faces.labels[rows], faces.classes)


def verify_against(name: str, pairs: ComparedPairs, rows: Indices, vectors: Floats, others: Floats) -> Verification:
    """Measure on pairs of the images `rows`; the first vector of a pair is in `vectors`, the second in `others`."""
    first, second = pairs.positions(rows).T
    return Verification(name, Scores.of((vectors[first] * others[second]).sum(axis=1), pairs.mated), len(rows))


def _sources(dataset: str, faces: ImageSet, rows: Indices) -> dict[str, Indices]:
    """Return all rows, and those of each source with enough people, by the name of the set."""
    names = np.array([source_of(identity) for identity in faces.classes])[faces.labels[rows]]
    parts = {name: rows[names == name] for name in np.unique(names).tolist()}
    large = {name: part for name, part in parts.items() if len(np.unique(faces.labels[part])) >= MIN_PEOPLE}
    return {f"{dataset}, all": rows} | {f"{dataset}, {name}": part for name, part in large.items()}


def _source_figures(
    name: str, faces: ImageSet, chosen: Indices, rows: Indices, embedded: EmbeddedFaces
) -> _SourceFigures:
    try:
        pairs = draw_pairs(faces, chosen, MATED, IMPOSTORS, SEED)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    similarities = pairs.similarities(embedded.vectors, rows)
    return _SourceFigures(name, chosen, pairs, faces.labels[pairs.rows], similarities)


def _check_thresholds(part: _SourceFigures, matching: Matching) -> list[ThresholdCheck]:
    impostors = ~part.pairs.mated
    checks = []
    for fmr in CHECKED_RATES:
        threshold = matching.threshold(fmr)
        accepted = part.similarities[impostors] >= threshold.similarity
        interval = fmr_interval(accepted, part.identities[impostors], seed=SEED)
        checks.append(ThresholdCheck(part.name, fmr, threshold, float(accepted.mean()), interval))
    return checks


def verify(name: str, photos: EmbeddedFaces, pairs: ListedPairs, others: EmbeddedFaces | None = None) -> Verification:
    """Measure on a list of pairs, with the folds of the list or with ten; `others` as in `EmbeddedFaces.pairs`.

    Raises:
        DataError: fewer pairs than folds, or only one fold.
    """
    similarities = photos.pairs(pairs.positions, others)
    try:
        accuracy = (
            cross_validated_accuracy(similarities, pairs.mated)
            if pairs.fold is None
            else accuracy_over_folds(similarities, pairs.mated, pairs.fold)
        )
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    # Only the photos in the list; LFW has others.
    listed = photos.take(np.unique(pairs.positions))
    return Verification(name, Scores.of(similarities, pairs.mated), len(listed.has_face), listed.failures, accuracy)


def identify(name: str, photos: EmbeddedFaces) -> Identification:
    """Measure with random gallery photos: closed-set with all subjects, open-set with a random half of them.

    Raises:
        DataError: fewer than two subjects, or too few with two photos for mated searches in every gallery.
    """
    random = np.random.default_rng(derive(SEED, "galleries"))
    closed = identify_closed_set(name, photos, [random_search(photos.labels, random) for _ in range(GALLERIES)])
    searches = [random_search(photos.labels, random, enrolled=0.5) for _ in range(GALLERIES)]
    try:
        scores = [open_set(photos.search(search), search.mates) for search in searches]
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    return replace(
        closed,
        fnir={rate: Average.of([1 - gallery.tar(rate) for gallery in scores]) for rate in FPIRS},
        mated=float(np.mean([len(gallery.mated) for gallery in scores])),
        impostor=float(np.mean([len(gallery.impostor) for gallery in scores])),
    )


def identify_closed_set(name: str, photos: EmbeddedFaces, searches: Iterable[Search]) -> Identification:
    """Measure rank-1 over `searches`, each with a gallery of all subjects.

    Raises:
        DataError: there is one subject only, or no subject has two photos.
    """
    subjects = len(np.unique(photos.labels))
    if subjects in {1, len(photos.labels)}:
        raise DataError(f"{name}: identification needs two subjects, and one of them with two photos")
    hits = [float(first_candidates(photos.search(search), search.mates).mean()) for search in searches]
    return Identification(name, subjects, len(photos.labels), photos.failures, Average.of(hits), fnir={})
