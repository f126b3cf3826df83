"""Bulk jobs and the workers on them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Protocol

from index.protocol.changes import changes
from index.types import Item, ItemStatus, Job, JobResult, Outcome, ProcessedItem, Receipt

# Seconds for which a worker holds a job or a re-embedding without renewing its lease.
LEASE_S = 15.0

KEEP_S = 7 * 86_400.0  # how long the outcomes of a finished job are kept
ALL_FAILED = "all items failed; see the problem of each item"

# Limits of one batch: rows, and bytes after which no more rows are read.
MAX_ROWS, MAX_BYTES = 2048, 4 * 2**20


class JobQueue(Protocol):
    """Submit, list and cancel bulk jobs: many faces that are uploaded at once and enrolled in the background."""

    @changes
    def begin(self, collection: str, settings: Mapping[str, object], *, actor: str | None = None) -> Job:
        """Create a job, which no worker takes before `ready`. `actor`, as in `Gallery`, is also that of its enrolments.

        Raises:
            NotFoundError: no such collection. InvalidError: the actor may be a name.
        """
        ...

    @changes
    def append(self, job: Job, items: Sequence[Item | Outcome]) -> None:
        """Add items to the job; an Outcome stands for an item that cannot be enrolled.

        Raises:
            NotFoundError: the collection was dropped. InvalidError: see `index.validation.check_item`.
        """
        ...

    @changes
    def ready(self, job: Job) -> Job:
        """Queue the job for the workers once all items were appended. From then on it survives a crash.

        Raises:
            NotFoundError: the collection was dropped.
        """
        ...

    @changes
    def abandon(self, job: Job) -> None:
        """Delete a job whose upload was not completed."""
        ...

    def job(self, collection: str, token: str) -> Job:
        """Return the job.

        Raises:
            NotFoundError: no such collection or job.
        """
        ...

    def list_jobs(self, collection: str, after: int, limit: int) -> list[Job]:
        """Return at most `limit` jobs with ids greater than `after`, oldest first.

        Raises:
            NotFoundError: no such collection.
        """
        ...

    def counts(self, job: Job) -> dict[ItemStatus, int]:
        """Return the number of items by status, without statuses that no item has."""
        ...

    def outcomes(self, job: Job, after: int, limit: int) -> list[Outcome]:
        """Return at most `limit` outcomes with numbers greater than `after`, in the order of the items."""
        ...

    @changes
    def cancel(self, collection: str, token: str, *, actor: str | None = None) -> Job:
        """Cancel the job unless it is finished, and return it. Faces that it enrolled stay enrolled.

        Raises:
            NotFoundError: no such collection or job.
        """
        ...

    @changes
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject as `Gallery.remove_subject` does, and its pending items.

        Raises:
            NotFoundError: no such collection; or no such subject, and no pending item of it.
        """
        ...


class JobWorker(Protocol):
    """Works on one bulk job at a time. No two workers of any process work on the same job.

    A worker holds a job for LEASE_S seconds after `claim` and each `keep`.
    """

    @changes
    def claim(self, postponed: Container[int] = ()) -> Job | None:
        """Take the oldest job that no other worker has and whose id is not in `postponed`; None if there is none."""
        ...

    @changes
    def keep(self, job: Job) -> bool:
        """Renew the lease; False where the job is finished or another worker's."""
        ...

    @changes
    def release(self, job: Job) -> None:
        """Release the lease."""
        ...

    def pending(self, job: Job, pictures: int) -> list[Item]:
        """Return the next batch of items, all of one kind; at most `pictures` images."""
        ...

    @changes
    def enrol(self, job: Job, results: Sequence[ProcessedItem], fingerprint: str) -> bool:
        """Enrol faces that the pipeline `fingerprint` found; False if the job is finished or another worker's.

        Items that are no longer pending, because their subject was erased, are skipped.

        Raises:
            ConflictError: the collection belongs to another pipeline.
        """
        ...

    @changes
    def finish(self, job: Job, state: JobResult, problem: str | None = None) -> None:
        """Finish the job and delete its items, unless it is another worker's now.

        A job that is done has failed if all its items failed.
        """
        ...
