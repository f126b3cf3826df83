"""Re-embeddings of collections and the workers on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from index.protocol.changes import changes
from index.types import Floats, PendingCrop, Reembedding, ReembeddingProgress

FIRST = -(2**63)  # less than every id of a `PendingCrop`


class Reembeddings(Protocol):
    """Request, watch and cancel re-embeddings of collections by another pipeline, from the stored crops."""

    @changes
    def begin(
        self,
        collection: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        actor: str | None = None,
    ) -> ReembeddingProgress:
        """Request a re-embedding with this pipeline; `actor` as in `Gallery`.

        Raises:
            NotFoundError: no such collection. ConflictError: it has vectors of that pipeline already, or is being
            re-embedded, or a face has no crop. InvalidError: the actor may be a name.
        """
        ...

    def progress(self, collection: str) -> ReembeddingProgress:
        """Return the progress of the collection's re-embedding.

        Raises:
            NotFoundError: no such collection, or it is not being re-embedded.
        """
        ...

    @changes
    def cancel(self, collection: str, *, actor: str | None = None) -> ReembeddingProgress:
        """Cancel the re-embedding and return its last progress. The collection keeps its vectors.

        Raises:
            NotFoundError: see `progress`.
        """
        ...


class ReembeddingWorker(Protocol):
    """Works on one re-embedding at a time. No two workers of any process work on the same collection."""

    def waiting(self) -> list[Reembedding]:
        """Return the re-embeddings without a worker whose keys are available, oldest first."""
        ...

    @changes
    def claim(self, reembedding: Reembedding) -> bool:
        """Take the lease; False where another worker has it, or the re-embedding has ended."""
        ...

    @changes
    def keep(self, reembedding: Reembedding) -> bool:
        """Renew the lease; False where another worker has it, or the re-embedding has ended."""
        ...

    @changes
    def release(self, reembedding: Reembedding) -> None:
        """Release the lease."""
        ...

    def pending(self, reembedding: Reembedding, after: int, limit: int) -> list[PendingCrop]:
        """Return at most `limit` crops without a new vector, whose ids are greater than `after`, ascending."""
        ...

    @changes
    def stage(self, reembedding: Reembedding, vectors: Mapping[int, Floats]) -> bool:
        """Store new vectors [D] by the ids of `pending`; False where another worker has the lease, or it has ended.

        Faces that were erased meanwhile are skipped.

        Raises:
            InvalidError: see `Gallery.enrol`.
        """
        ...

    def prepare(self, reembedding: Reembedding) -> None:
        """Index the vectors that are stored so far, if an engine can before the switch. May take hours: `keep` on."""
        ...

    @changes
    def switch(self, reembedding: Reembedding) -> int | None:
        """Replace the old vectors unless new ones are missing; return the number of missing vectors (0: done).

        None where another worker has the lease, or the re-embedding has ended. The switch is recorded in the audit log
        and has a receipt.
        """
        ...

    @changes
    def block(self, reembedding: Reembedding, problem: str) -> None:
        """Store why the re-embedding cannot continue. A worker retries it when the lease has expired."""
        ...
