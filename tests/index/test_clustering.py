"""Clusters agree with scikit-learn's HDBSCAN on all distances, and with who is on the photos where that is plain."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN

from index.clustering import FARTHEST, LEAST_PROBABILITY, cluster
from index.types import Floats, Ints

SLOPE, INTERCEPT = 15.0, -10.0


def people(sizes: list[int], spread: float, dimensions: int = 32, seed: int = 0) -> tuple[Floats, Ints]:
    """Return unit vectors around a random centre for each person, and who each is of."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = rng.normal(size=(len(sizes), dimensions))[labels] + spread * rng.normal(size=(len(labels), dimensions))
    order = rng.permutation(len(labels))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(unit[order], np.float32), labels[order]


def groups(labels: Ints) -> set[frozenset[int]]:
    """Return the clusters as sets of positions; each face in none is one of its own."""
    clusters = {number: frozenset(np.flatnonzero(labels == number).tolist()) for number in set(labels.tolist()) - {-1}}
    return set(clusters.values()) | {frozenset([position]) for position in np.flatnonzero(labels < 0).tolist()}


@pytest.mark.parametrize("sizes", [[5], [2], [3, 3], [1, 1, 1, 4], [9, 2, 1, 5, 1, 3], [40] * 5])
def test_people_who_differ_are_clusters(sizes: list[int]) -> None:
    vectors, labels = people(sizes, 0.2)
    found = cluster(vectors, SLOPE, INTERCEPT)
    assert groups(found) == groups(labels)
    assert set(found[found >= 0].tolist()) == set(range(sum(size > 1 for size in sizes)))


def test_few_and_equal_vectors() -> None:
    assert cluster(np.empty((0, 4), np.float32), SLOPE, INTERCEPT).tolist() == []
    vectors = np.eye(4, dtype=np.float32)
    assert cluster(vectors[:1], SLOPE, INTERCEPT).tolist() == [-1]
    assert cluster(vectors[[0, 0, 0, 1]], SLOPE, INTERCEPT).tolist() == [0, 0, 0, -1]
    assert cluster(vectors[[0, 0]], 1000.0, INTERCEPT).tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_clusters_agree_with_all_distances(seed: int) -> None:
    """Of all pairs of vectors, and of two points more that are far from all others."""
    vectors, _ = people([1, 2, 3, 4, 5, 6, 7, 8], 0.9, seed=seed)
    distances = np.full((len(vectors) + 2, len(vectors) + 2), FARTHEST)
    distances[:-2, :-2] = 1 + np.exp(-(SLOPE * (vectors @ vectors.T).astype(np.float64) + INTERCEPT))
    distances[-2, -1] = distances[-1, -2] = 1
    np.fill_diagonal(distances, 0)
    expected = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", copy=True).fit_predict(distances)[:-2]
    for row, label in enumerate(expected.tolist()):
        own = [distance for distance, other in zip(distances[row], expected, strict=False) if other == label]
        if sorted(own)[1:2] > [1 / LEAST_PROBABILITY]:
            expected[row] = -1
    assert groups(cluster(vectors, SLOPE, INTERCEPT, neighbours=len(vectors))) == groups(expected)
