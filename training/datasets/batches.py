"""Split the rows of a data set, and order them into batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from training.core.errors import DataError
from training.core.seeds import derive, generator
from training.datasets.images import Indices


def stratified_split(labels: Indices, validation: int, seed: int) -> tuple[Indices, Indices]:
    """Return (training rows, validation rows), both ascending; each class keeps its share to within one image.

    Raises:
        DataError: if one of the two would be empty.
    """
    if not 0 < validation < len(labels):
        raise DataError(f"cannot cut {validation} validation images from {len(labels)}")
    shuffled = np.random.default_rng(derive(seed, "split")).permutation(len(labels))
    position = np.empty(len(labels))  # of each image within its class, 0..1
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen = shuffled[np.argsort(position[shuffled], kind="stable")]
    return np.sort(chosen[validation:]), np.sort(chosen[:validation])


def stratified_sample(labels: Indices, rows: Indices, count: int, seed: int) -> Indices:
    """Return at most `count` of `rows` (0: all), ascending; each class keeps its share to within one image."""
    if not 0 < count < len(rows):
        return rows
    _, chosen = stratified_split(labels[rows], count, seed)
    return rows[chosen]


@dataclass(frozen=True)
class Batches:
    """Batches of `count` rows in a new order each epoch, without an incomplete last batch; each process gets a slice.

    The processes together get the same batch as a single process would.

    Raises:
        DataError: fewer rows than one batch, or a batch that does not divide evenly by the processes.
    """

    count: int
    batch_size: int
    seed: int
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.count:
            raise DataError(f"a batch of {self.batch_size} from {self.count} training images")
        if self.batch_size % self.processes:
            raise DataError(f"a batch of {self.batch_size} does not split evenly over {self.processes} processes")

    @property
    def per_epoch(self) -> int:
        """The number of steps in an epoch. The remaining rows are not used in that epoch."""
        return self.count // self.batch_size

    def __call__(self, epoch: int, index: int) -> Indices:
        """Return this process's rows of batch `index`: int64 [batch_size / processes]."""
        share = self.batch_size // self.processes
        first = index * self.batch_size + self.process * share
        return _order(self.count, self.seed, epoch)[first : first + share]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Indices:
    order: Indices = torch.randperm(count, generator=generator(seed, "order", epoch)).numpy()
    return order


class IdentityBatches:
    """Batches of P different identities (`identities`) with K rows each (`images`), the rows of one side by side.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017. In an epoch the rows of
    an identity are shuffled and cut into groups of K; the remainder is not used in that epoch. An identity with fewer
    than K rows has one group, in which they repeat: two augmentations of one photo are then a positive pair. Each group
    is in one batch, and a batch has at most one group of an identity. So if an identity has more groups than there are
    batches, some are left out.

    There are no incomplete batches. Each process gets the same number of identities, and all processes together get
    the batch of a single process.

    Raises:
        DataError: fewer than P identities, or P does not divide evenly by the processes.
    """

    def __init__(
        self, labels: Indices, identities: int, images: int, seed: int, *, process: int = 0, processes: int = 1
    ) -> None:
        if identities < 1 or images < 1 or identities % processes:
            raise DataError(f"{identities} identities of {images} do not split evenly over {processes} processes")
        self._labels, self._identities, self._images, self._seed = labels, identities, images, seed
        self._share = slice(process * (identities // processes), (process + 1) * (identities // processes))
        _, counts = np.unique(labels, return_counts=True)
        self._groups = np.maximum(counts // images, 1)  # of each identity, in the order of their labels
        self.per_epoch = int(self._groups.sum()) // identities
        # With fewer batches, identities with many groups lose more of them, which may leave fewer batches still.
        while (fitting := int(self._groups.clip(max=self.per_epoch).sum()) // identities) < self.per_epoch:
            self.per_epoch = fitting
        if self.per_epoch == 0:
            raise DataError(f"batches of {identities} identities from {len(counts)}")
        self._planned: tuple[int, Indices] | None = None

    def __call__(self, epoch: int, index: int) -> Indices:
        """Return this process's rows of batch `index`: int64 [identities / processes * images], by identity."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(np.random.default_rng(derive(self._seed, "identities", epoch))))
        return self._planned[1][index, self._share].reshape(-1)

    def _plan(self, rng: np.random.Generator) -> Indices:
        """Return the rows of an epoch [per_epoch, identities, images]."""
        shuffled = rng.permutation(len(self._labels))
        shuffled = shuffled[np.argsort(self._labels[shuffled], kind="stable")]
        members = np.split(shuffled, np.flatnonzero(np.diff(self._labels[shuffled])) + 1)
        owners = np.repeat(np.arange(len(members)), self._groups.clip(max=self.per_epoch))
        owners = np.sort(rng.permutation(owners)[: self.per_epoch * self._identities])
        # Identities in random order, the groups of each of them side by side.
        owners = owners[np.argsort(rng.permutation(len(members))[owners], kind="stable")]
        plan = np.empty((self.per_epoch, self._identities, self._images), dtype=np.int64)
        batches = _assign_batches(owners.reshape(self._identities, self.per_epoch), rng)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        for first, last in zip(starts, [*starts[1:], len(owners)], strict=True):
            rows = np.resize(members[owners[first]], (last - first, self._images))
            groups = np.arange(first, last)
            plan[batches.reshape(-1)[groups], groups // self.per_epoch] = rows
        return plan


def _assign_batches(owners: Indices, rng: np.random.Generator) -> Indices:
    """Return the batch of each group [P, B]: each row is a permutation of 0..B-1, and no owner is in a batch twice.

    `owners` [P, B] are the identities of the groups, those of one identity side by side. An owner has at most B groups,
    so its groups lie in at most two rows; only the batches of the row before are excluded for the first owner of a row.
    """
    batches = np.empty_like(owners)
    for row, owner in enumerate(owners):
        taken = batches[row - 1][owners[row - 1] == owner[0]] if row else batches[:0, 0]
        free = rng.permutation(np.setdiff1d(np.arange(len(owner)), taken))
        head = int((owner == owner[0]).sum())
        rest = rng.permutation(np.concatenate([free[head:], taken]))
        batches[row] = np.concatenate([free[:head], rest])
    return batches


def positive_labels(labels: Indices, positives: Literal["identity", "augment"]) -> Indices:
    """Return labels that are equal for rows that are positives of each other.

    With `identity` these are the rows of one identity. With `augment` every row has its own label, so that
    `IdentityBatches` repeats that row, and the positives are augmentations of one image.
    """
    return labels if positives == "identity" else np.arange(len(labels))
