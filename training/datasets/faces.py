"""Split a data set of faces into training, calibration and test identities, and draw the pairs to compare in a split.

The classes of such a data set are identities, named `<source>:<name>` (see `training.datasets.images`). Splits share no
identity. An identity's split depends on its name alone and so does not change when images are added.
"""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from training.core.errors import DataError
from training.core.seeds import derive
from training.datasets.images import ImageSet, Indices

FaceSplit = Literal["train", "calibrate", "test"]

# Percentages of each source's identities, by hash.
_SHARES: dict[FaceSplit, range] = {"train": range(80), "calibrate": range(80, 90), "test": range(90, 100)}


def source_of(identity: str) -> str:
    """Return the source of an identity: `pins` for `pins:somebody`."""
    return identity.partition(":")[0]


def split_of(identity: str) -> FaceSplit:
    """Return an identity's split, by the SHA-256 of its name: about 80 % train, 10 % calibrate, 10 % test."""
    percent = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % 100
    return next(split for split, percentages in _SHARES.items() if percent in percentages)


def rows_of(faces: ImageSet, split: FaceSplit) -> Indices:
    """Return the rows of the split's identities, ascending.

    Raises:
        DataError: if there are none.
    """
    chosen = np.array([split_of(identity) == split for identity in faces.classes])
    rows = np.flatnonzero(chosen[faces.labels])
    if not len(rows):
        raise DataError(f"no identity of this data set is in the split {split}")
    return rows


def mated_pairs(faces: ImageSet, rows: Indices, most: int, seed: int) -> Indices:
    """Return different pairs of images of one person as row numbers [P, 2], at most `most` of each identity."""
    random = np.random.default_rng(derive(seed, "mated"))
    pairs: list[Indices] = []
    for identity in np.unique(faces.labels[rows]):
        members = rows[faces.labels[rows] == identity]
        first, second = np.triu_indices(len(members), 1)
        kept = random.permutation(len(first))[:most]
        pairs.append(np.stack([members[first[kept]], members[second[kept]]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def impostor_pairs(faces: ImageSet, rows: Indices, count: int, seed: int) -> Indices:
    """Return different pairs of images of two people of one source as row numbers [P, 2], P <= `count`.

    Two sources may contain one person under two names, so there are no pairs across sources. The share of each source
    is proportional to its rows in the whole data set, not in `rows`: in a source of few people with many photos, the
    number of rows in a split is random.

    Raises:
        DataError: no source has two identities among these rows.
    """
    random = np.random.default_rng(derive(seed, "impostor"))
    _, numbers = np.unique([source_of(identity) for identity in faces.classes], return_inverse=True)
    sources = numbers[faces.labels[rows]]
    present = np.unique(sources)
    counts = np.bincount(numbers[faces.labels])[present]  # rows of the whole data set
    # Three times as many as needed: draws of one person and repeated pairs are dropped.
    draws = np.ceil(3 * count * counts / counts.sum()).astype(np.int64)
    shuffled = [random.permutation(np.flatnonzero(sources == source)) for source in present]
    first = random.permutation(np.concatenate([np.resize(*part) for part in zip(shuffled, draws, strict=True)]))
    second = np.empty_like(first)
    for source in np.unique(sources):
        members = np.flatnonzero(sources == source)
        of_source = sources[first] == source
        second[of_source] = random.choice(members, of_source.sum())
    pairs = np.sort(np.stack([rows[first], rows[second]], axis=1), axis=1)
    pairs = pairs[faces.labels[pairs[:, 0]] != faces.labels[pairs[:, 1]]]
    _, places = np.unique(pairs, axis=0, return_index=True)
    if not len(places):
        raise DataError("non-mated pairs need two identities of one source")
    chosen: Indices = pairs[np.sort(places)[:count]]
    return chosen


class ComparedPairs(NamedTuple):
    """Pairs of a data set's images as row numbers [P, 2], mated ones first, and whether each is mated [P]."""

    rows: Indices
    mated: npt.NDArray[np.bool_]

    def positions(self, rows: Indices) -> Indices:
        """Return the positions [P, 2] of the pairs' images in `rows`, which are ascending and contain them."""
        return np.searchsorted(rows, self.rows)

    def similarities(self, vectors: npt.NDArray[np.float64], rows: Indices) -> npt.NDArray[np.float64]:
        """Return the cosine of each pair [P], from the unit vectors [N, D] of the ascending `rows` [N]."""
        first, second = self.positions(rows).T
        return np.asarray((vectors[first] * vectors[second]).sum(axis=1))


def draw_pairs(faces: ImageSet, rows: Indices, mated: int, impostors: int, seed: int) -> ComparedPairs:
    """Return at most `mated` mated pairs of each identity of `rows` and at most `impostors` non-mated pairs.

    Raises:
        DataError: see `impostor_pairs`; no identity has two images.
    """
    same = mated_pairs(faces, rows, mated, seed)
    if not len(same):
        raise DataError("mated pairs need an identity with two images")
    other = impostor_pairs(faces, rows, impostors, seed)
    return ComparedPairs(np.concatenate([same, other]), np.arange(len(same) + len(other)) < len(same))
