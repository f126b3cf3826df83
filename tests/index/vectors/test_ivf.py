"""The inverted file against comparing everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from index.embedded.vectors import ivf as ann
from index.errors import CorruptError

Floats = npt.NDArray[np.float32]


def people(count: int, each: int = 5, dimensions: int = 32, seed: int = 0) -> Floats:
    """`each` vectors around each of `count` places on the sphere."""
    random = np.random.default_rng(seed)
    vectors = np.repeat(random.normal(size=(count, dimensions)), each, axis=0)
    vectors += 0.3 * random.normal(size=vectors.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.mark.parametrize(("count", "k"), [(0, 3), (2, 3), (500, 3), (500, 1)])
def test_exact_is_what_numpy_sorts(count: int, k: int) -> None:
    vectors, queries = people(count, 1), people(7, 1, seed=1)
    similarities, rows = ann.exact(queries, vectors, k)
    expected = queries @ vectors.T
    order = np.argsort(-expected, axis=1)[:, :k]
    assert rows.shape == (7, min(k, count))
    assert np.array_equal(rows, order)
    assert np.allclose(similarities, np.take_along_axis(expected, order, axis=1), atol=1e-6)


def test_it_finds_the_nearest() -> None:
    vectors = people(1000)
    ids = np.arange(len(vectors)) * 3 + 1
    ivf = ann.Ivf.train(vectors, len(vectors))
    ivf.add(ids, vectors)
    assert len(ivf) == len(vectors)
    assert sorted(ivf.ids) == ids.tolist()
    queries = people(1000, seed=0)[::25]
    nearest = ids[(queries @ vectors.T).argmax(axis=1)]
    found = ivf.search(queries, 20, lists=ivf.lists // 4)
    assert (found == nearest[:, None]).any(axis=1).mean() > 0.98
    everything = ivf.search(queries[:1], len(vectors) + 1, lists=10**6)
    assert set(everything[0]) == {*ids.tolist(), -1}


def test_what_was_taken_out_is_not_found() -> None:
    vectors = people(100)
    ivf = ann.Ivf.train(vectors, len(vectors))
    ivf.add(np.arange(500), vectors)
    assert ivf.remove(np.array([3, 4, 9999])) == 2
    assert len(ivf) == 498
    assert sorted(ivf.ids) == [0, 1, 2, *range(5, 500)]
    assert not {3, 4} & set(ivf.search(vectors[3:4], 500, lists=10**6)[0].tolist())


def test_no_centroid_is_somebodys_vector() -> None:
    # Fifty far from all others: k-means would give some of them a centroid of their own.
    vectors = np.concatenate([people(20, 50), people(50, 1, seed=5)])
    ivf = ann.Ivf.train(vectors, 100_000)
    assert 1 <= ivf.lists <= len(vectors) // ann.MIN_VECTORS_PER_CENTROID
    assert (ivf.centroids @ vectors.T).max() < 1 - 1e-4


def test_a_few_vectors_have_their_mean() -> None:
    vectors = people(3, 1)
    ivf = ann.Ivf.train(vectors, 3)
    mean = vectors.mean(axis=0)
    assert ivf.centroids == pytest.approx(mean[None] / np.linalg.norm(mean), abs=1e-6)


def test_a_file_is_read_or_refused(tmp_path: Path) -> None:
    vectors = people(60)
    ivf = ann.Ivf.train(vectors, len(vectors))
    ivf.add(np.arange(300), vectors)
    path = tmp_path / "a.ivf"
    ivf.write(path)
    assert np.array_equal(ann.Ivf.read(path).search(vectors, 5, 4), ivf.search(vectors, 5, 4))
    whole = path.read_bytes()
    for place in (*range(12), len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CorruptError):
            ann.Ivf.read(path)
    for length in (0, 3, 7, 8, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptError):
            ann.Ivf.read(path)
    path.unlink()
    with pytest.raises(CorruptError):
        ann.Ivf.read(path)
