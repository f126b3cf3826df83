"""Clusters of faces without names, as proposals for a person: HDBSCAN over the nearest neighbours of each face.

Campello, Moulavi, Sander, "Density-Based Clustering Based on Hierarchical Density Estimates", PAKDD 2013, of
scikit-learn. The clusters that it selects have the largest sum of excesses of 1/distance over all clusters, so that the
choice of a distance matters: with 1 - cosine the most similar photos of a person are clusters of their own. Here
1/distance is the calibrated probability that two faces are one person's: it hardly differs between similar and very
similar photos of a person, and is near 0 between people. docs/curation.md compares the two.

Each face is compared with its nearest neighbours only, instead of all faces: a minimum spanning tree needs those.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import sparse  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from index.embedded.vectors.ivf import exact
from index.types import Floats, Ints

NEIGHBOURS = 32
LEAST_PROBABILITY = 0.1  # that a face and the most similar one of its cluster are one person's
FARTHEST = 1e12  # the distance of faces that have no path of neighbours between them


def cluster(vectors: Floats, slope: float, intercept: float, *, neighbours: int = NEIGHBOURS) -> Ints:
    """Return the number of the cluster of each unit vector [N, D], from 0; -1 for a face that is in none.

    A cluster has at least two faces. `slope` and `intercept`: the probability that two faces are one person's is
    1 / (1 + exp(-(slope * cosine + intercept))).
    """
    from sklearn.cluster import HDBSCAN  # takes a second to import

    count = len(vectors)
    if count < 2:
        return np.full(count, -1, np.int64)
    similarities, nearest = exact(vectors, vectors, neighbours + 1)
    rows, columns = np.repeat(np.arange(count), nearest.shape[1]), nearest.ravel()
    logits = np.maximum(slope * similarities.ravel().astype(np.float64) + intercept, -math.log(FARTHEST) + 1)
    pairs = rows != columns
    rows, columns, distances = rows[pairs], columns[pairs], 1 + np.exp(-logits[pairs])
    hdbscan = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", algorithm="brute", copy=True)
    labels = np.asarray(hdbscan.fit_predict(_connected(rows, columns, distances, count)))[:count]
    # Faces that are like none of their cluster: HDBSCAN keeps the points that leave a cluster while it grows smaller.
    together = labels[rows] == labels[columns]
    likeliest = np.full(count, np.inf)
    for ends in (rows, columns):
        np.minimum.at(likeliest, ends[together], distances[together])
    labels[likeliest > 1 / LEAST_PROBABILITY] = -1
    clusters, numbers = np.unique(labels, return_inverse=True)
    return np.asarray(numbers - (clusters[0] < 0), np.int64)


def _connected(rows: Ints, columns: Ints, distances: npt.NDArray[np.float64], count: int) -> sparse.csr_matrix:
    """Return the symmetric matrix of the distances between neighbours, with more edges that make it connected.

    Two points that are near each other only are added behind the others: HDBSCAN never selects the cluster of all
    points, which would be right if all photos were of one person.
    """
    size = count + 2
    graph = sparse.csr_matrix((distances, (rows, columns)), shape=(size, size))
    graph = graph.maximum(graph.T) + sparse.csr_matrix(
        ([1.0, 1.0], ([count, count + 1], [count + 1, count])), graph.shape
    )
    _, components = connected_components(graph, directed=False)
    firsts = np.unique(components, return_index=True)[1]
    here, there = firsts[:-1], firsts[1:]
    ends = (np.concatenate([here, there]), np.concatenate([there, here]))
    return (graph + sparse.csr_matrix((np.full(len(ends[0]), FARTHEST), ends), graph.shape)).tocsr()
