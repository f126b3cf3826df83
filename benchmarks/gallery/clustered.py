"""Vectors clustered like faces, any number of them by a seed, and what is exactly nearest among them.

A subject's centre lies around one of `coarse` directions, its faces lie around the centre. Neither spreads alike in all
of the 128 dimensions: variances fall off by a power law, along directions that have nothing to do with the axes. The
defaults are such that cosines and effective dimensions (the squared sum of the variances over the sum of their squares)
are about those of dlib's vectors of 6,441 identities less their mean: two faces of a subject 0.61, strangers 0.00 with
a deviation of 0.18 (there 0.19), 19 dimensions of subjects (22), 67 of the faces of one (59).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DIMENSIONS = 128
FACES = (5, 4)  # of every two subjects: the first's, the second's
BLOCK_SUBJECTS = 14_000
BLOCK = BLOCK_SUBJECTS // 2 * sum(FACES)  # rows that are drawn at once, by one generator
# What the generators of one seed are for.
_DIRECTIONS, _BLOCK, _QUERIES = range(3)


@dataclass(frozen=True)
class Clustered:
    """`rows` vectors. A spread is the noise's length, where what it is added to has length 1."""

    rows: int
    seed: int = 0
    coarse: int = 4096
    subject_spread: float = 1.0
    face_spread: float = 0.8
    subject_decay: float = 1.2  # of the variances' power law
    face_decay: float = 0.6
    dimensions: int = DIMENSIONS

    def __post_init__(self) -> None:
        if self.rows < 1 or self.coarse < 1:
            raise ValueError(f"at least one row and one coarse direction are needed, got {self.rows} and {self.coarse}")

    @property
    def digest(self) -> str:
        """Twelve hex digits of all parameters."""
        return hashlib.sha256(repr((self, FACES, BLOCK_SUBJECTS)).encode()).hexdigest()[:12]

    def subjects(self, rows: Ints) -> Ints:
        """Whose faces these rows are."""
        pairs, places = np.divmod(rows, sum(FACES))
        return np.asarray(2 * pairs + (places >= FACES[0]))

    def chunks(self) -> Iterator[tuple[int, Floats]]:
        """All of them in order: the first row's number, and vectors [at most BLOCK, D]."""
        for first in range(0, self.rows, BLOCK):
            yield first, self._block(first // BLOCK)[: self.rows - first]

    def slice(self, first: int, last: int) -> Floats:
        """Rows `first` up to before `last`, [last - first, D]."""
        parts = [
            self._block(block)[max(first - block * BLOCK, 0) : last - block * BLOCK]
            for block in range(first // BLOCK, -(-last // BLOCK))
        ]
        return np.concatenate([np.empty((0, self.dimensions), np.float32), *parts])

    def queries(self, count: int, strangers: float) -> tuple[Floats, Ints]:
        """New faces [count, D], that share of them of subjects who are not there: their subjects are -1."""
        rng = self._rng(_QUERIES)
        number = int(self.subjects(np.array([self.rows - 1]))[0]) + 1
        subjects = rng.integers(number, size=count)
        subjects[rng.permutation(count)[: round(strangers * count)]] = -1
        centres = self._around_coarse(rng, count)
        for block in np.unique(subjects[subjects >= 0] // BLOCK_SUBJECTS).tolist():
            here = subjects // BLOCK_SUBJECTS == block
            centres[here] = self._centres(self._rng(_BLOCK, block))[subjects[here] % BLOCK_SUBJECTS]
        return self._around(rng, centres), subjects

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    @cached_property
    def _directions(self) -> tuple[Floats, Floats, Floats]:
        """How the noise of subjects and of faces is mixed, [D, D] each, and the coarse directions, [coarse, D]."""
        rng = self._rng(_DIRECTIONS)
        of_subjects, of_faces = (
            _mixing(rng, self.dimensions, decay) for decay in (self.subject_decay, self.face_decay)
        )
        return of_subjects, of_faces, _of_length_1(self._normal(rng, self.coarse) @ of_subjects)

    def _centres(self, rng: np.random.Generator) -> Floats:
        return self._around_coarse(rng, BLOCK_SUBJECTS)

    def _around_coarse(self, rng: np.random.Generator, count: int) -> Floats:
        mixing, _, coarse = self._directions
        chosen = coarse[rng.integers(self.coarse, size=count)]
        return _of_length_1(chosen + np.float32(self.subject_spread) * (self._normal(rng, count) @ mixing))

    def _around(self, rng: np.random.Generator, centres: Floats) -> Floats:
        noise = self._normal(rng, len(centres)) @ self._directions[1]
        noise *= np.float32(self.face_spread)
        noise += centres
        return _of_length_1(noise)

    def _block(self, block: int) -> Floats:
        rng = self._rng(_BLOCK, block)
        centres = self._centres(rng)
        return self._around(rng, np.repeat(centres, np.tile(FACES, BLOCK_SUBJECTS // 2), axis=0))

    def _normal(self, rng: np.random.Generator, count: int) -> Floats:
        return rng.standard_normal((count, self.dimensions), np.float32)


def _mixing(rng: np.random.Generator, dimensions: int, decay: float) -> Floats:
    variances = np.arange(1, dimensions + 1) ** -decay
    rotation, _ = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))
    return np.asarray(np.sqrt(variances / variances.sum())[:, None] * rotation, np.float32)


def _of_length_1(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def nearest(data: Clustered, queries: Floats, k: int) -> Ints:
    """The rows with the largest inner products with each query [N, D], exactly: [N, k], likest first; -1: no more."""
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for first, vectors in data.chunks():
        new, places = faiss.knn(queries, vectors, min(k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        similarities = np.concatenate([similarities, new], axis=1)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        rows = np.take_along_axis(np.concatenate([rows, places + first], axis=1), order, axis=1)
    return rows


def recall(found: Ints, truth: Ints, k: int) -> float:
    """The share of the exact `k` nearest that is among the first `k` found, [N, at least k] each."""
    return float((found[:, :k, None] == truth[:, None, :k]).any(axis=1).mean())


@dataclass(frozen=True)
class Questions:
    """What every engine is asked: `queries` [N, D], their `subjects` [N] and the exact `truth` [N, k] in rows.

    And of some rows that are enrolled their numbers, subjects and vectors, each of which must find itself.
    """

    queries: Floats
    subjects: Ints
    truth: Ints
    known: Ints
    known_subjects: Ints
    known_vectors: Floats

    @classmethod
    def load(cls, path: Path) -> Questions:
        """What `questions` left there."""
        with np.load(path) as arrays:
            return cls(**arrays)


def questions(data: Clustered, count: int, strangers: float, folder: Path, k: int = 10) -> Path:
    """The file of the questions, made where it is not there yet."""
    path = folder / f"questions-{data.digest}-{count}-{strangers:g}-{k}.npz"
    if not path.exists():
        queries, subjects = data.queries(count, strangers)
        known = np.arange(min(8, data.rows))
        temporary = path.with_name(f".{path.name}")
        np.savez(
            temporary,
            queries=queries,
            subjects=subjects,
            truth=nearest(data, queries, k),
            known=known,
            known_subjects=data.subjects(known),
            known_vectors=data.slice(0, len(known)),
        )
        temporary.replace(path)
    return path
