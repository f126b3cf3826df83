"""Losses of metric learning as functions of tensors. They do not know what was embedded.

`contrastive` and `triplet` read distances: those of `pairwise_distances` at the pairs or triplets that
`training.losses.mining` chose, `distances[anchor, positive]`. Every loss is a scalar with a graph. Where a batch holds
nothing to learn from (no pair, one identity, one sample) it is 0, and its gradients are zeros; where vectors coincide,
and a distance has no gradient, zero stands for it. Nothing here answers NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Metric = Literal["euclidean", "cosine"]


def unit(vectors: Tensor) -> Tensor:
    """Rows [N, D] divided by their lengths. A row of zeros stays, with a gradient of zero."""
    squared = vectors.square().sum(dim=1, keepdim=True)
    present = squared > 0
    return vectors * torch.where(present, squared, 1).rsqrt() * present


def pairwise_distances(vectors: Tensor, metric: Metric = "euclidean") -> Tensor:
    """Distances [N, N] between the rows of [N, D]: of the length |a - b|, or 1 - cos(a, b), in 0..2.

    On the unit sphere the second is half the square of the first, so the two mine alike, and a loss of the first
    pulls harder at what is near.
    """
    if metric == "cosine":
        units = unit(vectors)
        return 1 - units @ units.T
    # Through products of norms it would be faster, yet equal vectors would lie 3e-4 apart; and where the distance is
    # zero, this one's gradient is zero.
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")


def contrastive(positive: Tensor, negative: Tensor, margin: float, *, squared: bool = True) -> Tensor:
    """Mean of d^2 / 2 over positive pairs plus mean of max(0, margin - d)^2 / 2 over negative ones.

    Distances [P] and [Q]. Hadsell, Chopra, LeCun, "Dimensionality Reduction by Learning an Invariant Mapping", CVPR
    2006, with a mean for each kind of pair where the paper has one sum, so that the many negative pairs of a batch do
    not outweigh the few positive ones. Without `squared` it is d and max(0, margin - d), the form of
    pytorch-metric-learning and of those who take `1 - cos` for d.
    """
    lacking = F.relu(margin - negative)
    if squared:
        return (_mean(positive.square()) + _mean(lacking.square())) / 2
    return _mean(positive) + _mean(lacking)


def triplet(
    positive: Tensor, negative: Tensor, margin: float, *, squared: bool = False, active_only: bool = False
) -> Tensor:
    """Mean of max(0, margin + d(a, p) - d(a, n)) over triplets, whose distances are `positive` and `negative`, [T].

    `squared` takes d^2, as Schroff, Kalenichenko, Philbin, "FaceNet: A Unified Embedding for Face Recognition and
    Clustering", CVPR 2015; without it, as Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person
    Re-Identification", 2017. `active_only` is their mean over triplets that are not zero, so that a growing number of
    learnt ones does not dilute it. If all vectors are one it is `margin`, without a gradient.
    """
    if squared:
        positive, negative = positive.square(), negative.square()
    losses = F.relu(margin + positive - negative)
    if active_only:
        return losses.sum() / (losses > 0).sum().clamp(min=1)
    return _mean(losses)


def margin_softmax(embeddings: Tensor, proxies: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    """Cross-entropy of scale * cos(embedding, proxy), the margin taken from the cosine of the right one: CosFace.

    Embeddings [N, D], proxies [K, D] (learnt, a vector for each identity), labels [N] in 0..K-1. Wang et al.,
    "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018. Chosen over ArcFace's margin in the angle
    since it needs no arc cosine, whose gradient is infinite where a vector meets its proxy.
    """
    cosines = unit(embeddings) @ unit(proxies).T  # [N, K]
    margins = margin * F.one_hot(labels, len(proxies)).to(cosines.dtype)
    return _mean(F.cross_entropy(scale * (cosines - margins), labels, reduction="none"))


def distillation(student: Tensor, teacher: Tensor, centre: Tensor, *, relations: float = 1.0) -> Tensor:
    """`pointwise_distillation` plus `relations` times `relational_distillation`.

    Vectors [N, D] of both for the same inputs. `centre` [D] is the mean of the teacher's vectors over the training set
    and is taken from them: all faces share a large common part, beside which what tells them apart looks small.
    """
    centred = teacher - centre
    return pointwise_distillation(student, centred) + relations * relational_distillation(student, centred)


def pointwise_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos(student, teacher) over the rows of two [N, D], in 0..2.

    Raises:
        ValueError: vectors of different shapes.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected vectors of the teacher's shape {list(teacher.shape)}, got {list(student.shape)}")
    return _mean(1 - (unit(student) * unit(teacher)).sum(dim=1))


def relational_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss (delta 1) between the cosines of the student's and of the teacher's pairs of rows.

    [N, D] and [N, E]; D may differ from E. Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, whose
    relations are distances over their mean, and angles in triplets; on the unit sphere the cosine is the distance and
    needs no scale.
    """
    first, second = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    ours, theirs = unit(student), unit(teacher)
    cosines = (ours @ ours.T)[first, second]
    return _mean(F.huber_loss(cosines, (theirs @ theirs.T)[first, second], reduction="none"))


def _mean(values: Tensor) -> Tensor:
    """The mean, or 0 of nothing, where torch's is NaN."""
    return values.sum() / max(values.numel(), 1)
