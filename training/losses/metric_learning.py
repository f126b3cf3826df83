"""Losses of metric learning as functions of tensors.

`contrastive` and `triplet` take distances: those of `pairwise_distances` at the pairs or triplets that
`training.losses.mining` selects, `distances[anchor, positive]`. Every loss is a scalar with a graph. For a batch
without pairs or triplets (one identity, one sample) it is 0 with zero gradients. Where vectors coincide and a distance
has no gradient, its gradient is 0. No loss is NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Literal["euclidean", "cosine"]


def unit(vectors: Tensor) -> Tensor:
    """Return rows [N, D] divided by their lengths. A row of zeros stays zero, with zero gradient."""
    squared = vectors.square().sum(dim=1, keepdim=True)
    present = squared > 0
    return vectors * torch.where(present, squared, 1).rsqrt() * present


def pairwise_distances(vectors: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Return the distances [N, N] between the rows of [N, D]: |a - b|, or 1 - cos(a, b) in 0..2.

    On the unit sphere the second is half the square of the first, so both mine the same pairs; the gradient of the
    first is larger for near rows.
    """
    if metric == "cosine":
        units = unit(vectors)
        return 1 - units @ units.T
    # The faster matrix-product form gives 3e-4 for equal vectors. The gradient of this form is zero at distance zero.
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def contrastive(positive: Tensor, negative: Tensor, margin: float, *, squared: bool = True) -> Tensor:
    """Return the mean of d^2 / 2 over positive pairs plus the mean of max(0, margin - d)^2 / 2 over negative ones.

    Distances [P] and [Q]. Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR
    2006, with a mean for each kind of pair where the paper has one sum, so that the many negative pairs of a batch do
    not outweigh the few positive ones. Without `squared` it is d and max(0, margin - d), as in
    pytorch-metric-learning and where d is 1 - cos.
    """
    violation = F.relu(margin - negative)
    if squared:
        return (_mean(positive.square()) + _mean(violation.square())) / 2
    return _mean(positive) + _mean(violation)


def triplet(positive: Tensor, negative: Tensor, margin: float, *, active_only: bool = False) -> Tensor:
    """Return the mean of max(0, margin + d(a, p) - d(a, n)) over triplets with distances `positive` and `negative` [T].

    Distances as in Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, or
    their squares, as in Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and
    Clustering", CVPR 2015. `active_only` takes the mean over triplets with a loss above zero only, so that learnt
    triplets do not dilute it. If all vectors are equal, the loss is `margin`, with zero gradient.
    """
    losses = F.relu(margin + positive - negative)
    if active_only:
        return losses.sum() / (losses > 0).sum().clamp(min=1)
    return _mean(losses)


def margin_softmax(embeddings: Tensor, proxies: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    """Return the cross-entropy of scale * cos(embedding, proxy), the true cosine reduced by the margin: CosFace.

    Embeddings [N, D], proxies [K, D] (learnt, a vector for each identity), labels [N] in 0..K-1. Wang et al.,
    "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018. Chosen over ArcFace's margin in the angle
    since it needs no arc cosine, whose gradient is infinite where a vector equals its proxy.
    """
    cosines = unit(embeddings) @ unit(proxies).T  # [N, K]
    margins = margin * F.one_hot(labels, len(proxies)).to(cosines.dtype)
    return _mean(F.cross_entropy(scale * (cosines - margins), labels, reduction="none"))


def distillation(student: Tensor, teacher: Tensor, centre: Tensor, *, relations: float = 1.0) -> Tensor:
    """Return `pointwise_distillation` plus `relations` times `relational_distillation`.

    Vectors [N, D] of both for the same inputs. `centre` [D], the mean of the teacher's vectors over the training set,
    is subtracted from them: all faces share a large common component, which hides their differences.
    """
    centred = teacher - centre
    return pointwise_distillation(student, centred) + relations * relational_distillation(student, centred)


def pointwise_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 - cos(student, teacher) over the rows of two [N, D], 0..2.

    Raises:
        ValueError: vectors of different shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected vectors of the teacher's shape {list(teacher.shape)}, got {list(student.shape)}")
    return _mean(1 - (unit(student) * unit(teacher)).sum(dim=1))


def relational_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean Huber loss (delta 1) between the cosines of the student's and of the teacher's pairs of rows.

    [N, D] and [N, E]; D may differ from E. Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, whose
    relations are distances over their mean, and angles in triplets; on the unit sphere the cosine is the distance and
    needs no scale.
    """
    first, second = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    student, teacher = unit(student), unit(teacher)
    cosines, targets = ((vectors @ vectors.T)[first, second] for vectors in (student, teacher))
    return _mean(F.huber_loss(cosines, targets, reduction="none"))


def _mean(values: Tensor) -> Tensor:
    """Return the mean, or 0 for an empty tensor, where torch's mean is NaN."""
    return values.sum() / max(values.numel(), 1)
