"""The cache that is searched, against brute force: what is sealed, what is not, what was grafted, what was removed."""

from __future__ import annotations

import numpy as np
import pytest

from index.embedded.store.vector_records import FaceVectors
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.searcher import ScatteredRows, View
from index.types import Floats, Ints

DIMENSIONS, SEALED, RECENT = 16, 400, 90
NONE = np.empty(0, np.int64)


def rows(first: int, count: int) -> FaceVectors:
    """Faces `first` and following, two of each subject."""
    rng = np.random.default_rng(first)
    vectors = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    faces = np.arange(first, first + count)
    return FaceVectors(faces, faces // 2, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def without(found: FaceVectors, removed: Ints) -> FaceVectors:
    kept = ~np.isin(found.faces, removed)
    return FaceVectors(found.faces[kept], found.subjects[kept], found.vectors[kept])


@pytest.fixture
def parts() -> list[FaceVectors]:
    return [rows(1 + 100 * number, 100) for number in range(SEALED // 100)]


@pytest.fixture
def view(parts: list[FaceVectors]) -> View:
    """With an inverted file of all lists, so that what it finds is all there is."""
    made = View(DIMENSIONS)
    vectors = np.concatenate([part.vectors for part in parts])
    ivf = Ivf.train(vectors, SEALED)
    ivf.add(np.concatenate([part.faces for part in parts]), vectors)
    made.install(parts, ivf, len(parts), NONE)
    made.apply(rows(SEALED + 1, RECENT), NONE, 0)
    return made


def agrees(view: View, there: list[FaceVectors], k: int = 12) -> None:
    faces = np.concatenate([part.faces for part in there])
    subjects = np.concatenate([part.subjects for part in there])
    vectors = np.concatenate([part.vectors for part in there])
    queries = rows(10_000, 7).vectors
    found = view.search(queries, k, 1000, 1000)
    for query, similarities, ids, owners in zip(queries, found.similarities, found.faces, found.subjects, strict=True):
        expected = np.argsort(-(vectors @ query), kind="stable")[:k]
        assert ids.tolist() == faces[expected].tolist()
        assert owners.tolist() == subjects[expected].tolist()
        assert similarities == pytest.approx(vectors[expected] @ query, abs=1e-6)


def compared(view: View, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many vectors a search compares one by one."""
    seen = []
    exact = "index.embedded.vectors.searcher.ann.exact"
    from index.embedded.vectors.ivf import exact as real

    def count(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
        seen.append(len(vectors))
        return real(queries, vectors, k)

    with monkeypatch.context() as patched:
        patched.setattr(exact, count)
        view.search(rows(10_000, 1).vectors, 3, 1000, 1000)
    return sum(seen)


def test_what_is_not_sealed_is_compared_until_it_is_grafted(
    view: View, parts: list[FaceVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [*parts, rows(SEALED + 1, RECENT)]
    agrees(view, there)
    assert compared(view, monkeypatch) == RECENT
    view.graft(40)  # two pieces and the rest
    assert compared(view, monkeypatch) == 0
    agrees(view, there)
    view.apply(rows(SEALED + RECENT + 1, 35), NONE, 0)
    assert compared(view, monkeypatch) == 35
    agrees(view, [*there, rows(SEALED + RECENT + 1, 35)])
    view.graft(40)
    assert compared(view, monkeypatch) == 0
    agrees(view, [*there, rows(SEALED + RECENT + 1, 35)])


@pytest.mark.parametrize("count", [3, 80, RECENT])
def test_what_was_grafted_is_forgotten_when_removed(view: View, parts: list[FaceVectors], count: int) -> None:
    view.graft(40)
    removed = np.concatenate([np.arange(SEALED + 1, SEALED + 1 + count), np.arange(50, 60), [SEALED]])
    view.apply(rows(0, 0), removed, 1)
    agrees(view, [without(part, removed) for part in (*parts, rows(SEALED + 1, RECENT))])
    view.graft(1)
    agrees(view, [without(part, removed) for part in (*parts, rows(SEALED + 1, RECENT))])


@pytest.mark.parametrize("empty", range(4))
def test_segments_that_were_written_anew_without_what_was_removed(
    view: View, parts: list[FaceVectors], empty: int
) -> None:
    removed = np.array([1, 2, 50, 51, 52, 399, *parts[empty].faces])
    clean = [without(part, removed) for part in parts]  # one of them is empty now
    vectors = np.concatenate([part.vectors for part in clean])
    ivf = Ivf.train(vectors, len(vectors))
    ivf.add(np.concatenate([part.faces for part in clean]), vectors)
    view.graft(10)
    view.install(clean, ivf, len(clean), NONE)
    agrees(view, [*clean, rows(SEALED + 1, RECENT)])
    view.graft(10)
    agrees(view, [*clean, rows(SEALED + 1, RECENT)])


def test_without_an_inverted_file_nothing_is_grafted(parts: list[FaceVectors], monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(DIMENSIONS)
    view.apply(rows(1, 30), NONE, 0)
    view.graft(10)
    assert compared(view, monkeypatch) == 30
    view.install(parts, None, 0, NONE)
    view.apply(rows(SEALED + 1, RECENT), NONE, 0)
    view.graft(10)
    assert compared(view, monkeypatch) == SEALED + RECENT
    agrees(view, [*parts, rows(SEALED + 1, RECENT)])


def test_scattered_rows_are_those_of_the_arrays() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(count, 8)).astype(np.float32) for count in (5, 0, 1, 300, 17)]
    which = rng.choice([0, 2, 3, 4], 200)
    numbers = np.array([rng.integers(len(arrays[one])) for one in which])
    taken = ScatteredRows(arrays).take(which, numbers)
    expected = [arrays[one][number] for one, number in zip(which, numbers, strict=True)]
    assert (taken == np.array(expected)).all()
