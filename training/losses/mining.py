"""Choose the pairs and triplets of a batch for a loss.

Every miner takes distances [N, N] (see `training.losses.metric_learning.pairwise_distances`; no gradient is needed) and
labels [N], and returns int64 indices into the batch. A sample is not a positive of itself. For a batch without
positives or without negatives the result is empty.

Several processes mine in the result of `gather_embeddings`, so that a positive or a hard negative may come from another
process. Each then computes the same loss of the whole batch; random miners need the same generator on all processes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor


class Triplets(NamedTuple):
    """Indices [T] each; `positive` has the anchor's label, `negative` another."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor

    def of(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return d(a, p) and d(a, n), [T] each, with the gradient of `distances`."""
        return distances[self.anchor, self.positive], distances[self.anchor, self.negative]


class Pairs(NamedTuple):
    """Indices of positive pairs [2, P] (equal labels) and negative pairs [2, Q], each pair once, first < second."""

    positive: Tensor
    negative: Tensor

    def of(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances [P] and [Q], with the gradient of `distances`."""
        return distances[tuple(self.positive)], distances[tuple(self.negative)]


def all_pairs(distances: Tensor, labels: Tensor) -> Pairs:
    """Return every pair of the batch."""
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=distances.device)
    same = labels[first] == labels[second]
    both = torch.stack([first, second])
    return Pairs(both[:, same], both[:, ~same])


def random_pairs(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Pairs:
    """Return all positive pairs and as many random negative ones (all if there are fewer), without replacement."""
    pairs = all_pairs(distances, labels)
    chosen = torch.randperm(pairs.negative.shape[1], generator=generator)[: pairs.positive.shape[1]]
    return Pairs(pairs.positive, pairs.negative[:, chosen.to(distances.device)])


def hard_pairs(distances: Tensor, labels: Tensor) -> Pairs:
    """Return all positive pairs and as many negative ones (all if there are fewer), those with the least distances."""
    pairs = all_pairs(distances, labels)
    count = min(pairs.positive.shape[1], pairs.negative.shape[1])
    nearest = distances[tuple(pairs.negative)].topk(count, largest=False).indices
    return Pairs(pairs.positive, pairs.negative[:, nearest])


def batch_all(distances: Tensor, labels: Tensor) -> Triplets:
    """Return every triplet of the batch, up to N^2 K of them. Hermans, Beyer, Leibe, 2017."""
    same, different = _masks(labels)
    return Triplets(*(same[:, :, None] & different[:, None, :]).nonzero().unbind(dim=1))


def random_triplets(distances: Tensor, labels: Tensor, generator: torch.Generator) -> Triplets:
    """Return for every anchor and positive one random negative, all equally likely; `generator` is on the CPU."""
    same, different = _masks(labels)
    anchor, positive = (same & different.any(dim=1, keepdim=True)).nonzero().unbind(dim=1)
    random = torch.rand(len(labels), len(labels), generator=generator, dtype=torch.float64).to(distances.device)
    count = different.sum(dim=1)  # of each anchor's negatives
    rank = (random[anchor, positive] * count[anchor]).long()
    negatives = different.byte().argsort(dim=1, descending=True, stable=True)  # the negatives of each row come first
    return Triplets(anchor, positive, negatives[anchor, rank])


def semi_hard(distances: Tensor, labels: Tensor, margin: float) -> Triplets:
    """Return for every anchor and positive the nearest negative that is less than `margin` farther than the positive.

    Pairs without such a negative are left out. Schroff, Kalenichenko, Philbin, "FaceNet", CVPR 2015, section 3.2,
    defines which negatives are semi-hard, but not which of them to use. `margin` is in units of `distances`.
    """
    distances = distances.detach()
    same, different = _masks(labels)
    anchor, positive = same.nonzero().unbind(dim=1)
    beyond = distances[anchor] - distances[anchor, positive][:, None]  # [pairs, N]: how much farther each sample is
    fitting = different[anchor] & (beyond > 0) & (beyond < margin)
    nearest, negative = _least(beyond, fitting)
    return Triplets(anchor[nearest], positive[nearest], negative[nearest])


def batch_hard(distances: Tensor, labels: Tensor) -> Triplets:
    """Return for every anchor its farthest positive and its nearest negative; anchors that lack either are left out.

    Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017. For P x K batches.
    """
    distances = distances.detach()
    same, different = _masks(labels)
    has_positive, positive = _least(-distances, same)
    has_negative, negative = _least(distances, different)
    anchor = (has_positive & has_negative).nonzero()[:, 0]
    return Triplets(anchor, positive[anchor], negative[anchor])


def active_fraction(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Return the share of triplets with a loss above zero, margin + d(a, p) - d(a, n) > 0: a scalar in 0..1.

    It is 0 if there are no triplets. Pass squared distances [T] if the loss squares them.
    """
    active = (margin + positive - negative > 0).float()
    return active.sum() / max(active.numel(), 1)


def gather_embeddings(accelerator: Accelerator, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings [P N, D] and labels [P N] of all P processes in order, from the [N, D] and [N] of each.

    Only this process's own rows get a gradient, multiplied by P: if every process computes the same loss of all rows,
    DistributedDataParallel's mean over processes is the gradient of a single process with all rows. N must be the same
    on all processes.
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
    """Return masks [N, N]: other samples with the row's label, and samples with another label."""
    equal = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return equal & ~itself, ~equal


def _least(values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of [M, N] whether any value is allowed, and the index of the least allowed one: [M] each."""
    if values.shape[1] == 0:  # argmin of an empty row is an error
        empty = torch.zeros(len(values), dtype=torch.long, device=values.device)
        return empty.bool(), empty
    return allowed.any(dim=1), values.masked_fill(~allowed, torch.inf).argmin(dim=1)
