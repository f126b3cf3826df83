"""What the service needs of a gallery, whichever it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from index.embedded.store.records import Collection, CountedSubject, Face, Floats, NewFace, Receipt, Subject

Fusion = Literal["best", "mean"]


@dataclass(frozen=True)
class Match:
    """A subject, how alike it is (a cosine), and the token of its nearest face."""

    subject: Subject
    similarity: float
    face: str


@dataclass(frozen=True)
class Usage:
    """How much a collection holds; `exact` where every face is compared. `file_bytes` are its segments' and index's."""

    subjects: int
    faces: int
    exact: bool
    file_bytes: int


class Gallery(Protocol):
    """Collections of subjects, who have faces. All that changes something is durable when it returns.

    Every method raises NotFoundError where a collection, a subject or a face is not there, and LockedError where it
    needs a key that is not here. A subject whose time is over is not there, although it can still be erased. Every
    change is in the audit log; `actor` is the id of the key by which it was asked for, or InvalidError is raised.
    """

    def create(
        self,
        name: str,
        embedder: str,
        fingerprint: str,
        dimensions: int,
        *,
        encrypted: bool = False,
        actor: str | None = None,
        **settings: Any,
    ) -> Collection:
        """A new collection for the vectors of one pipeline. `encrypted`: nothing of who is in it is written openly.

        Raises:
            ConflictError: there is one of that name. LockedError: it is to be encrypted, and there is no key for that.
        """
        ...

    def collection(self, name: str) -> Collection:
        """The collection."""
        ...

    def collections(self, after: str = "", limit: int = 100) -> list[Collection]:
        """In the order of names, those after `after`."""
        ...

    def drop(self, name: str, *, actor: str | None = None) -> Receipt:
        """Erase the collection and all in it."""
        ...

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
        """Make the subject, or give it these properties in place of those it had. `expires_at`: seconds since 1970.

        Raises:
            InvalidError: see `index.validation.check_subject`; or `expires_at` is in the past.
        """
        ...

    def subject(self, collection: str, key: str) -> CountedSubject:
        """The subject."""
        ...

    def subjects(self, collection: str, after: str = "", limit: int = 100) -> list[CountedSubject]:
        """In the order of keys, those after `after`."""
        ...

    def remove_subject(self, collection: str, key: str, *, actor: str | None = None) -> Receipt:
        """Erase the subject and all its faces."""
        ...

    def enrol(
        self, collection: str, faces: Sequence[NewFace], fingerprint: str, *, actor: str | None = None
    ) -> list[Face]:
        """Add faces that the pipeline `fingerprint` made, all or none. Subjects that are not there yet are made.

        Vectors are scaled to length 1.

        Raises:
            ConflictError: the collection is another pipeline's. InvalidError: a vector that is not finite, has no
            direction or other dimensions; or a key or details that cannot be stored.
        """
        ...

    def faces(self, collection: str, key: str, after: int = 0, limit: int = -1) -> list[Face]:
        """The subject's faces in the order they were enrolled, those with ids above `after`; all if `limit` is -1."""
        ...

    def crop(self, collection: str, face: str) -> bytes:
        """The encoded picture that was kept of a face."""
        ...

    def remove_faces(self, collection: str, faces: Sequence[str], *, actor: str | None = None) -> Receipt:
        """Erase these faces; their subjects stay. Where one is not there, all stay."""
        ...

    def receipt(self, token: str) -> Receipt:
        """What became of an erasure."""
        ...

    def size(self, collection: str) -> int:
        """How many faces a search looks at."""
        ...

    def usage(self, collection: str) -> Usage:
        """How much the collection holds."""
        ...

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """For each query [N, D] the `k` likest subjects, likest first.

        A subject is as like as its likest face, or (`mean`) as all its faces on average. `fingerprint` is that of
        the pipeline which made the queries (None: the collection's, whichever it is). Queries are scaled to length 1.

        Raises:
            InvalidError, ConflictError: see `enrol`.
        """
        ...

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """Put a search into the audit log, with the subjects that the caller was told of; durable within seconds."""
        ...
