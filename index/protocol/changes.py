"""Methods that change a gallery, and the changes that they plan."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

IDEMPOTENCY_S = 86_400.0  # how long the result of a change is kept for its idempotency key


class PlannedChange(Protocol[T]):
    """A change of a gallery that is not submitted yet."""

    def then(self, answer: Callable[[T], U]) -> PlannedChange[U]:
        """Return the same change with the result `answer(result)`, computed before the commit.

        If `answer` raises, nothing is changed.
        """
        ...

    def once(
        self, key: str, request: bytes, encode: Callable[[T], str], decode: Callable[[str], T]
    ) -> PlannedChange[T]:
        """Return a change that is made at most once for the idempotency key `key`.

        The encoded result is stored in the change's own transaction for at least IDEMPOTENCY_S. If a change with this
        key was committed before, nothing is changed, and the result is the stored one, decoded. `request` is a digest
        of what the caller sent: `submit`'s future raises ConflictError if the stored change had another.

        Encode ids and measurements only, no names, metadata, crops or vectors: the stored result may outlive the
        erasure of its subject. `request` must depend on data that nobody can guess, such as an image, because an engine
        may encrypt the result by it.
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
