"""In-memory search over one collection's vectors: a cache of the ledger, one per process.

Faces in the inverted file are found by it and re-ranked by their exact vectors. All others are compared exhaustively:
segments that the inverted file does not cover yet, and recent faces, until `add_recent` adds those to this process's
copy of the inverted file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.embedded.store.vector_records import NO_REASSIGNMENTS, FaceVectors, Reassignments
from index.embedded.vectors import ivf
from index.embedded.vectors.segment import Segment
from index.types import Floats, Ints

Mask = npt.NDArray[np.bool_]
# A block of faces with consecutive ids: a segment, or the same rows from the ledger.
FaceBlock = Segment | FaceVectors

# Faces that `add_recent` adds per lock acquisition, which blocks searches for a few milliseconds.
ADD_BATCH = 512


class ReadWriteLock:
    """A lock for concurrent readers or one writer. A waiting writer blocks new readers, so it cannot starve."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers = 0  # including waiting writers
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                if not self._readers:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock exclusively."""
        with self._changed:
            self._writers += 1
            self._changed.wait_for(lambda: not self._readers and not self._writing)
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._writers -= 1
                self._changed.notify_all()


class RecentFaces:
    """Growable arrays of faces, ids ascending. Removed faces are zeroed at once and dropped in bulk later."""

    def __init__(self, dimensions: int):
        self.faces: Ints = np.empty(0, np.int64)
        self.subjects: Ints = np.empty(0, np.int64)
        self._vectors: Floats = np.empty((0, dimensions), np.float32)
        self.count = 0
        self.removed = 0

    @property
    def vectors(self) -> Floats:
        """The vectors, [count, D]; zeros for removed faces."""
        return self._vectors[: self.count]

    def row_after(self, face: int) -> int:
        """Return the first row with an id greater than `face`."""
        return int(np.searchsorted(self.faces[: self.count], face, side="right"))

    def append(self, rows: FaceVectors) -> None:
        """Append faces, whose ids are greater than all ids here."""
        needed = self.count + len(rows.faces)
        if needed > len(self.faces):
            capacity = max(needed, 2 * len(self.faces), 1024)
            self.faces, self.subjects = np.resize(self.faces, capacity), np.resize(self.subjects, capacity)
            self._vectors = np.resize(self._vectors, (capacity, self._vectors.shape[1]))
        for array, new in ((self.faces, rows.faces), (self.subjects, rows.subjects), (self._vectors, rows.vectors)):
            array[self.count : needed] = new
        self.count = needed

    def remove(self, ids: Ints) -> None:
        """Remove the faces with these ids; ids that are not here have no effect."""
        rows = np.flatnonzero(np.isin(self.faces[: self.count], ids))
        if not len(rows):
            return
        self._vectors[rows] = 0
        self.subjects[rows] = -1
        self.removed = int((self.subjects[: self.count] < 0).sum())
        if self.removed > max(64, self.count // 64):
            self._keep(self.subjects[: self.count] >= 0)

    def reassign(self, reassigned: Reassignments) -> None:
        """Set the new subjects of those of these faces that are here."""
        _reassign(self.faces[: self.count], self.subjects[: self.count], reassigned)

    def drop_through(self, face: int) -> None:
        """Drop all faces with ids up to `face`, which are now in a segment."""
        self._keep(self.faces[: self.count] > face)

    def _keep(self, kept: Mask) -> None:
        self.faces, self.subjects = self.faces[: self.count][kept], self.subjects[: self.count][kept]
        self._vectors = np.ascontiguousarray(self._vectors[: self.count][kept])
        self.count = len(self.faces)
        self.removed = int((self.subjects < 0).sum())


@dataclass(frozen=True)
class NearestFaces:
    """The nearest faces of each query, [N, K] each, nearest first; padded with id -1 and similarity -inf."""

    similarities: Floats
    faces: Ints
    subjects: Ints

    def nearest_by_subject(self) -> dict[int, float]:
        """Return the nearest face of each subject for the only query: similarities by face id, nearest first."""
        best: dict[int, tuple[int, float]] = {}
        for subject, face, similarity in zip(
            self.subjects[0].tolist(), self.faces[0].tolist(), self.similarities[0].tolist(), strict=True
        ):
            if subject >= 0:
                best.setdefault(subject, (face, similarity))
        return dict(best.values())


class ScatteredRows:
    """Row access across several arrays [*, D] without copying them; five times as fast as a loop over the arrays.

    A strided view has a window of D numbers at every number between the first array and the last. Only windows that
    are rows of an array are read.
    """

    def __init__(self, arrays: Sequence[Floats]):
        self._arrays = [np.ascontiguousarray(array) for array in arrays]  # keeps the memory of the windows alive
        if not any(array.size for array in arrays):
            return
        lowest = min((array for array in self._arrays if array.size), key=_address)
        offsets = [(_address(array) - _address(lowest)) // lowest.itemsize for array in self._arrays]
        ends = [offset + array.size for offset, array in zip(offsets, self._arrays, strict=True) if array.size]
        self._offsets, self._width = np.array(offsets, np.int64), lowest.shape[1]
        self._windows = np.lib.stride_tricks.as_strided(
            lowest.reshape(-1), (max(ends) - self._width + 1, self._width), 2 * (lowest.itemsize,), writeable=False
        )

    def take(self, arrays: Ints, rows: Ints) -> Floats:
        """Return row `rows[i]` of array number `arrays[i]` for each i: [..., D] for indices [...]."""
        return np.asarray(self._windows[self._offsets[arrays] + rows * self._width])


def _address(array: Floats) -> int:
    return int(array.ctypes.data)


class VectorSearcher:
    """Thread-safe search over one collection.

    `applied_face`, `applied_removal` and `applied_reassignment` are the last face id, the last removal and the last
    change of a face's subject in the ledger that it contains.
    """

    def __init__(self, dimensions: int):
        self.dimensions = dimensions
        self.applied_face = 0
        self.applied_removal = 0
        self.applied_reassignment = 0
        self._lock = ReadWriteLock()
        self._recent = RecentFaces(dimensions)
        self._blocks: tuple[FaceBlock, ...] = ()
        self._ivf: ivf.Ivf | None = None
        self._indexed = 0  # the number of blocks in the inverted file
        self._added_through = 0  # recent faces up to this id are in the inverted file, too
        # Of all blocks concatenated: ids, subjects, the first row and the first id of each block.
        self._faces: Ints = np.empty(0, np.int64)
        self._subjects: Ints = np.empty(0, np.int64)
        self._starts: Ints = np.zeros(1, np.int64)
        self._firsts: Ints = np.empty(0, np.int64)
        self._rows = ScatteredRows([])
        self._removed: Ints = np.empty(0, np.int64)  # ids that were removed but are still in a block; ascending

    def __len__(self) -> int:
        """Return the number of faces that can be found."""
        with self._lock.reading():
            return len(self._faces) - len(self._removed) + self._recent.count - self._recent.removed

    def replace_blocks(
        self,
        blocks: Sequence[FaceBlock],
        index: ivf.Ivf | None,
        indexed: int,
        removed: Ints,
        reassigned: Reassignments = NO_REASSIGNMENTS,
    ) -> None:
        """Replace all blocks, which are in ascending order of ids; the first `indexed` are in `index`.

        `removed` and `reassigned`: ids that were removed, and faces whose subject changed, since the oldest of the
        blocks was written.
        """
        faces = np.concatenate([np.empty(0, np.int64), *(block.faces for block in blocks)])
        subjects = np.concatenate([np.empty(0, np.int64), *(block.subjects for block in blocks)])
        _reassign(faces, subjects, reassigned)
        starts = np.cumsum([0, *(len(block.faces) for block in blocks)])
        # An empty block at the end gets a first id beyond all ids.
        firsts = np.append(faces, np.iinfo(np.int64).max)[starts[:-1]]
        with self._lock.writing():
            self._blocks, self._ivf, self._indexed, self._added_through = (
                tuple(blocks),
                index,
                indexed if index else 0,
                0,
            )
            self._faces, self._subjects, self._starts, self._firsts = faces, subjects, starts, firsts
            self._rows = ScatteredRows([block.vectors for block in blocks])
            candidates = np.union1d(self._removed, removed)
            self._removed = candidates[np.isin(candidates, faces)]
            if len(faces):
                self._recent.drop_through(int(faces[-1]))
                self.applied_face = max(self.applied_face, int(faces[-1]))

    def apply(
        self, added: FaceVectors, removed: Ints, through: int, reassigned: Reassignments = NO_REASSIGNMENTS
    ) -> None:
        """Apply changes of the ledger: faces after `applied_face`, then removed ids, up to removal `through`.

        `reassigned`: the faces whose subject changed since `applied_reassignment`.
        """
        with self._lock.writing():
            if len(added.faces):
                self._recent.append(added)
                self.applied_face = int(added.faces[-1])
            self._recent.remove(removed)
            self._recent.reassign(reassigned)
            _reassign(self._faces, self._subjects, reassigned)
            self.applied_reassignment = max(self.applied_reassignment, reassigned.through)
            self._removed = np.union1d(self._removed, removed[np.isin(removed, self._faces)])
            self.applied_removal = max(self.applied_removal, through)

    def search(self, queries: Floats, k: int, lists: int, shortlist: int) -> NearestFaces:
        """Return the `k` nearest faces of each query [N, D].

        With an inverted file, probe its `lists` nearest lists and re-rank the best `shortlist` faces.
        """
        with self._lock.reading():
            results = [self._search_block(queries, number, k) for number in range(self._indexed, len(self._blocks))]
            if (start := self._recent.row_after(self._added_through)) < self._recent.count or not self._indexed:
                results.append(self._search_recent(queries, start, k))
            if self._ivf is not None and self._indexed and len(self._faces):
                results += self._rerank(self._ivf.search(queries, max(shortlist, k), lists), queries)
        return _merged(results, k)

    def add_recent(self, batch: int = ADD_BATCH) -> None:
        """Add the recent faces to the inverted file, if there is one. Blocks searches for one `batch` at a time."""
        while True:
            with self._lock.writing():
                start = self._recent.row_after(self._added_through)
                if self._ivf is None or not self._indexed or start == self._recent.count:
                    return
                rows = slice(start, min(start + batch, self._recent.count))
                self._ivf.add(self._recent.faces[rows], self._recent.vectors[rows])
                self._added_through = int(self._recent.faces[rows][-1])

    def _search_recent(self, queries: Floats, start: int, k: int) -> NearestFaces:
        recent = self._recent
        similarities, rows = ivf.exact(queries, recent.vectors[start:], k + recent.removed)
        nearest = NearestFaces(similarities, recent.faces[start + rows], recent.subjects[start + rows])
        return _excluding(nearest, nearest.subjects < 0)

    def _search_block(self, queries: Floats, number: int, k: int) -> NearestFaces:
        block = self._blocks[number]
        first, last = (int(block.faces[0]), int(block.faces[-1])) if len(block.faces) else (0, -1)
        low, high = np.searchsorted(self._removed, [first, last + 1])
        similarities, rows = ivf.exact(queries, block.vectors, k + int(high - low))
        nearest = NearestFaces(similarities, block.faces[rows], self._subjects[self._starts[number] + rows])
        return _excluding(nearest, self._is_removed(nearest.faces))

    def _rerank(self, ids: Ints, queries: Floats) -> list[NearestFaces]:
        """Return the candidates of the inverted file, ids [N, K], with exact similarities: from blocks, from recent."""
        blocks, rows, missing = self._locate(ids)
        vectors = self._rows.take(blocks, rows - self._starts[blocks])
        if len(self._removed):
            missing |= self._is_removed(ids)
        results = [_excluding(_compared(queries, vectors, ids, self._subjects[rows]), missing)]
        recent = self._recent
        if self._added_through and recent.count and (columns := (ids > self._faces[-1]).any(axis=0)).any():
            ids = ids[:, columns]
            rows = np.minimum(np.searchsorted(recent.faces[: recent.count], ids), recent.count - 1)
            missing = (recent.faces[rows] != ids) | (recent.subjects[rows] < 0)
            results.append(_excluding(_compared(queries, recent.vectors[rows], ids, recent.subjects[rows]), missing))
        return results

    def _locate(self, ids: Ints) -> tuple[Ints, Ints, Mask]:
        """Return the block number of each id, its row in the concatenation of all blocks, and whether it is missing.

        Ids are consecutive where nothing was removed. That row is tried first, because a binary search among millions
        of ids costs several cache misses.
        """
        blocks = np.maximum(self._firsts.searchsorted(ids, side="right") - 1, 0)
        rows = np.minimum(np.maximum(self._starts[blocks] + ids - self._firsts[blocks], 0), len(self._faces) - 1)
        missing = self._faces[rows] != ids
        if missing.any():
            rows[missing] = np.minimum(self._faces.searchsorted(ids[missing]), len(self._faces) - 1)
            blocks[missing] = self._starts.searchsorted(rows[missing], side="right") - 1
            missing[missing] = self._faces[rows[missing]] != ids[missing]
        return blocks, rows, missing

    def _is_removed(self, ids: Ints) -> Mask:
        if not len(self._removed):
            return np.zeros(ids.shape, np.bool_)
        positions = np.minimum(np.searchsorted(self._removed, ids), len(self._removed) - 1)
        return np.asarray(self._removed[positions] == ids)


def _reassign(faces: Ints, subjects: Ints, reassigned: Reassignments) -> None:
    """Set the new subjects of those reassigned faces that are among `faces`, ascending, and were not removed (-1)."""
    if not len(faces):
        return
    rows = np.minimum(faces.searchsorted(reassigned.faces), len(faces) - 1)
    known = (faces[rows] == reassigned.faces) & (subjects[rows] >= 0)
    subjects[rows[known]] = reassigned.subjects[known]


def _compared(queries: Floats, vectors: Floats, faces: Ints, subjects: Ints) -> NearestFaces:
    return NearestFaces(np.vecdot(vectors, queries[:, None]), faces, subjects)


def _excluding(nearest: NearestFaces, excluded: Mask) -> NearestFaces:
    """Set the similarity of the excluded faces to -inf, in place."""
    nearest.similarities[excluded] = -np.inf
    return nearest


def _merged(results: Sequence[NearestFaces], k: int) -> NearestFaces:
    """Return the k nearest faces of several results; ties in ascending order of ids."""
    found = _concatenated([result for result in results if result.faces.shape[1]] or results[:1])
    order = np.lexsort((found.faces, -found.similarities), axis=1)[:, :k]
    queries = np.arange(len(order))[:, None]
    nearest = NearestFaces(
        found.similarities[queries, order], found.faces[queries, order], found.subjects[queries, order]
    )
    excluded = nearest.similarities == -np.inf
    if excluded.any():
        nearest.faces[excluded] = nearest.subjects[excluded] = -1
    return nearest


def _concatenated(results: Sequence[NearestFaces]) -> NearestFaces:
    if len(results) == 1:
        return results[0]
    return NearestFaces(
        np.concatenate([result.similarities for result in results], axis=1),
        np.concatenate([result.faces for result in results], axis=1),
        np.concatenate([result.subjects for result in results], axis=1),
    )
