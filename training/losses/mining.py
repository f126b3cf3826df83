"""Which pairs and triplets of a batch a loss is taken over.

Every miner is a function of distances [N, N] (see `training.losses.metric_learning.pairwise_distances`; detached or
not, nothing here has a gradient) and labels [N], and answers int64 indices into the batch. A sample is no positive of
itself. A batch without positives or without negatives has no triplets, which is an empty answer and no error.

Several processes mine in what `gather_embeddings` put together, so that a positive or a hard negative may come from
another process. Each then computes the same loss of the whole batch: hand random miners the same generator everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor


class Triplets(NamedTuple):
    """Indices [T] each: `positive` has the anchor's label, `negative` another."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor

    def of(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """d(a, p) and d(a, n), [T] each, with the gradient that `distances` has."""
        return distances[self.anchor, self.positive], distances[self.anchor, self.negative]


class Pairs(NamedTuple):
    """Indices [2, P] of pairs with one label and [2, Q] of pairs with two, each pair once, first < second."""

    positive: Tensor
    negative: Tensor

    def of(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Distances [P] and [Q], with the gradient that `distances` has."""
        return distances[tuple(self.positive)], distances[tuple(self.negative)]


def all_pairs(distances: Tensor, labels: Tensor) -> Pairs:
    """Every pair of the batch."""
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=distances.device)
    same = labels[first] == labels[second]
    both = torch.stack([first, second])
    return Pairs(both[:, same], both[:, ~same])


def random_pairs(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Pairs:
    """Every positive pair, and as many negative ones, or all if there are fewer, without replacement."""
    pairs = all_pairs(distances, labels)
    chosen = torch.randperm(pairs.negative.shape[1], generator=generator)[: pairs.positive.shape[1]]
    return Pairs(pairs.positive, pairs.negative[:, chosen.to(distances.device)])


def hard_pairs(distances: Tensor, labels: Tensor) -> Pairs:
    """Every positive pair, and as many negative ones, or all if there are fewer: those that lie nearest."""
    pairs = all_pairs(distances, labels)
    count = min(pairs.positive.shape[1], pairs.negative.shape[1])
    nearest = distances[tuple(pairs.negative)].topk(count, largest=False).indices
    return Pairs(pairs.positive, pairs.negative[:, nearest])


def batch_all(distances: Tensor, labels: Tensor) -> Triplets:
    """Every triplet of the batch: up to N^2 K of them. Hermans, Beyer, Leibe, 2017."""
    same, other = _masks(labels)
    return Triplets(*(same[:, :, None] & other[:, None, :]).nonzero().unbind(dim=1))


def random_triplets(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """For every anchor and positive one negative, all equally likely. The generator is a CPU one."""
    same, other = _masks(labels)
    anchor, positive = (same & other.any(dim=1, keepdim=True)).nonzero().unbind(dim=1)
    chance = torch.rand(len(labels), len(labels), generator=generator, dtype=torch.float64).to(distances.device)
    count = other.sum(dim=1)  # of each anchor's negatives
    which = (chance[anchor, positive] * count[anchor]).long()
    negatives = other.byte().argsort(dim=1, descending=True, stable=True)  # of a row: its negatives come first
    return Triplets(anchor, positive, negatives[anchor, which])


def semi_hard(distances: Tensor, labels: Tensor, margin: float) -> Triplets:
    """For every anchor and positive the nearest negative that is farther than the positive, by less than `margin`.

    Pairs without one are left out. Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, section 3.2, says which
    negatives are semi-hard, not which of them is taken. `margin` is in units of `distances`.
    """
    distances = distances.detach()
    same, other = _masks(labels)
    anchor, positive = same.nonzero().unbind(dim=1)
    beyond = distances[anchor] - distances[anchor, positive][:, None]  # [pairs, N]: how much farther each sample is
    fitting = other[anchor] & (beyond > 0) & (beyond < margin)
    nearest, negative = _least(beyond, fitting)
    return Triplets(anchor[nearest], positive[nearest], negative[nearest])


def batch_hard(distances: Tensor, labels: Tensor) -> Triplets:
    """For every anchor its farthest positive and its nearest negative; anchors that lack either are left out.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017. Meant for P x K batches.
    """
    distances = distances.detach()
    same, other = _masks(labels)
    has_positive, positive = _least(-distances, same)
    has_negative, negative = _least(distances, other)
    anchor = (has_positive & has_negative).nonzero()[:, 0]
    return Triplets(anchor, positive[anchor], negative[anchor])


def active_fraction(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """The share of triplets whose loss is not zero, margin + d(a, p) - d(a, n) > 0, as a scalar in 0..1; 0 of none.

    Give it what the loss is given: squared distances [T] where the loss squares them.
    """
    active = (margin + positive - negative > 0).float()
    return active.sum() / max(active.numel(), 1)


def gather_embeddings(accelerator: Accelerator, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [P N, D] and labels [P N] of all P processes, in their order, from each one's [N, D] and [N].

    A gradient flows into this process's own rows only, P times as large: when every process takes the same loss of all
    rows, the mean over processes that DistributedDataParallel makes is the gradient of one process with all rows.
    N must be the same on all of them.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return embeddings, labels
    parts = list(accelerator.gather(embeddings.detach()).chunk(processes))
    own = embeddings.view_as(embeddings)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * processes)  # type: ignore[no-untyped-call]
    parts[accelerator.process_index] = own
    return torch.cat(parts), accelerator.gather(labels)


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean [N, N]: another sample with the row's label; a sample with another label."""
    equal = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return equal & ~itself, ~equal


def _least(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of [M, N], whether anything is allowed, and where the least allowed value is: [M] both."""
    if values.shape[1] == 0:  # argmin of nothing is an error
        empty = torch.zeros(len(values), dtype=torch.long, device=values.device)
        return empty.bool(), empty
    return allowed.any(dim=1), values.masked_fill(~allowed, torch.inf).argmin(dim=1)
