"""Collections of subjects and faces, searches of them, and feedback on these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from index.protocol.changes import changes
from index.types import (
    Collection,
    CollectionUsage,
    CountedSubject,
    Face,
    Floats,
    Fusion,
    Match,
    NewFace,
    Receipt,
    Rejection,
    SearchScope,
    Subject,
    Where,
)


class Gallery(Protocol):
    """Collections of subjects, which have faces. Every change is durable when it returns.

    Several processes may use the same gallery at the same time.

    Every method raises NotFoundError if a collection, a subject or a face does not exist, and LockedError if it needs a
    key that is missing. An expired subject does not exist, although it can still be erased. Every change is in the
    audit log; `actor` is the id of the API key that asked for it, and anything else raises InvalidError.
    """

    def clock(self) -> float:
        """Return the time by which subjects expire and leases end, in seconds since 1970."""
        ...

    @changes
    def create(
        self,
        /,  # else no setting could be called `self`
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Collection:
        """Create a collection for the vectors of one pipeline.

        `encrypted`: nothing that identifies a subject is stored as plain text.

        Raises:
            ConflictError: a collection of that name exists. LockedError: it is to be encrypted, and there is no
                operator's key.
        """
        ...

    def collection(self, name: str) -> Collection:
        """Return the collection."""
        ...

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """Return at most `limit` collections whose names are greater than `after`, sorted by name."""
        ...

    @changes
    def drop(self, name: str, *, actor: str | None = None) -> Receipt:
        """Erase the collection and everything in it."""
        ...

    @changes
    def put_subject(
        self,
        collection: str,
        key: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: float | None = None,
        actor: str | None = None,
    ) -> CountedSubject:
        """Create the subject, or replace its properties. `expires_at`: seconds since 1970.

        Raises:
            InvalidError: see `index.validation.check_subject`; or `expires_at` is in the past.
        """
        ...

    def subject(self, collection: str, key: str) -> CountedSubject:
        """Return the subject."""
        ...

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """Return at most `limit` subjects that follow the key `after`, in an order that does not change."""
        ...

    @changes
    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject and all its faces."""
        ...

    @changes
    def enrol(
        self, collection: str, faces: Sequence[NewFace], fingerprint: str, *, actor: str | None = None
    ) -> list[Face]:
        """Add the faces, whose vectors come from the pipeline `fingerprint`, all or none, and return them.

        Subjects that do not exist are created. Vectors are scaled to length 1.

        Raises:
            ConflictError: the collection has another pipeline. InvalidError: a vector is not finite, is zero or has
                another number of dimensions; or a key or details cannot be stored.
        """
        ...

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """Return at most `limit` faces of the subject (-1: all) with ids above `after`, in the order of enrolment."""
        ...

    def crop(self, collection: str, face: str) -> bytes:
        """Return the encoded crop that was stored with a face."""
        ...

    @changes
    def remove_faces(self, collection: str, faces: Sequence[str], *, actor: str | None = None) -> Receipt:
        """Erase the faces with these tokens, all or none; their subjects are kept."""
        ...

    def receipt(self, token: str) -> Receipt:
        """Return the receipt of an erasure."""
        ...

    def size(self, collection: str) -> int:
        """Return how many faces a search compares or looks up."""
        ...

    def usage(self, collection: str) -> CollectionUsage:
        """Return the size of the collection."""
        ...

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """Add a search and the subjects in its results to the audit log; durable within seconds."""
        ...


class Searches(Protocol):
    """Searches of a gallery. All methods raise NotFoundError, and LockedError as `Gallery` does.

    `fingerprint`: the pipeline of the queries, None for the collection's; ConflictError if it is another, for example
    because the collection was re-embedded meanwhile. Queries are scaled to length 1; InvalidError as `Gallery.enrol`.
    """

    def scope(self, collection: str, where: Where | None = None) -> SearchScope:
        """Return the collection, its usage and the numbers that the filter selects, of one moment."""
        ...

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        *,
        fusion: Fusion = "best",
        where: Where | None = None,
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """Return for each query [N, D] the `k` most similar subjects that match the filter, the most similar first.

        The similarity of a subject is that of its nearest face ("best"), or the mean over all its faces ("mean").
        Subjects that feedback rules out for a query are left out. Filter and feedback apply before the best `k` are
        taken, so that `k` subjects are returned if there are that many.
        """
        ...

    def compare(
        self,
        collection: str,
        key: str,
        query: Floats,
        *,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> tuple[Match | None, bool]:
        """Compare a face [D] with one subject.

        Return the match, None where the subject has no face, and whether feedback rules it out.
        """
        ...


class Feedback(Protocol):
    """Faces that callers reported not to be a subject.

    A search does not return a subject for a face that is at least as similar to such a rejected face as to the subject.
    """

    @changes
    def add(
        self,
        collection: str,
        key: str,
        vectors: Floats,
        crops: Sequence[bytes | None] | None = None,
        fingerprint: str | None = None,
        actor: str | None = None,
    ) -> list[Rejection]:
        """Store that these faces [N, D] are not the subject. They are erased with the subject.

        Raises:
            NotFoundError: no such collection or subject. InvalidError, ConflictError: see `Searches`.
        """
        ...

    def of_subject(
        self, collection: str, key: str, after: tuple[float, int] = (0.0, 0), limit: int = -1
    ) -> list[Rejection]:
        """Return at most `limit` rejected faces of the subject (-1: all), by `created_at` and `id`, above `after`.

        Raises:
            NotFoundError: no such collection or subject.
        """
        ...

    @changes
    def remove(self, collection: str, key: str, token: str, *, actor: str | None = None) -> Receipt:
        """Erase a rejected face, so that it no longer affects searches.

        Raises:
            NotFoundError: no such collection, subject or rejected face.
        """
        ...
