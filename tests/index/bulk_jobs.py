"""Bulk jobs for the tests of every engine: items, and a worker that enrols them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.protocol import Gallery, JobQueue, JobWorker
from index.types import Item, Job, NewFace, Outcome, ProcessedItem, Properties
from tests.index.people import vectors

VECTORS = vectors(100)


def item(number: int, subject: str = "", properties: Properties | None = None) -> Item:
    """Return an item with a vector of its number, of the subject p<number> unless it is another's."""
    return Item(number, subject or f"p{number}", "vector", VECTORS[number].tobytes(), properties)


def submit(jobs: JobQueue, items: Sequence[Item | Outcome], collection: str = "doors") -> Job:
    """Submit a job with these items."""
    job = jobs.begin(collection, {"max_faces": 1})
    jobs.append(job, items)
    return jobs.ready(job)


def results(items: Sequence[Item]) -> list[ProcessedItem]:
    """Return a face of each item."""
    return [
        ProcessedItem(item, Outcome(item.number, "enrolled"), [NewFace(item.subject, np.frombuffer(item.data, "<f4"))])
        for item in items
    ]


def work(worker: JobWorker, job: Job) -> None:
    """Enrol all pending items of the claimed job, and finish it."""
    while items := worker.pending(job, 1):
        assert worker.enrol(job, results(items), "f1")
    worker.finish(job, "done")


def enrolled(gallery: Gallery) -> dict[str, int]:
    """Return the numbers of faces by subject."""
    return {subject.key: subject.faces for subject in gallery.subjects("doors", limit=-1)}


def claimed(worker: JobWorker) -> Job:
    """Return the job that the worker claims."""
    job = worker.claim()
    assert job is not None
    return job
