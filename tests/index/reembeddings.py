"""Re-embeddings of the collection `doors` for the tests of every engine; the crop of a face is its number."""

from __future__ import annotations

from collections.abc import Sequence

from index.protocol import FIRST, Gallery, Reembeddings, ReembeddingWorker
from index.types import Face, Floats, NewFace, PendingCrop, Reembedding
from tests.index.people import vectors

OLD, NEW = vectors(60, 16, seed=1), vectors(60, 24, seed=2)  # by the number in the crop


def face(number: int) -> NewFace:
    """Return the face with this number, of a subject of its own."""
    return NewFace(f"p{number:02}", OLD[number], {"n": number}, bytes([number]))


def enrol(gallery: Gallery, *numbers: int) -> list[Face]:
    """Enrol the faces with these numbers."""
    return gallery.enrol("doors", [face(number) for number in numbers], "f1")


def begin(reembeddings: Reembeddings) -> Reembedding:
    """Request a re-embedding with the vectors NEW."""
    return reembeddings.begin("doors", "better", "f2", 24).reembedding


def new_vectors(items: Sequence[PendingCrop]) -> dict[int, Floats]:
    """Return the new vectors of the crops by id."""
    return {item.id: NEW[item.crop[0]] for item in items}


def stage(worker: ReembeddingWorker, reembedding: Reembedding, limit: int = 1000) -> int:
    """Stage at most `limit` new vectors in small batches, and return their number."""
    after, count = FIRST, 0
    while count < limit and (items := worker.pending(reembedding, after, min(3, limit - count))):
        assert worker.stage(reembedding, new_vectors(items))
        after, count = items[-1].id, count + len(items)
    return count


def switched(reembeddings: Reembeddings, worker: ReembeddingWorker) -> Reembedding:
    """Do a whole re-embedding."""
    reembedding = begin(reembeddings)
    assert worker.claim(reembedding)
    stage(worker, reembedding)
    assert worker.switch(reembedding) == 0
    return reembedding


def names(*numbers: int) -> list[str]:
    """Return the keys of the subjects with these numbers."""
    return [f"p{number:02}" for number in numbers]
