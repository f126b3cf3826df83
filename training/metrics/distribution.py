"""Distances between two distributions, from samples of both: of generated and of real images.

Samples are rows of features, [N, D] tensors on one device. A figure depends on the extractor of the features, whose
name must be stated with it (`training.metrics.feature_extractor`). Computation is in float64 on the samples' device.
Features with NaN or infinity raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose distances to all other rows are computed at once: 1,024 x 10,000 in float64 take 80 MB.
_ROWS_AT_ONCE = 1024
# A squared distance below this share of the sum of both rows' squared lengths may be rounding alone: the error of a dot
# product of 4,500 numbers is at most 4,500 * 2**-52 of that.
_ROUNDING = 1e-12


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] (over N - 1) of a sample, in float64."""

    mean: Tensor
    covariance: Tensor


class Manifolds(NamedTuple):
    """`precision`: the share of generated samples within the manifold of real ones; `recall`: the reverse. 0..1."""

    precision: float
    recall: float


def moments(features: Tensor) -> Moments:
    """Return mean and covariance of [N, D], N >= 2.

    Raises:
        ValueError: another shape, fewer rows, or values that are not finite.
    """
    rows = _checked(features)
    return Moments(rows.mean(dim=0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return |m - n|^2 + tr(C + D - 2 (C D)^(1/2)), the squared 2-Wasserstein distance of normals with these moments.

    Dowson, Landau, "The Frechet Distance between Multivariate Normal Distributions", Journal of Multivariate Analysis,
    1982; for Inception's features it is the FID (Heusel et al., NIPS 2017). The trace of the root is computed as that
    of the root of C^(1/2) D C^(1/2), which is symmetric, so that rounding cannot make it complex.
    """
    root = _symmetric_root(first.covariance)
    product = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0)
    distance = (first.mean - second.mean).square().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * product.sqrt().sum()
    return max(0.0, float(distance + spread))


def _symmetric_root(matrix: Tensor) -> Tensor:
    """Return the root of a positive semi-definite matrix; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def inception_score(probabilities: Tensor) -> float:
    """Return exp of the mean KL divergence of each sample's class probabilities [N, K] from their mean: 1..K.

    Salimans et al., "Improved Techniques for Training GANs", NIPS 2016: high if each sample is of one class and all
    classes occur. One image of each class is enough for that, so the score means little by itself.

    Raises:
        ValueError: rows that are not probabilities, or no rows.
    """
    rows = probabilities.double()
    if not len(rows) or not ((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < 1e-4).all()):
        raise ValueError("expected rows of probabilities, at least 0 and with a sum of 1")
    divergences = torch.special.xlogy(rows, rows) - torch.special.xlogy(rows, rows.mean(dim=0))
    return float(divergences.sum(dim=1).mean().exp())


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy under (x.y / D + 1)^3; about 0 it may be negative.

    Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018, who call it KID for Inception's
    features. All pairs of [N, D] and [M, D] are used, where the paper averages over subsets.

    Raises:
        ValueError: see `moments`; widths that differ.
    """
    left, right = _checked_pair(first, second)
    n, m = len(left), len(right)
    within = (_kernel_sum(left, left) - _kernel_diagonal(left)) / (n * (n - 1))
    within += (_kernel_sum(right, right) - _kernel_diagonal(right)) / (m * (m - 1))
    return within - 2 * _kernel_sum(left, right) / (n * m)


def _kernel_sum(left: Tensor, right: Tensor) -> float:
    """Return the sum of the kernel over all pairs."""
    parts = ((part @ right.T / left.shape[1] + 1) ** 3 for part in torch.split(left, _ROWS_AT_ONCE))
    return sum(float(part.sum()) for part in parts)


def _kernel_diagonal(rows: Tensor) -> float:
    return float(((rows.square().sum(dim=1) / rows.shape[1] + 1) ** 3).sum())


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> Manifolds:
    """Return the shares of generated samples that could be real and of real samples that could be generated.

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019: the
    manifold of a set is the union of balls around its samples, each reaching to the `neighbours`-th nearest other
    sample. The paper uses 3 neighbours of 50,000.

    Raises:
        ValueError: see `moments`; widths that differ; a set of no more than `neighbours` rows.
    """
    left, right = _checked_pair(real, generated)
    if not 1 <= neighbours < min(len(left), len(right)):
        raise ValueError(f"{neighbours} neighbours among {len(left)} and {len(right)} samples")
    return Manifolds(
        precision=_covered(right, left, _radii(left, neighbours)),
        recall=_covered(left, right, _radii(right, neighbours)),
    )


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Return the distance [N] of each row to its `neighbours`-th nearest other row."""
    # + 1, since a row's nearest row is itself.
    return torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in _distances(rows, rows)])


def _covered(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Return the share of rows in any of the closed balls."""
    inside = [(part <= radii).any(dim=1) for part in _distances(rows, centres)]
    return float(torch.cat(inside).double().mean())


def _distances(rows: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Yield Euclidean distances [<= _ROWS_AT_ONCE, M], block by block; exactly 0 for equal rows.

    They are computed from float64 dot products, which takes .30 of the time of `torch.cdist` without them for rows of
    128 numbers and .07 for 1,280 (3,000 rows, one core). A distance that may be rounding alone is 0.
    """
    squares = targets.square().sum(dim=1)
    for part in torch.split(rows, _ROWS_AT_ONCE):
        sums = part.square().sum(dim=1, keepdim=True) + squares
        distances = torch.addmm(sums, part, targets.T, alpha=-2)
        yield distances.masked_fill_(distances < _ROUNDING * sums, 0).sqrt_()


def within_class_distance(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean Euclidean distance between two different samples of each class: float64 [classes].

    It is 0 for a class with fewer than two samples. Features [N, D], labels [N].

    Raises:
        ValueError: see `moments`; labels of another length.
    """
    rows = _checked(features)
    if labels.shape != (len(rows),):
        raise ValueError(f"expected labels of shape [{len(rows)}], got {list(labels.shape)}")
    means = rows.new_zeros(classes)
    for label in range(classes):
        members = rows[labels == label]
        if len(members) > 1:
            total = sum(float(part.sum()) for part in _distances(members, members))
            means[label] = total / (len(members) * (len(members) - 1))
    return means


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features of shape [N, D] with N >= 2, got {list(features.shape)}")
    rows = features.double()
    if not rows.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
    return rows


def _checked_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    left, right = _checked(first), _checked(second)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"features of {left.shape[1]} and of {right.shape[1]} dimensions cannot be compared")
    return left, right
