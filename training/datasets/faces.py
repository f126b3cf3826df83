"""Which faces are trained on, which calibrate, which test; and the pairs that a split is judged by.

A data set of faces is one whose classes are identities, named `<source>:<name>` (see `training.datasets.images`).
Splits share no identity and are a function of its name alone, so that they stay what they are when pictures are added.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.core.errors import DataError
from training.core.seeds import derive
from training.datasets.images import ImageSet, Indices

FaceSplit = Literal["train", "calibrate", "test"]

# Of a hundred identities of each source.
_SHARES: dict[FaceSplit, range] = {"train": range(80), "calibrate": range(80, 90), "test": range(90, 100)}


def source_of(identity: str) -> str:
    """`pins` of `pins:nobody`."""
    return identity.partition(":")[0]


def split_of(identity: str) -> FaceSplit:
    """80, 10 and 10 per cent of each source's identities, by the SHA-256 of their names."""
    place = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") % 100
    return next(split for split, places in _SHARES.items() if place in places)


def rows_of(faces: ImageSet, split: FaceSplit) -> Indices:
    """The rows of the split's identities, ascending.

    Raises:
        DataError: there are none.
    """
    chosen = np.array([split_of(identity) == split for identity in faces.classes])
    rows = np.flatnonzero(chosen[faces.labels])
    if not len(rows):
        raise DataError(f"no identity of this data set is in the split {split}")
    return rows


def mated_pairs(faces: ImageSet, rows: Indices, most: int, seed: int) -> Indices:
    """Pairs of pictures of one person, as row numbers [P, 2], at most `most` of each identity, none twice."""
    random = np.random.default_rng(derive(seed, "mated"))
    pairs: list[Indices] = []
    for identity in np.unique(faces.labels[rows]):
        members = rows[faces.labels[rows] == identity]
        first, second = np.triu_indices(len(members), 1)
        kept = random.permutation(len(first))[:most]
        pairs.append(np.stack([members[first[kept]], members[second[kept]]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def impostor_pairs(faces: ImageSet, rows: Indices, count: int, seed: int) -> Indices:
    """Pairs of pictures of two people of one source, as row numbers [P, 2]; P <= `count`, no pair twice.

    Two sources may hold one person under two names, so pairs across sources prove nothing. Of the sources among `rows`
    each has a share in proportion to its rows in the whole data set: how many rows of a source with few people and many
    photos fall into a split is chance.

    Raises:
        DataError: no source has two identities among these rows.
    """
    random = np.random.default_rng(derive(seed, "impostor"))
    numbers = _source_numbers(faces)
    sources = numbers[faces.labels[rows]]
    present = np.unique(sources)
    counts = np.bincount(numbers[faces.labels])[present]  # rows of the whole data set
    # Some draws are of one person or come twice; half as many again are left over in all but tiny sets.
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


def _source_numbers(faces: ImageSet) -> npt.NDArray[np.int64]:
    """Of each identity, the number of its source."""
    names = [source_of(identity) for identity in faces.classes]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
