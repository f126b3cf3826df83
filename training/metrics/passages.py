"""Calibrate an embedder for passages: thresholds and probabilities for the fused vector of 1 to MAX_FRAMES frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models import align
from models.detector import Face, Pixels
from models.matching import Matching, OperatingPoint
from models.matching_fit import fit_matching
from models.passages import MAX_FRAMES, fuse, quality_weight
from training.core.seeds import derive, generator
from training.datasets.faces import FaceSplit, source_of
from training.datasets.images import ImageSet, Indices
from training.datasets.passages import burst, draw_photo_passages
from training.metrics.verification import Floats, Scores

Embed = Callable[[Pixels], Floats]  # aligned faces [N, 112, 112, 3] to unit vectors [N, D]

BURSTS, PHOTO_PASSAGES, MATED = 400, 5000, 10
_AT_ONCE = 32


@dataclass(frozen=True)
class WeightedFaces:
    """Unit vectors [..., D] of faces, and their weights in a passage [...], see `passages.quality_weight`."""

    vectors: Floats
    weights: Floats

    @classmethod
    def of(cls, crops: Pixels, embed: Embed) -> WeightedFaces:
        """Embed and weigh aligned faces [N, 112, 112, 3]."""
        return cls(embed(crops), np.array([crop_weight(crop) for crop in crops]))

    def fused(self, frames: int) -> Floats:
        """Return the fused vectors [P, D] of the first `frames` frames of passages [P, F]."""
        pairs = zip(self.vectors[:, :frames], self.weights[:, :frames], strict=True)
        return np.stack([fuse(vectors, weights) for vectors, weights in pairs])


def crop_weight(crop: Pixels) -> float:
    """Return the weight of an aligned face, uint8 [112, 112, 3], whose photo is unknown."""
    return quality_weight(align.measure(Face((0, 0, align.SIDE, align.SIDE), 1.0, align.TEMPLATE), crop))


def embed_bursts(aligned: ImageSet, rows: Indices, embed: Embed, split: FaceSplit, seed: int) -> WeightedFaces:
    """Return the faces [len(rows), MAX_FRAMES] of bursts of these photos, which are of one split."""
    draw = generator(seed, "bursts", split)
    parts = []
    for first in range(0, len(rows), _AT_ONCE):
        frames = burst(np.asarray(aligned.images[rows[first : first + _AT_ONCE]]), MAX_FRAMES, draw)
        parts.append(WeightedFaces.of(frames.reshape(-1, *frames.shape[2:]), embed))
    vectors = np.concatenate([part.vectors for part in parts])
    weights = np.concatenate([part.weights for part in parts])
    return WeightedFaces(vectors.reshape(len(rows), MAX_FRAMES, -1), weights.reshape(len(rows), MAX_FRAMES))


@dataclass(frozen=True)
class People:
    """Photos of a split: rows of the data set [N], their faces [N], and the person and source of each [N]."""

    rows: Indices
    faces: WeightedFaces
    labels: Indices
    sources: npt.NDArray[np.str_]

    @classmethod
    def of(cls, faces: ImageSet, rows: Indices, photos: WeightedFaces) -> People:
        """Describe the photos of these ascending rows."""
        labels = faces.labels[rows]
        return cls(rows, photos, labels, np.array([source_of(faces.classes[label]) for label in labels]))

    def scores(self, fused: Floats, photo: Indices, enrolled: Sequence[Indices], impostors: int, seed: int) -> Scores:
        """Compare fused vectors [P, D] with enrolled photos.

        `photo` [P] is the position of a photo in each passage, `enrolled` has the positions of photos of the same
        person that are not in it. Each passage is compared with about `impostors` / P photos of other people of its
        source.
        """
        random = np.random.default_rng(derive(seed, "impostor"))
        strangers = [
            np.flatnonzero((self.sources == self.sources[own]) & (self.labels != self.labels[own])) for own in photo
        ]
        each = math.ceil(impostors / max(1, sum(len(others) > 0 for others in strangers)))
        mated, other = [], []
        for vector, own, others in zip(fused, enrolled, strangers, strict=True):
            mated.append(self.faces.vectors[own] @ vector)
            other.append(self.faces.vectors[random.choice(others, each) if len(others) else others] @ vector)
        return Scores(np.sort(np.concatenate(mated)), np.sort(np.concatenate(other)))


def stricter(first: Scores, second: Scores, data: str) -> Matching:
    """Return the calibration whose thresholds are the higher of both, and whose probability is that of all pairs.

    Raises:
        ValueError: see `fit_matching`.
    """
    fits = [fit_matching(scores.mated, scores.impostor, data) for scores in (first, second)]
    both = fit_matching(
        np.concatenate([first.mated, second.mated]), np.concatenate([first.impostor, second.impostor]), data
    )
    points = tuple(
        OperatingPoint(fmr=points[0].fmr, similarity=max(point.similarity for point in points))
        for points in zip(*(fit.points for fit in fits), strict=False)
    )
    rare = points[-1].fmr / 10
    tail = max((fit.tail for fit in fits), key=lambda tail: tail.similarity(rare))
    return both.model_copy(update={"points": points, "tail": tail, "impostors": min(fit.impostors for fit in fits)})


def fit_passages(
    faces: ImageSet,
    people: People,
    burst_rows: Indices,
    bursts: WeightedFaces,
    *,
    impostors: int,
    seed: int,
    data: str,
) -> tuple[Matching, ...]:
    """Return the calibration for 1 to MAX_FRAMES frames, stricter of two: for photos of a person, and for bursts.

    `bursts` are of the photos `burst_rows`; `impostors` is the number of non-mated comparisons per kind and number of
    frames.

    Raises:
        ValueError: see `fit_matching`.
    """
    kinds = [photo_scores(faces, people, frames, impostors, seed) for frames in range(1, MAX_FRAMES + 1)]
    return tuple(
        stricter(photos, burst_scores(people, burst_rows, bursts, frames, impostors, seed), f"{data}, {frames} frames")
        for frames, photos in enumerate(kinds, start=1)
    )


def photo_scores(faces: ImageSet, people: People, frames: int, impostors: int, seed: int) -> Scores:
    """Return the scores of passages of `frames` photos of one person."""
    passages = draw_photo_passages(faces, people.rows, frames, PHOTO_PASSAGES, seed)
    chosen = np.searchsorted(people.rows, passages.frames)
    vectors = WeightedFaces(people.faces.vectors[chosen], people.faces.weights[chosen])
    enrolled = np.searchsorted(people.rows, passages.enrolled)
    return people.scores(vectors.fused(frames), chosen[:, 0], enrolled[:, None], impostors, seed)


def burst_scores(
    people: People, rows: Indices, bursts: WeightedFaces, frames: int, impostors: int, seed: int
) -> Scores:
    """Return the scores of bursts of `frames` variations of the photos `rows`."""
    photo = np.searchsorted(people.rows, rows)
    random = np.random.default_rng(derive(seed, "mated"))
    enrolled = [
        random.permutation(np.setdiff1d(np.flatnonzero(people.labels == people.labels[position]), [position]))[:MATED]
        for position in photo
    ]
    return people.scores(bursts.fused(frames), photo, enrolled, impostors, seed)
