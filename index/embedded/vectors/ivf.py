"""Nearest-neighbour search by inner product, exact or with an inverted file. The only module that imports FAISS.

Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 33, 2011, section V: an inverted file
(IVF). It stores each vector with 8 bits per dimension; `searcher` re-ranks its results with the exact vectors.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from index.embedded.encryption import PLAINTEXT, Cipher
from index.errors import CorruptError
from index.folders import write_atomically
from index.types import Floats, Ints

# A centroid is the mean of at least this many vectors, so that it does not disclose any of them.
MIN_VECTORS_PER_CENTROID = 8
SAMPLE_PER_CENTROID = 64  # training vectors of k-means
KMEANS_ITERATIONS = 10
_MAGIC, _ENCRYPTED_MAGIC = b"VIVF", b"VIVS"


def exact(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """Return the k largest inner products of each query [N, D] with `vectors` [M, D], and their row numbers.

    Both are [N, min(k, M)], in descending order of the inner product.
    """
    k = min(k, len(vectors))
    if not k:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    faiss.omp_set_num_threads(1)  # of this thread only; concurrent searches share the cores
    similarities, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(similarities, np.float32), np.asarray(rows, np.int64)


class Ivf:
    """An inverted file of vectors by face id. Thread-safe for concurrent searches, not for changes."""

    def __init__(self, index: faiss.IndexIVF):
        self._index = index

    @classmethod
    def train(cls, sample: Floats, rows: int, seed: int = 0) -> Ivf:
        """Return an empty inverted file for about `rows` vectors, trained on `sample` [M, D]."""
        dimensions = sample.shape[1]
        lists = max(
            1, min(2 ** round(math.log2(4 * math.sqrt(max(rows, 1)))), len(sample) // (2 * MIN_VECTORS_PER_CENTROID))
        )
        clustering = faiss.Clustering(dimensions, lists)
        clustering.niter, clustering.seed, clustering.spherical = KMEANS_ITERATIONS, seed, True
        clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, 10**9
        quantizer = faiss.IndexFlatIP(dimensions)
        clustering.train(sample, quantizer)
        centroids = _populated_centroids(sample, quantizer)
        quantizer = faiss.IndexFlatIP(dimensions)
        quantizer.add(centroids)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dimensions, len(centroids), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        # The file contains the range of the codes. Widen it slightly, so that no component of a vector is in the file.
        index.sq.rangestat_arg = 1 / 256
        quantizer.this.disown()
        index.own_fields = True
        index.train(sample)
        return cls(index)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self._index.ntotal)

    @property
    def lists(self) -> int:
        """The number of inverted lists, one per centroid."""
        return int(self._index.nlist)

    @property
    def ids(self) -> Ints:
        """The ids of all vectors, [M], unordered."""
        lists = self._index.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(self.lists)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def add(self, ids: Ints, vectors: Floats) -> None:
        """Add vectors [M, D] with new ids [M]."""
        self._index.add_with_ids(vectors, ids)

    def remove(self, ids: Ints) -> int:
        """Remove the vectors with these ids, and return how many there were."""
        return int(self._index.remove_ids(faiss.IDSelectorBatch(ids)))

    def search(self, queries: Floats, k: int, lists: int) -> Ints:
        """Return the ids [N, k] of the approximately nearest vectors in the `lists` nearest lists, padded with -1."""
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersIVF(nprobe=min(lists, self.lists))
        _, ids = self._index.search(queries, k, params=parameters)
        return np.asarray(ids, np.int64)

    def write(self, path: Path, cipher: Cipher = PLAINTEXT) -> None:
        """Write the file durably, with a checksum; encrypted data is bound to the file's name."""
        pieces = list(cipher.encrypt_file(faiss.serialize_index(self._index).data, path.name.encode()))
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        write_atomically(path, [_magic(cipher), checksum.to_bytes(4, "little"), *pieces])

    @classmethod
    def read(cls, path: Path, cipher: Cipher = PLAINTEXT) -> Ivf:
        """Read a file of `write`.

        Raises:
            CorruptError: the file is missing or damaged.
        """
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise CorruptError(f"{path.name}: {error}") from error
        body = data[8:]
        if bytes(data[:4]) != _magic(cipher) or zlib.crc32(body.data) != int.from_bytes(bytes(data[4:8]), "little"):
            raise CorruptError(f"{path.name} is damaged: its checksum does not match")
        index = cipher.decrypt_file(body.data, path.name.encode())
        return cls(faiss.deserialize_index(np.frombuffer(index, np.uint8)))

    @classmethod
    def read_undamaged(cls, path: Path, cipher: Cipher) -> Ivf | None:
        """Read a file of `write`; return None where it is missing or damaged."""
        try:
            return cls.read(path, cipher)
        except CorruptError:
            return None


def _magic(cipher: Cipher) -> bytes:
    return _ENCRYPTED_MAGIC if cipher.encrypted else _MAGIC


def _populated_centroids(sample: Floats, quantizer: faiss.IndexFlatIP) -> npt.NDArray[np.float32]:
    """Return the centroids of at least `MIN_VECTORS_PER_CENTROID` sample vectors, or the sample's mean if none is."""
    _, nearest = quantizer.search(sample, 1)
    counts = np.bincount(nearest[:, 0], minlength=quantizer.ntotal)
    centroids = quantizer.reconstruct_n(0, quantizer.ntotal)
    populated = counts >= MIN_VECTORS_PER_CENTROID
    if not populated.any():
        mean = sample.mean(axis=0, keepdims=True)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
    return np.ascontiguousarray(centroids[populated], np.float32)
