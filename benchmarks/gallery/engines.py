"""Galleries and vector indexes behind one face: filled, built, opened again, searched.

What is not installed raises ModuleNotFoundError when an engine is made. A search is made on one thread where the engine
lets itself be told. `breadth` is how far a search goes: the first of `breadths` that finds enough, where there are
several. A graph has M = 16 and 200 neighbours when it is built; all else is the engine's default.
"""

# ruff: noqa: D102  Engine says what its methods are for

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.gallery.clustered import DIMENSIONS, Clustered, Floats
from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.tasks.maintenance import Maintenance, MaintenanceLimits
from index.embedded.vectors.ivf import KMEANS_ITERATIONS, SAMPLE_PER_CENTROID, Ivf
from index.types import NewFace

M, EF_CONSTRUCTION = 16, 200
HNSW_BREADTHS = (32, 64, 128, 256, 512)
AT_ONCE = 2048  # rows of one insertion, where that is durable or goes over a wire


def threads() -> int:
    """How many may build."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


class Engine(ABC):
    """One of them, of which a process has one. `packages` are named in the results, with versions."""

    packages: tuple[str, ...]
    settings: str
    breadths: tuple[int, ...] = ()
    breadth = 0
    by_subject = False  # whether `search` answers with subjects instead of rows

    @classmethod
    def versions(cls) -> str:
        """Of what is installed of it."""
        found = []
        for package in cls.packages:
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                found.append(package)
        return ", ".join(found)

    @abstractmethod
    def create(self, folder: Path, data: Clustered) -> None:
        """Empty, in that empty folder."""

    @abstractmethod
    def add(self, first: int, vectors: Floats) -> None:
        """Put in rows `first` and following, [M, D]."""

    @abstractmethod
    def build(self) -> None:
        """Make what is there fit to be searched, and written."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """What was built there by another process."""

    @abstractmethod
    def search(self, query: Floats, k: int) -> Sequence[int]:
        """The rows that are nearest to the query [D], or the subjects, nearest first. Of many threads at once."""

    def rows(self, query: Floats, k: int) -> Sequence[int]:
        """The rows that the same search finds."""
        return self.search(query, k)

    def widen(self, breadth: int) -> None:
        """Let searches go that far from now on."""
        self.breadth = breadth

    def close(self) -> None:  # noqa: B027  most need not
        """Let go of the files."""


class Vestibule(Engine):
    """This project's. A search is of subjects, as the service makes it, ledger and all."""

    packages = ("faiss-cpu", "apsw")
    by_subject = True
    collection, fingerprint = "city", "f1"

    def __init__(self) -> None:
        self.tuning = SearchTuning()
        lists, again = self.tuning.lists, self.tuning.shortlist
        self.settings = f"IVF of 8-bit codes, {lists} lists, {again} ranked again; durable when answered"

    @staticmethod
    def limits(rows: int) -> MaintenanceLimits:
        """The default, but smaller where a small trial would have no inverted file."""
        default = MaintenanceLimits()
        return MaintenanceLimits(max(1, min(default.segment, rows // 8)), max(1, min(default.exact_below, rows // 2)))

    def create(self, folder: Path, data: Clustered) -> None:
        self.gallery, self.data = EmbeddedGallery(folder), data
        self.gallery.create(self.collection, "e", self.fingerprint, DIMENSIONS)

    def add(self, first: int, vectors: Floats) -> None:
        subjects = self.data.subjects(np.arange(first, first + len(vectors))).tolist()
        for start in range(0, len(vectors), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            faces = [NewFace(str(key), vector) for key, vector in zip(subjects[part], vectors[part], strict=True)]
            self.gallery.enrol(self.collection, faces, self.fingerprint)

    def build(self) -> None:
        maintenance = Maintenance(self.gallery, self.limits(self.data.rows))
        maintenance.run()
        maintenance.release()

    def open(self, folder: Path) -> None:
        self.gallery = EmbeddedGallery(folder)
        # As the service's upkeep does in the background, once a collection was searched.
        collection = self.gallery.collection(self.collection)
        self.gallery.searchers.get(collection)
        self.gallery.searchers.add_recent(collection)

    def search(self, query: Floats, k: int) -> Sequence[int]:
        return [int(match.subject.key) for match in self.gallery.nearest_subjects(self.collection, query[None], k)[0]]

    def rows(self, query: Floats, k: int) -> Sequence[int]:
        view = self.gallery.searchers.get(self.gallery.collection(self.collection))
        faces = view.search(query[None], k, self.tuning.lists, self.tuning.shortlist).faces[0]
        found: list[int] = (faces - 1).tolist()  # a new gallery counts its faces from 1
        return found

    def close(self) -> None:
        self.gallery.close()


class Faiss(Engine):
    """FAISS by itself: the same kind of index, as many lists, as much ranked again, from a mapped file."""

    packages = ("faiss-cpu",)
    first = 0  # the id of the first row

    def __init__(self) -> None:
        tuning = SearchTuning()
        self.lists, self.shortlist = tuning.lists, tuning.shortlist
        self.settings = f"IVF of 8-bit codes, {self.lists} lists, {self.shortlist} ranked again by mapped vectors"

    def create(self, folder: Path, data: Clustered) -> None:
        self.folder = folder
        self.file = (folder / "vectors").open("wb")

    def add(self, first: int, vectors: Floats) -> None:
        self.file.write(vectors.tobytes())

    def build(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.map()
        rows = len(self.vectors)
        lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(DIMENSIONS), DIMENSIONS, lists, faiss.ScalarQuantizer.QT_8bit,
            faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        index.cp.niter, index.cp.spherical, index.cp.min_points_per_centroid = KMEANS_ITERATIONS, True, 1
        index.train(np.ascontiguousarray(self.vectors[:: max(1, rows // (SAMPLE_PER_CENTROID * lists))]))
        for first in range(0, rows, 2**16):
            index.add(np.ascontiguousarray(self.vectors[first : first + 2**16]))
        faiss.write_index(index, str(self.folder / "index"))

    def map(self) -> None:
        """The vectors in the folder."""
        self.vectors = np.memmap(self.folder / "vectors", np.float32, "r").reshape(-1, DIMENSIONS)

    def open(self, folder: Path) -> None:
        self.folder = folder
        self.map()
        self.index = faiss.read_index(str(folder / "index"))

    def borrow(self, folder: Path, ivf: Path, data: Clustered) -> None:
        """The very index that a gallery of the same rows has; what is not in that yet is added."""
        self.create(folder, data)
        for first, vectors in data.chunks():
            self.add(first, vectors)
        self.file.close()
        self.map()
        index = Ivf.read(ivf)
        known = len(index)
        index.add(np.arange(known + 1, data.rows + 1), np.ascontiguousarray(self.vectors[known:]))
        self.index, self.first = index._index, 1

    def search(self, query: Floats, k: int) -> Sequence[int]:
        faiss.omp_set_num_threads(1)  # for this thread
        parameters = faiss.SearchParametersIVF(nprobe=self.lists)
        ids = self.index.search(query[None], self.shortlist, params=parameters)[1][0]
        rows = ids[ids >= 0] - self.first
        order = np.argsort(-(self.vectors[rows] @ query), kind="stable")
        found: list[int] = rows[order[:k]].tolist()
        return found


class Hnswlib(Engine):
    """A graph in memory."""

    packages = ("hnswlib",)
    settings = "HNSW, M 16, ef_construction 200, float32"
    breadths = HNSW_BREADTHS

    def __init__(self) -> None:
        self.index: Any = import_module("hnswlib").Index("ip", DIMENSIONS)

    def create(self, folder: Path, data: Clustered) -> None:
        self.path = str(folder / "index")
        self.index.init_index(data.rows, M=M, ef_construction=EF_CONSTRUCTION)

    def add(self, first: int, vectors: Floats) -> None:
        self.index.add_items(vectors, np.arange(first, first + len(vectors)), num_threads=threads())

    def build(self) -> None:
        self.index.save_index(self.path)

    def open(self, folder: Path) -> None:
        self.index.load_index(str(folder / "index"))

    def widen(self, breadth: int) -> None:
        super().widen(breadth)
        self.index.set_ef(breadth)

    def search(self, query: Floats, k: int) -> Sequence[int]:
        found: list[int] = self.index.knn_query(query, k, num_threads=1)[0][0].tolist()
        return found


class Usearch(Engine):
    """Likewise."""

    packages = ("usearch",)
    settings = "HNSW, connectivity 16, expansion_add 200, float32"
    breadths = HNSW_BREADTHS

    def __init__(self) -> None:
        self.module: Any = import_module("usearch.index")

    def create(self, folder: Path, data: Clustered) -> None:
        self.path = folder / "index"
        self.index = self.module.Index(
            ndim=DIMENSIONS, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION
        )

    def add(self, first: int, vectors: Floats) -> None:
        self.index.add(np.arange(first, first + len(vectors)), vectors, threads=threads())

    def build(self) -> None:
        self.index.save(self.path)

    def open(self, folder: Path) -> None:
        self.index = self.module.Index.restore(folder / "index")

    def widen(self, breadth: int) -> None:
        super().widen(breadth)
        self.index.expansion_search = breadth

    def search(self, query: Floats, k: int) -> Sequence[int]:
        found: list[int] = self.index.search(query, k, threads=1).keys.tolist()
        return found
