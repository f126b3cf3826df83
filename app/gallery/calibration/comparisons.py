"""Compare photos of strangers with each other and with enrolled faces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.types import SubjectVectors
from models.site_calibration import ComparedStrangers

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

MAX_COMPARISONS = 200_000


@dataclass(frozen=True)
class Photos:
    """Unit vectors [N, D], and the number of each photo's person [N] in `keys`."""

    vectors: Floats
    people: Indices
    keys: tuple[str, ...]
    metadata: tuple[dict[str, object], ...]

    @classmethod
    def of(cls, subjects: list[SubjectVectors], dimensions: int) -> Photos:
        """Return the photos of the subjects that have any."""
        present = [subject for subject in subjects if len(subject.vectors)]
        vectors = [subject.vectors for subject in present]
        return cls(
            np.concatenate([np.zeros((0, dimensions), np.float32), *vectors]),
            np.repeat(np.arange(len(present)), [len(rows) for rows in vectors]).astype(np.int64),
            tuple(subject.subject.key for subject in present),
            tuple(subject.subject.metadata for subject in present),
        )


def compare_strangers(strangers: Photos, enrolled: Photos, *, with_each_other: bool) -> ComparedStrangers:
    """Compare each stranger's photo with photos of other people, about MAX_COMPARISONS in all.

    In the result, the people of `enrolled` have negative numbers.
    """
    random = np.random.default_rng(0)
    columns = np.concatenate([strangers.vectors, enrolled.vectors]) if with_each_other else enrolled.vectors
    people = -1 - enrolled.people
    people = np.concatenate([strangers.people, people]) if with_each_other else people
    each = max(1, MAX_COMPARISONS // max(1, len(strangers.vectors)))
    similarities, pairs = [np.zeros(0)], [np.zeros((0, 2), np.int64)]
    for number, (vector, person) in enumerate(zip(strangers.vectors, strangers.people, strict=True)):
        # Each pair of strangers once: the other one follows this one.
        others = np.flatnonzero(people != person)
        others = others[(others > number) | (people[others] < 0)]
        chosen = random.permutation(others)[:each] if len(others) > each else others
        similarities.append((columns[chosen] @ vector).astype(np.float64))
        pairs.append(np.stack([np.full(len(chosen), person), people[chosen]], axis=1))
    return ComparedStrangers(np.concatenate(similarities), np.concatenate(pairs))


def mated_similarities(photos: Photos, enrolled: Photos) -> npt.NDArray[np.float64]:
    """Return the similarities of photos to the enrolled photos of the same key."""
    number = {key: position for position, key in enumerate(enrolled.keys)}
    values = [np.zeros(0)]
    for vector, person in zip(photos.vectors, photos.people, strict=True):
        own = enrolled.vectors[enrolled.people == number.get(photos.keys[person], -1)]
        values.append((own @ vector).astype(np.float64))
    return np.concatenate(values)
