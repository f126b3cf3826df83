"""Searching vectors by inner product: exactly, or among those whose coarse centroids are near. All of FAISS is here.

Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 33, 2011, section V: an inverted file
(IVF). Its codes here are the numbers themselves, 8 bits each; what they find is ranked again by the exact vectors.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from index.embedded.encryption.aead import PLAINTEXT, Cipher
from index.embedded.store.atomic_files import write_atomically
from index.errors import CorruptError
from index.types import Floats, Ints

# A centroid is a mean of at least so many vectors, so that none of them can be read off it.
FEWEST = 8
# Vectors that k-means sees for each centroid.
SAMPLE = 64
ROUNDS = 10
_MAGIC, _SEALED = b"VIVF", b"VIVS"


def exact(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
    """The k rows of `vectors` [M, D] with the largest inner products: those and the rows' numbers, [N, min(k, M)]."""
    k = min(k, len(vectors))
    if not k:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    faiss.omp_set_num_threads(1)  # for this thread; many searches share the cores
    similarities, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(similarities, np.float32), np.asarray(rows, np.int64)


class Ivf:
    """An inverted file over face ids. Searches may run side by side; who changes it must be alone."""

    def __init__(self, index: faiss.IndexIVF):
        self._index = index

    @classmethod
    def train(cls, sample: Floats, rows: int, seed: int = 0) -> Ivf:
        """An empty one for about `rows` vectors like those of `sample` [M, D]."""
        dimensions = sample.shape[1]
        lists = max(1, min(2 ** round(math.log2(4 * math.sqrt(max(rows, 1)))), len(sample) // (2 * FEWEST)))
        clustering = faiss.Clustering(dimensions, lists)
        clustering.niter, clustering.seed, clustering.spherical = ROUNDS, seed, True
        clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, 10**9
        quantizer = faiss.IndexFlatIP(dimensions)
        clustering.train(sample, quantizer)
        centroids = _well_filled(sample, quantizer)
        quantizer = faiss.IndexFlatIP(dimensions)
        quantizer.add(centroids)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dimensions, len(centroids), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        # The range of the codes is in the file: a little wider than the sample's, so that no number of it is there raw.
        index.sq.rangestat_arg = 1 / 256
        quantizer.this.disown()
        index.own_fields = True
        index.train(sample)
        return cls(index)

    def __len__(self) -> int:
        """How many vectors it holds."""
        return int(self._index.ntotal)

    @property
    def lists(self) -> int:
        """How many coarse centroids there are."""
        return int(self._index.nlist)

    @property
    def centroids(self) -> Floats:
        """[lists, D]."""
        return np.asarray(self._index.quantizer.reconstruct_n(0, self._index.nlist), np.float32)

    @property
    def ids(self) -> Ints:
        """Of all it holds, [M], in no order."""
        lists = self._index.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(self.lists)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def add(self, ids: Ints, vectors: Floats) -> None:
        """Put vectors [M, D] in under ids [M] that are not in yet."""
        self._index.add_with_ids(vectors, ids)

    def remove(self, ids: Ints) -> int:
        """Take out what is in under these ids; how many were."""
        return int(self._index.remove_ids(faiss.IDSelectorBatch(ids)))

    def search(self, queries: Floats, k: int, lists: int) -> Ints:
        """Ids [N, k] of what lies in the `lists` nearest lists and is near by its codes; -1 where there are fewer."""
        faiss.omp_set_num_threads(1)
        parameters = faiss.SearchParametersIVF(nprobe=min(lists, self.lists))
        _, ids = self._index.search(queries, k, params=parameters)
        return np.asarray(ids, np.int64)

    def write(self, path: Path, cipher: Cipher = PLAINTEXT) -> None:
        """To a file, durably and with a checksum, which FAISS's own form has none of; sealed, under its name."""
        pieces = list(cipher.encrypt_file(faiss.serialize_index(self._index).data, path.name.encode()))
        checksum = 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
        write_atomically(path, [_magic(cipher), checksum.to_bytes(4, "little"), *pieces])

    @classmethod
    def read(cls, path: Path, cipher: Cipher = PLAINTEXT) -> Ivf:
        """What `write` wrote.

        Raises:
            CorruptError: missing, or not what was written.
        """
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise CorruptError(f"{path.name}: {error}") from error
        body = data[8:]
        if bytes(data[:4]) != _magic(cipher) or zlib.crc32(body.data) != int.from_bytes(bytes(data[4:8]), "little"):
            raise CorruptError(f"{path.name} is not the index that was written")
        unsealed = cipher.decrypt_file(body.data, path.name.encode())
        return cls(faiss.deserialize_index(np.frombuffer(unsealed, np.uint8)))


def _magic(cipher: Cipher) -> bytes:
    return _SEALED if cipher.encrypted else _MAGIC


def _well_filled(sample: Floats, quantizer: faiss.IndexFlatIP) -> npt.NDArray[np.float32]:
    """The centroids that are means of at least `FEWEST` of the sample; what was with the others goes to a neighbour."""
    _, nearest = quantizer.search(sample, 1)
    counts = np.bincount(nearest[:, 0], minlength=quantizer.ntotal)
    centroids = quantizer.reconstruct_n(0, quantizer.ntotal)
    kept = counts >= FEWEST
    if not kept.any():
        mean = sample.mean(axis=0, keepdims=True)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)
    return np.ascontiguousarray(centroids[kept], np.float32)
