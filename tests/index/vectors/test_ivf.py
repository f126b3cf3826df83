"""The inverted file against exhaustive comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.vectors.ivf import MIN_VECTORS_PER_CENTROID, Ivf, exact
from index.errors import CorruptError

Floats = npt.NDArray[np.float32]


def clusters(count: int, each: int = 5, dimensions: int = 32, seed: int = 0) -> Floats:
    """`count` clusters of `each` unit vectors."""
    random = np.random.default_rng(seed)
    vectors = np.repeat(random.normal(size=(count, dimensions)), each, axis=0)
    vectors += 0.3 * random.normal(size=vectors.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def filled(vectors: Floats) -> Ivf:
    index = Ivf.train(vectors, len(vectors))
    index.add(np.arange(len(vectors)), vectors)
    return index


@pytest.mark.parametrize(("count", "k"), [(0, 3), (2, 3), (500, 3), (500, 1)])
def test_exact_search_agrees_with_numpy(count: int, k: int) -> None:
    vectors, queries = clusters(count, 1), clusters(7, 1, seed=1)
    similarities, rows = exact(queries, vectors, k)
    expected = queries @ vectors.T
    order = np.argsort(-expected, axis=1)[:, :k]
    assert rows.shape == (7, min(k, count))
    assert np.array_equal(rows, order)
    assert np.allclose(similarities, np.take_along_axis(expected, order, axis=1), atol=1e-6)


def test_nearest_vectors_are_found() -> None:
    vectors = clusters(1000)
    ids = np.arange(len(vectors)) * 3 + 1
    index = Ivf.train(vectors, len(vectors))
    index.add(ids, vectors)
    assert len(index) == len(vectors)
    assert sorted(index.ids) == ids.tolist()
    queries = clusters(1000, seed=0)[::25]
    nearest = ids[(queries @ vectors.T).argmax(axis=1)]
    candidates = index.search(queries, 20, lists=index.lists // 4)
    assert (candidates == nearest[:, None]).any(axis=1).mean() > 0.98
    everything = index.search(queries[:1], len(vectors) + 1, lists=10**6)
    assert set(everything[0]) == {*ids.tolist(), -1}


def test_removed_vectors_are_not_found() -> None:
    vectors = clusters(100)
    index = filled(vectors)
    assert index.remove(np.array([3, 4, 9999])) == 2
    assert len(index) == 498
    assert sorted(index.ids) == [0, 1, 2, *range(5, 500)]
    assert not {3, 4} & set(index.search(vectors[3:4], 500, lists=10**6)[0].tolist())


def centroids(index: Ivf) -> Floats:
    """The coarse centroids, [lists, D]."""
    return np.asarray(index._index.quantizer.reconstruct_n(0, index.lists), np.float32)


def test_no_centroid_equals_a_vector() -> None:
    # Fifty outliers: k-means would give some of them a centroid of their own.
    vectors = np.concatenate([clusters(20, 50), clusters(50, 1, seed=5)])
    index = Ivf.train(vectors, 100_000)
    assert 1 <= index.lists <= len(vectors) // MIN_VECTORS_PER_CENTROID
    assert (centroids(index) @ vectors.T).max() < 1 - 1e-4


def test_the_centroid_of_few_vectors_is_their_mean() -> None:
    vectors = clusters(3, 1)
    mean = vectors.mean(axis=0)
    assert centroids(Ivf.train(vectors, 3)) == pytest.approx(mean[None] / np.linalg.norm(mean), abs=1e-6)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    vectors = clusters(60)
    index = filled(vectors)
    path = tmp_path / "a.ivf"
    index.write(path)
    assert np.array_equal(Ivf.read(path).search(vectors, 5, 4), index.search(vectors, 5, 4))
    content = path.read_bytes()
    offsets = (*range(12), len(content) // 2, len(content) - 1)
    changed = [content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :] for offset in offsets]
    for data in (*changed, *(content[:length] for length in (0, 3, 7, 8, 100))):
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            Ivf.read(path)
    path.unlink()
    with pytest.raises(CorruptError):
        Ivf.read(path)
