"""What one process knows of one collection's vectors, to search them: a cache, kept up with the ledger.

What an inverted file has is found by it and ranked again by the exact vectors. What is younger is compared one by one:
segments that it does not have yet, and the last faces, in memory, until they are put into this process's own inverted
file (`graft`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from index.embedded.store.vector_records import FaceVectors
from index.embedded.vectors import ivf as ann
from index.types import Floats, Ints

Array = npt.NDArray[Any]

# Faces that are put into the inverted file at once, while searches wait: a few milliseconds.
PIECE = 512
Mask = npt.NDArray[np.bool_]


class ReadWriteLock:
    """Many that read, or one that changes. Who wants to change keeps new readers out, so that it gets its turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers = 0  # who waits, too
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Beside other readers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone."""
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


class Recent:
    """Faces in memory, ids ascending. A removed one stays as zeros until enough of them have gathered."""

    def __init__(self, dimensions: int):
        self.faces: Ints = np.empty(0, np.int64)
        self.subjects: Ints = np.empty(0, np.int64)
        self._vectors: Floats = np.empty((0, dimensions), np.float32)
        self.count = 0
        self.removed = 0

    @property
    def vectors(self) -> Floats:
        """[count, D]."""
        return self._vectors[: self.count]

    def after(self, face: int) -> int:
        """The first row whose id is greater."""
        return int(np.searchsorted(self.faces[: self.count], face, side="right"))

    def append(self, rows: FaceVectors) -> None:
        """More faces, whose ids are greater than all before."""
        needed = self.count + len(rows.faces)
        if needed > len(self.faces):
            room = max(needed, 2 * len(self.faces), 1024)
            self.faces, self.subjects = (_grown(a, self.count, room) for a in (self.faces, self.subjects))
            self._vectors = _grown(self._vectors, self.count, room)
        for array, new in ((self.faces, rows.faces), (self.subjects, rows.subjects), (self._vectors, rows.vectors)):
            array[self.count : needed] = new
        self.count = needed

    def remove(self, ids: Ints) -> None:
        """Forget these, as far as they are here."""
        places = np.flatnonzero(np.isin(self.faces[: self.count], ids))
        if not len(places):
            return
        self._vectors[places] = 0
        self.subjects[places] = -1
        self.removed = int((self.subjects[: self.count] < 0).sum())
        if self.removed > max(64, self.count // 64):
            self._keep(self.subjects[: self.count] >= 0)

    def drop_through(self, face: int) -> None:
        """Forget those up to `face`, which a segment has now."""
        self._keep(self.faces[: self.count] > face)

    def _keep(self, kept: Mask) -> None:
        self.faces, self.subjects = self.faces[: self.count][kept], self.subjects[: self.count][kept]
        self._vectors = np.ascontiguousarray(self._vectors[: self.count][kept])
        self.count = len(self.faces)
        self.removed = int((self.subjects < 0).sum())


def _grown(array: Array, count: int, room: int) -> Array:
    grown = np.zeros((room, *array.shape[1:]), array.dtype)
    grown[:count] = array[:count]
    return grown


@dataclass(frozen=True)
class Found:
    """The nearest faces of each query, likest first, [N, K] each; where there are fewer, -1 and minus infinity."""

    similarities: Floats
    faces: Ints
    subjects: Ints


class ScatteredRows:
    """Rows of several arrays [*, D], taken as if they lay in one; a loop over the arrays takes five times as long.

    A window of D numbers begins at every number between the first array and the last, and only windows that are rows
    are ever read.
    """

    def __init__(self, arrays: Sequence[Floats]):
        self._arrays = [np.ascontiguousarray(array) for array in arrays]  # which must outlive the windows
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
        """Of these arrays [...], by their number, those rows [...]: [..., D]."""
        return np.asarray(self._windows[self._offsets[arrays] + rows * self._width])


def _address(array: Floats) -> int:
    return int(array.ctypes.data)


class Part(Protocol):
    """Vectors that are compared one by one: a segment, or rows as the ledger has them."""

    @property
    def faces(self) -> Ints: ...  # noqa: D102  [rows], ascending

    @property
    def subjects(self) -> Ints: ...  # noqa: D102  [rows]

    @property
    def vectors(self) -> Floats: ...  # noqa: D102  [rows, D]


class View:
    """One collection. `applied_face` and `applied_removal` say how far the ledger has been followed."""

    def __init__(self, dimensions: int):
        self.dimensions = dimensions
        self.applied_face = 0
        self.applied_removal = 0
        self._lock = ReadWriteLock()
        self._recent = Recent(dimensions)
        self._sealed: tuple[Part, ...] = ()
        self._ivf: ann.Ivf | None = None
        self._indexed = 0  # how many of the sealed parts the inverted file has
        self._grafted = 0  # the recent faces up to this one are in it, too
        # Of all sealed parts together: ids, subjects, where each part begins, with which id.
        self._faces: Ints = np.empty(0, np.int64)
        self._subjects: Ints = np.empty(0, np.int64)
        self._starts: Ints = np.zeros(1, np.int64)
        self._firsts: Ints = np.empty(0, np.int64)
        self._rows = ScatteredRows([])
        self._dead: Ints = np.empty(0, np.int64)  # removed, but in a sealed part still; ascending

    def __len__(self) -> int:
        """How many faces can be found."""
        with self._lock.reading():
            return len(self._faces) - len(self._dead) + self._recent.count - self._recent.removed

    @property
    def exact(self) -> bool:
        """Whether every face is compared."""
        return not self._indexed

    def install(self, sealed: Sequence[Part], ivf: ann.Ivf | None, indexed: int, removed: Ints) -> None:
        """These sealed parts from now on, in the order of ids, of which the first `indexed` are in `ivf`.

        `removed`: ids of what was removed since the oldest of them was written.
        """
        faces = np.concatenate([np.empty(0, np.int64), *(part.faces for part in sealed)])
        subjects = np.concatenate([np.empty(0, np.int64), *(part.subjects for part in sealed)])
        starts = np.cumsum([0, *(len(part.faces) for part in sealed)])
        firsts = np.append(faces, np.iinfo(np.int64).max)[starts[:-1]]  # empty parts at the end are beyond all ids
        with self._lock.writing():
            self._sealed, self._ivf, self._indexed, self._grafted = tuple(sealed), ivf, indexed if ivf else 0, 0
            self._faces, self._subjects, self._starts, self._firsts = faces, subjects, starts, firsts
            self._rows = ScatteredRows([part.vectors for part in sealed])
            gone = np.union1d(self._dead, removed)
            self._dead = gone[np.isin(gone, faces)]
            if len(faces):
                self._recent.drop_through(int(faces[-1]))
                self.applied_face = max(self.applied_face, int(faces[-1]))

    def apply(self, added: FaceVectors, removed: Ints, through: int) -> None:
        """Follow the ledger: faces added since `applied_face`, then ids removed since, up to removal `through`."""
        with self._lock.writing():
            if len(added.faces):
                self._recent.append(added)
                self.applied_face = int(added.faces[-1])
            self._recent.remove(removed)
            self._dead = np.union1d(self._dead, removed[np.isin(removed, self._faces)])
            self.applied_removal = max(self.applied_removal, through)

    def search(self, queries: Floats, k: int, lists: int, shortlist: int) -> Found:
        """The `k` nearest faces of each query [N, D].

        Where there is an inverted file, `lists` of its lists are looked into and the best `shortlist` of what is there
        ranked again; all else is compared.
        """
        with self._lock.reading():
            found = [self._compared(queries, part, k) for part in self._sealed[self._indexed :]]
            if (start := self._recent.after(self._grafted)) < self._recent.count or not self._indexed:
                found.append(self._recently(queries, start, k))
            if self._ivf is not None and self._indexed and len(self._faces):
                found += self._approximately(self._ivf.search(queries, max(shortlist, k), lists), queries)
        return _best(found, k)

    def graft(self, size: int = PIECE) -> None:
        """Put the recent faces into this process's inverted file, if there is one.

        Searches wait for `size` of them at a time.
        """
        while True:
            with self._lock.writing():
                start = self._recent.after(self._grafted)
                if self._ivf is None or not self._indexed or start == self._recent.count:
                    return
                piece = slice(start, min(start + size, self._recent.count))
                self._ivf.add(self._recent.faces[piece], self._recent.vectors[piece])
                self._grafted = int(self._recent.faces[piece][-1])

    def _recently(self, queries: Floats, start: int, k: int) -> Found:
        recent = self._recent
        similarities, rows = ann.exact(queries, recent.vectors[start:], k + recent.removed)
        found = Found(similarities, recent.faces[start + rows], recent.subjects[start + rows])
        return _without(found, found.subjects < 0)

    def _compared(self, queries: Floats, part: Part, k: int) -> Found:
        first, last = (int(part.faces[0]), int(part.faces[-1])) if len(part.faces) else (0, -1)
        low, high = np.searchsorted(self._dead, [first, last + 1])
        similarities, rows = ann.exact(queries, part.vectors, k + int(high - low))
        found = Found(similarities, part.faces[rows], part.subjects[rows])
        return _without(found, self._is_dead(found.faces))

    def _approximately(self, ids: Ints, queries: Floats) -> list[Found]:
        """What the inverted file found, ids [N, K], ranked by the exact vectors: what is sealed, what is not."""
        parts, places, gone = self._places(ids)
        vectors = self._rows.take(parts, places - self._starts[parts])
        if len(self._dead):
            gone |= self._is_dead(ids)
        found = [_without(_ranked(queries, vectors, ids, self._subjects[places]), gone)]
        recent = self._recent
        if self._grafted and recent.count and (young := (ids > self._faces[-1]).any(axis=0)).any():
            ids = ids[:, young]
            rows = np.minimum(np.searchsorted(recent.faces[: recent.count], ids), recent.count - 1)
            lost = (recent.faces[rows] != ids) | (recent.subjects[rows] < 0)
            found.append(_without(_ranked(queries, recent.vectors[rows], ids, recent.subjects[rows]), lost))
        return found

    def _places(self, ids: Ints) -> tuple[Ints, Ints, Mask]:
        """Of these ids the sealed parts, the places among all that is sealed, and whether they are not there.

        Where nothing was removed, ids follow one another. That is tried first: to look one up in millions is several
        misses of the cache.
        """
        parts = np.maximum(self._firsts.searchsorted(ids, side="right") - 1, 0)
        places = np.minimum(np.maximum(self._starts[parts] + ids - self._firsts[parts], 0), len(self._faces) - 1)
        elsewhere = self._faces[places] != ids
        if elsewhere.any():
            places[elsewhere] = np.minimum(self._faces.searchsorted(ids[elsewhere]), len(self._faces) - 1)
            parts[elsewhere] = self._starts.searchsorted(places[elsewhere], side="right") - 1
            elsewhere[elsewhere] = self._faces[places[elsewhere]] != ids[elsewhere]
        return parts, places, elsewhere

    def _is_dead(self, ids: Ints) -> Mask:
        if not len(self._dead):
            return np.zeros(ids.shape, np.bool_)
        places = np.minimum(np.searchsorted(self._dead, ids), len(self._dead) - 1)
        return np.asarray(self._dead[places] == ids)


def _ranked(queries: Floats, vectors: Floats, faces: Ints, subjects: Ints) -> Found:
    return Found(np.vecdot(vectors, queries[:, None]), faces, subjects)


def _without(found: Found, gone: Mask) -> Found:
    """With those that are gone at the end of any order."""
    found.similarities[gone] = -np.inf
    return found


def _best(found: Sequence[Found], k: int) -> Found:
    """The k best of several answers, equal ones in the order of their ids."""
    found = [part for part in found if part.faces.shape[1]] or found[:1]
    similarities = np.concatenate([part.similarities for part in found], axis=1)
    faces = np.concatenate([part.faces for part in found], axis=1)
    subjects = np.concatenate([part.subjects for part in found], axis=1)
    order = np.lexsort((faces, -similarities), axis=1)[:, :k]
    queries = np.arange(len(order))[:, None]
    similarities, faces, subjects = (array[queries, order] for array in (similarities, faces, subjects))
    gone = similarities == -np.inf
    faces[gone] = subjects[gone] = -1
    return Found(similarities, faces, subjects)
