"""The cache that is searched, against brute force: what is sealed, what is not, what was grafted, what was removed."""

from __future__ import annotations

import numpy as np
import pytest

from index.embedded.store.records import Floats, Ints, Rows
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.searcher import ScatteredRows, VectorSearcher

DIMENSIONS, SEALED, RECENT = 16, 400, 90
NONE = np.empty(0, np.int64)


def rows(first: int, count: int) -> Rows:
    """Faces `first` and following, two of each subject."""
    rng = np.random.default_rng(first)
    vectors = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    faces = np.arange(first, first + count)
    return Rows(faces, faces // 2, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def without(found: Rows, removed: Ints) -> Rows:
    kept = ~np.isin(found.faces, removed)
    return Rows(found.faces[kept], found.subjects[kept], found.vectors[kept])


@pytest.fixture
def parts() -> list[Rows]:
    return [rows(1 + 100 * number, 100) for number in range(SEALED // 100)]


@pytest.fixture
def view(parts: list[Rows]) -> VectorSearcher:
    """With an inverted file of all lists, so that what it finds is all there is."""
    made = VectorSearcher(DIMENSIONS)
    vectors = np.concatenate([part.vectors for part in parts])
    ivf = Ivf.train(vectors, SEALED)
    ivf.add(np.concatenate([part.faces for part in parts]), vectors)
    made.replace_blocks(parts, ivf, len(parts), NONE)
    made.apply(rows(SEALED + 1, RECENT), NONE, 0)
    return made


def agrees(view: VectorSearcher, there: list[Rows], k: int = 12) -> None:
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


def compared(view: VectorSearcher, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many vectors a search compares one by one."""
    seen = []
    exact = "index.embedded.vectors.searcher.ivf.exact"
    from index.embedded.vectors.ivf import exact as real

    def count(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
        seen.append(len(vectors))
        return real(queries, vectors, k)

    with monkeypatch.context() as patched:
        patched.setattr(exact, count)
        view.search(rows(10_000, 1).vectors, 3, 1000, 1000)
    return sum(seen)


def test_what_is_not_sealed_is_compared_until_it_is_grafted(
    view: VectorSearcher, parts: list[Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [*parts, rows(SEALED + 1, RECENT)]
    agrees(view, there)
    assert compared(view, monkeypatch) == RECENT
    view.add_recent(40)  # two pieces and the rest
    assert compared(view, monkeypatch) == 0
    agrees(view, there)
    view.apply(rows(SEALED + RECENT + 1, 35), NONE, 0)
    assert compared(view, monkeypatch) == 35
    agrees(view, [*there, rows(SEALED + RECENT + 1, 35)])
    view.add_recent(40)
    assert compared(view, monkeypatch) == 0
    agrees(view, [*there, rows(SEALED + RECENT + 1, 35)])


@pytest.mark.parametrize("count", [3, 80, RECENT])
def test_what_was_grafted_is_forgotten_when_removed(view: VectorSearcher, parts: list[Rows], count: int) -> None:
    view.add_recent(40)
    removed = np.concatenate([np.arange(SEALED + 1, SEALED + 1 + count), np.arange(50, 60), [SEALED]])
    view.apply(rows(0, 0), removed, 1)
    agrees(view, [without(part, removed) for part in (*parts, rows(SEALED + 1, RECENT))])
    view.add_recent(1)
    agrees(view, [without(part, removed) for part in (*parts, rows(SEALED + 1, RECENT))])


@pytest.mark.parametrize("empty", range(4))
def test_segments_that_were_written_anew_without_what_was_removed(
    view: VectorSearcher, parts: list[Rows], empty: int
) -> None:
    removed = np.array([1, 2, 50, 51, 52, 399, *parts[empty].faces])
    clean = [without(part, removed) for part in parts]  # one of them is empty now
    vectors = np.concatenate([part.vectors for part in clean])
    ivf = Ivf.train(vectors, len(vectors))
    ivf.add(np.concatenate([part.faces for part in clean]), vectors)
    view.add_recent(10)
    view.replace_blocks(clean, ivf, len(clean), NONE)
    agrees(view, [*clean, rows(SEALED + 1, RECENT)])
    view.add_recent(10)
    agrees(view, [*clean, rows(SEALED + 1, RECENT)])


def test_without_an_inverted_file_nothing_is_grafted(parts: list[Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    view = VectorSearcher(DIMENSIONS)
    view.apply(rows(1, 30), NONE, 0)
    view.add_recent(10)
    assert compared(view, monkeypatch) == 30
    view.replace_blocks(parts, None, 0, NONE)
    view.apply(rows(SEALED + 1, RECENT), NONE, 0)
    view.add_recent(10)
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
