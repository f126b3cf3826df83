"""How near one distribution is to another, from samples of both: of generated pictures and of real ones.

Samples are rows of features, [N, D] tensors on one device; whose features they are decides what a figure means, so it
is always said with it (`training.metrics.feature_extractor`). All is computed in float64 where the samples lie and
answered as floats. Features that hold a NaN or an infinity are refused, as such a figure could be taken for a good one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose distances to all others are held at once: 1,024 x 10,000 in float64 are 80 MB.
_ROWS_AT_ONCE = 1024


class Moments(NamedTuple):
    """Of a sample: its mean [D] and its covariance [D, D] (over N - 1), in float64."""

    mean: Tensor
    covariance: Tensor


class Manifolds(NamedTuple):
    """`precision`: the share of generated samples that lie among real ones; `recall`: the other way round. 0..1."""

    precision: float
    recall: float


def moments(features: Tensor) -> Moments:
    """Mean and covariance of [N, D], N >= 2.

    Raises:
        ValueError: another shape, fewer rows, or values that are not finite.
    """
    rows = _checked(features)
    return Moments(rows.mean(dim=0), torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)): the squared 2-Wasserstein distance between the normals of these moments.

    Dowson, Landau, "The Frechet Distance between Multivariate Normal Distributions", Journal of Multivariate Analysis,
    1982; of Inception's features it is the FID (Heusel et al., NIPS 2017). The trace of the root is taken as that of
    the root of C^(1/2) D C^(1/2), which is symmetric, so that no rounding makes it complex.
    """
    root = _symmetric_root(first.covariance)
    product = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0)
    apart = (first.mean - second.mean).square().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * product.sqrt().sum()
    return max(0.0, float(apart + spread))


def _symmetric_root(matrix: Tensor) -> Tensor:
    """Of a positive semi-definite matrix; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def frechet_distance_1d(mean: float, deviation: float, other_mean: float, other_deviation: float) -> float:
    """The same between two normals on the line, in closed form: (m - n)^2 + (s - t)^2."""
    return (mean - other_mean) ** 2 + (deviation - other_deviation) ** 2


def inception_score(probabilities: Tensor, splits: int = 1) -> float:
    """exp of the mean KL divergence of each sample's class probabilities from their mean: 1..K, of [N, K].

    Salimans et al., "Improved Techniques for Training GANs", NIPS 2016: high where each sample is of one class and all
    classes occur. One picture of each class is enough for that, so never read it alone. With `splits` the mean over as
    many parts, in the rows' order.

    Raises:
        ValueError: rows that are no probabilities, or fewer of them than parts.
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise ValueError(f"expected probabilities [N, K] with N >= {max(splits, 1)}, got {list(probabilities.shape)}")
    rows = probabilities.double()
    if not ((rows >= 0).all() and ((rows.sum(dim=1) - 1).abs() < 1e-4).all()):
        raise ValueError("expected rows of probabilities, at least 0 and with a sum of 1")
    scores = []
    for part in rows.tensor_split(splits):
        divergences = torch.special.xlogy(part, part) - torch.special.xlogy(part, part.mean(dim=0))
        scores.append(divergences.sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def kernel_distance(first: Tensor, second: Tensor, degree: int = 3) -> float:
    """The unbiased squared maximum mean discrepancy under (x.y / D + 1)^degree; can fall below 0 where it is about 0.

    Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", ICLR 2018, who call it KID when the features are
    Inception's. [N, D] and [M, D], all pairs of them where the paper averages over subsets.

    Raises:
        ValueError: see `moments`; widths that differ.
    """
    one, other = _checked_pair(first, second)
    n, m = len(one), len(other)
    within = (_kernel_sum(one, one, degree) - _kernel_diagonal(one, degree)) / (n * (n - 1))
    within += (_kernel_sum(other, other, degree) - _kernel_diagonal(other, degree)) / (m * (m - 1))
    return within - 2 * _kernel_sum(one, other, degree) / (n * m)


def _kernel_sum(one: Tensor, other: Tensor, degree: int) -> float:
    """Over all pairs."""
    parts = ((part @ other.T / one.shape[1] + 1) ** degree for part in torch.split(one, _ROWS_AT_ONCE))
    return sum(float(part.sum()) for part in parts)


def _kernel_diagonal(rows: Tensor, degree: int) -> float:
    return float(((rows.square().sum(dim=1) / rows.shape[1] + 1) ** degree).sum())


def precision_recall(real: Tensor, generated: Tensor, neighbours: int = 3) -> Manifolds:
    """How much of what is generated could be real, and how much of what is real could be generated.

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019: a set
    covers the balls around its samples that reach to their `neighbours`-th nearest other sample. They use 3 of 50,000.

    Raises:
        ValueError: see `moments`; widths that differ; a set of no more than `neighbours` rows.
    """
    one, other = _checked_pair(real, generated)
    if not 1 <= neighbours < min(len(one), len(other)):
        raise ValueError(f"{neighbours} neighbours among {len(one)} and {len(other)} samples")
    return Manifolds(
        precision=_covered(other, one, _radii(one, neighbours)), recall=_covered(one, other, _radii(other, neighbours))
    )


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """The distance [N] of each row to its `neighbours`-th nearest other; a row's distance to itself is the smallest."""
    return torch.cat([part.kthvalue(neighbours + 1, dim=1).values for part in _distances(rows, rows)])


def _covered(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
    """The share of rows that lie in any of the balls, whose surfaces belong to them."""
    inside = [(part <= radii).any(dim=1) for part in _distances(rows, centres)]
    return float(torch.cat(inside).double().mean())


def _distances(rows: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Euclidean distances [<= _ROWS_AT_ONCE, M], block by block; equal rows are at 0 exactly."""
    for part in torch.split(rows, _ROWS_AT_ONCE):
        yield torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist")


def wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """The 1-Wasserstein (earth mover's) distance between columns: [N, P] and [M, P] -> float64 [P].

    It is the area between the two quantile functions, which are steps, so that N and M may differ.

    Raises:
        ValueError: see `moments`; widths that differ.
    """
    one, other = (rows.sort(dim=0).values for rows in _checked_pair(first, second))
    n, m = len(one), len(other)
    # Both functions are constant between the steps k / n and k / m: counted in parts of n * m, exactly.
    steps = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])).to(one.device)
    widths = steps.diff(prepend=steps.new_zeros(1)).double() / (n * m)
    gaps = (one[(steps - 1) // m] - other[(steps - 1) // n]).abs()
    areas: Tensor = widths @ gaps
    return areas


def sliced_wasserstein(first: Tensor, second: Tensor, projections: int = 128, seed: int = 0) -> float:
    """The mean of `wasserstein` over random directions of the space; [N, D] and [M, D].

    Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", JMIV 2015. It is smaller
    than the distance in D dimensions, by about the square root of D.

    Raises:
        ValueError: see `wasserstein`.
    """
    one, other = _checked_pair(first, second)
    ways = directions(one.shape[1], projections, seed).to(one.device)
    return float(wasserstein(one @ ways, other @ ways).mean())


def directions(dimensions: int, count: int, seed: int) -> Tensor:
    """Points on the unit sphere, uniformly: float64 [dimensions, count]."""
    drawn = torch.randn(dimensions, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    unit: Tensor = drawn / drawn.norm(dim=0, keepdim=True)
    return unit


def within_class_distance(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean Euclidean distance between two different samples of each class: float64 [classes].

    It is 0 for a class with fewer than two samples, which has no variety either. Features [N, D], labels [N].

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
    one, other = _checked(first), _checked(second)
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"features of {one.shape[1]} and of {other.shape[1]} dimensions cannot be compared")
    return one, other
