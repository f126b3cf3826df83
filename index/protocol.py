"""The interface of a gallery that app/ uses, independent of the storage engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

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
    Subject,
)

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


class PlannedChange(Protocol[T]):
    """A change of a gallery that is not submitted yet."""

    def then(self, answer: Callable[[T], U]) -> PlannedChange[U]:
        """Return the same change with the result `answer(result)`, computed before the commit.

        If `answer` raises, nothing is changed.
        """
        ...

    def submit(self) -> Future[T]:
        """Submit the change; the future has its result once it is durable."""
        ...


class ChangingMethod(Protocol[P, T]):
    """A method that changes a gallery."""

    @property
    def planned(self) -> Callable[P, PlannedChange[T]]:
        """The method that returns the change without submitting it, for callers that await it in no thread."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Commit the change, wait until it is durable, and return its result."""
        ...


class _ChangingMethodDescriptor(Protocol[P, T]):
    def __get__(self, instance: object, owner: type) -> ChangingMethod[P, T]: ...


def changes(method: Callable[Concatenate[Any, P], T]) -> _ChangingMethodDescriptor[P, T]:
    """Declare a method of the interface as a ChangingMethod."""
    return cast("_ChangingMethodDescriptor[P, T]", method)


class Gallery(Protocol):
    """Collections of subjects, which have faces. Every change is durable when it returns.

    Every method raises NotFoundError if a collection, a subject or a face does not exist, and LockedError if it needs a
    key that is missing. An expired subject does not exist, although it can still be erased. Every change is in the
    audit log; `actor` is the id of the API key that asked for it, and anything else raises InvalidError.
    """

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

    def search(
        self,
        collection: str,
        queries: Floats,
        k: int = 5,
        fusion: Fusion = "best",
        fingerprint: str | None = None,
    ) -> list[list[Match]]:
        """Return for each query [N, D] the `k` most similar subjects, the most similar first.

        The similarity of a subject is that of its nearest face ("best"), or the mean over all its faces ("mean").
        `fingerprint`: the pipeline of the queries, None for the collection's. Queries are scaled to length 1.

        Raises:
            InvalidError, ConflictError: see `enrol`.
        """
        ...

    def note_search(self, collection: str, found: Iterable[Subject], *, actor: str | None = None) -> None:
        """Add a search and the subjects in its results to the audit log; durable within seconds."""
        ...
