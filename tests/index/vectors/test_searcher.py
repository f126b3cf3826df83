"""VectorSearcher against brute force, with faces in blocks, in the inverted file, recent and removed."""

from __future__ import annotations

import numpy as np
import pytest

from index.embedded.store.vector_records import FaceVectors, Reassignments
from index.embedded.vectors import ivf
from index.embedded.vectors.ivf import Ivf
from index.embedded.vectors.searcher import ScatteredRows, VectorSearcher
from index.types import Floats, Ints

DIMENSIONS, IN_BLOCKS, RECENT = 16, 400, 90
NONE = np.empty(0, np.int64)


def rows(first: int, count: int) -> FaceVectors:
    """Faces with ids from `first`, two per subject."""
    rng = np.random.default_rng(first)
    vectors = rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    faces = np.arange(first, first + count)
    return FaceVectors(faces, faces // 2, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def without(block: FaceVectors, removed: Ints) -> FaceVectors:
    kept = ~np.isin(block.faces, removed)
    return FaceVectors(block.faces[kept], block.subjects[kept], block.vectors[kept])


def inverted_file(blocks: list[FaceVectors]) -> Ivf:
    vectors = np.concatenate([block.vectors for block in blocks])
    index = Ivf.train(vectors, len(vectors))
    index.add(np.concatenate([block.faces for block in blocks]), vectors)
    return index


BLOCKS = [rows(1 + 100 * number, 100) for number in range(IN_BLOCKS // 100)]
RECENT_ROWS = rows(IN_BLOCKS + 1, RECENT)


@pytest.fixture
def searcher() -> VectorSearcher:
    """All blocks are in the inverted file; the recent faces are not."""
    searcher = VectorSearcher(DIMENSIONS)
    searcher.replace_blocks(BLOCKS, inverted_file(BLOCKS), len(BLOCKS), NONE)
    searcher.apply(RECENT_ROWS, NONE, 0)
    return searcher


def assert_agrees(searcher: VectorSearcher, blocks: list[FaceVectors], k: int = 12) -> None:
    """Compare a search that probes all lists with brute force over these faces."""
    faces = np.concatenate([block.faces for block in blocks])
    subjects = np.concatenate([block.subjects for block in blocks])
    vectors = np.concatenate([block.vectors for block in blocks])
    queries = rows(10_000, 7).vectors
    nearest = searcher.search(queries, k, 1000, 1000)
    results = zip(queries, nearest.similarities, nearest.faces, nearest.subjects, strict=True)
    for query, similarities, ids, owners in results:
        expected = np.argsort(-(vectors @ query), kind="stable")[:k]
        assert ids.tolist() == faces[expected].tolist()
        assert owners.tolist() == subjects[expected].tolist()
        assert similarities == pytest.approx(vectors[expected] @ query, abs=1e-6)


def count_compared(searcher: VectorSearcher, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of vectors that a search compares exhaustively."""
    counts = []
    exact = ivf.exact

    def counting(queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Ints]:
        counts.append(len(vectors))
        return exact(queries, vectors, k)

    with monkeypatch.context() as patched:
        patched.setattr(ivf, "exact", counting)
        searcher.search(rows(10_000, 1).vectors, 3, 1000, 12)
    return sum(counts)


def test_recent_faces_are_compared_exhaustively_until_added_to_the_inverted_file(
    searcher: VectorSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [*BLOCKS, RECENT_ROWS]
    for new, count in ((None, RECENT), (rows(IN_BLOCKS + RECENT + 1, 35), 35)):
        if new is not None:
            searcher.apply(new, NONE, 0)
            blocks.append(new)
        assert_agrees(searcher, blocks)
        assert count_compared(searcher, monkeypatch) == count
        searcher.add_recent(40)  # in several batches
        assert count_compared(searcher, monkeypatch) == 0
        assert_agrees(searcher, blocks)


@pytest.mark.parametrize("count", [3, 80, RECENT])
def test_removed_faces_are_not_found_in_the_inverted_file(searcher: VectorSearcher, count: int) -> None:
    searcher.add_recent(40)
    removed = np.concatenate([np.arange(IN_BLOCKS + 1, IN_BLOCKS + 1 + count), np.arange(50, 60), [IN_BLOCKS]])
    searcher.apply(rows(0, 0), removed, 1)
    for _ in range(2):
        assert_agrees(searcher, [without(block, removed) for block in (*BLOCKS, RECENT_ROWS)])
        searcher.add_recent(1)


@pytest.mark.parametrize("empty", range(4))
def test_blocks_are_replaced_by_blocks_without_removed_faces(searcher: VectorSearcher, empty: int) -> None:
    removed = np.array([1, 2, 50, 51, 52, 399, *BLOCKS[empty].faces])
    clean = [without(block, removed) for block in BLOCKS]
    searcher.add_recent(10)
    searcher.replace_blocks(clean, inverted_file(clean), len(clean), NONE)
    for _ in range(2):
        assert_agrees(searcher, [*clean, RECENT_ROWS])
        searcher.add_recent(10)


def test_without_an_inverted_file_all_faces_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = VectorSearcher(DIMENSIONS)
    searcher.apply(rows(1, 30), NONE, 0)
    searcher.add_recent(10)
    assert count_compared(searcher, monkeypatch) == 30
    searcher.replace_blocks(BLOCKS, None, 0, NONE)
    searcher.apply(RECENT_ROWS, NONE, 0)
    searcher.add_recent(10)
    assert count_compared(searcher, monkeypatch) == IN_BLOCKS + RECENT
    assert_agrees(searcher, [*BLOCKS, RECENT_ROWS])


def test_scattered_rows_are_those_of_the_arrays() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(count, 8)).astype(np.float32) for count in (5, 0, 1, 300, 17)]
    numbers = rng.choice([0, 2, 3, 4], 200)
    indices = np.array([rng.integers(len(arrays[number])) for number in numbers])
    expected = [arrays[number][index] for number, index in zip(numbers, indices, strict=True)]
    assert (ScatteredRows(arrays).take(numbers, indices) == np.array(expected)).all()


def test_reassigned_faces_have_their_new_subjects(searcher: VectorSearcher) -> None:
    """Faces in blocks and recent ones; removed and unknown faces are left out."""
    faces = [3, 250, IN_BLOCKS + 2, IN_BLOCKS + 5, 99_999]
    removed = np.array([250, IN_BLOCKS + 5], np.int64)
    searcher.apply(rows(0, 0), removed, 1)
    subjects = np.arange(70_000, 70_005)
    searcher.apply(rows(0, 0), NONE, 1, Reassignments(np.array(faces, np.int64), subjects, 9))
    assert searcher.applied_reassignment == 9
    everything = searcher.search(rows(10_000, 1).vectors, 10_000, 1000, 10_000)
    owners = dict(zip(everything.faces[0].tolist(), everything.subjects[0].tolist(), strict=True))
    similarities = dict(zip(everything.faces[0].tolist(), everything.similarities[0].tolist(), strict=True))
    assert (owners[3], owners[IN_BLOCKS + 2]) == (70_000, 70_002)
    assert sum(owner >= 70_000 for owner in owners.values()) == 2
    assert all(similarities.get(face, -np.inf) == -np.inf for face in removed.tolist())
    searcher.replace_blocks(BLOCKS, None, 0, removed, Reassignments(np.array([4], np.int64), subjects[:1], 10))
    (nearest,) = searcher.search(BLOCKS[0].vectors[3:4], 1, 1, 1).subjects[0].tolist()  # the face 4
    assert nearest == 70_000
