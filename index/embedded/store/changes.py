"""Changes of a gallery as methods: decorated by `committing`, a method runs in a write of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import apsw

from index import protocol
from index.embedded.store import idempotency_records
from index.embedded.store.ledger import Ledger, Write

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Change(protocol.PlannedChange[T]):
    """A write that is not submitted yet; `after` as in `Ledger.submit`."""

    ledger: Ledger
    write: Callable[[apsw.Connection], T]
    after: Write | None = None

    def then(self, answer: Callable[[T], U]) -> Change[U]:
        """See `index.protocol.PlannedChange`."""
        return replace(self, write=lambda db: answer(self.write(db)))  # type: ignore[arg-type,return-value]

    def once(self, key: str, request: bytes, encode: Callable[[T], str], decode: Callable[[str], T]) -> Change[T]:
        """See `index.protocol.PlannedChange`.

        The result is stored encrypted by `request`, which is not stored. So neither a collection's key nor the erasure
        of a subject has to cover it: it can only be read by a caller who sends the same request again.
        """

        def write(db: apsw.Connection) -> T:
            stored = idempotency_records.find(db, key, request)
            if stored is not None:
                return decode(stored)
            result = self.write(db)
            idempotency_records.insert(db, key, request, encode(result))
            return result

        return replace(self, write=write)

    def submit(self) -> Future[T]:
        """See `Ledger.submit`."""
        return self.ledger.submit(self.write, self.after)


class Committing(Generic[P, T]):
    """A bound method decorated by `committing`; see `index.protocol.ChangingMethod`."""

    def __init__(self, plan: Callable[P, Change[T]]):
        self.planned = plan

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Commit the change, wait until it is durable, and return its result."""
        return self.planned(*args, **kwargs).submit().result()


class committing(Generic[P, T]):  # noqa: N801  a decorator
    """Decorate a method that runs in a write of `self.ledger` and gets the connection as its first argument.

    A call without the connection commits the write and returns its result, `method.planned(...)` returns the Change.
    """

    def __init__(self, write: Callable[Concatenate[Any, apsw.Connection, P], T]):
        self._write = write
        self.__doc__ = write.__doc__

    def __get__(self, instance: Any, owner: type) -> Committing[P, T]:
        return Committing(partial(self._planned, instance))

    def _planned(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> Change[T]:
        return Change(instance.ledger, lambda db: self._write(instance, db, *args, **kwargs), self._after(instance))

    def _after(self, instance: Any) -> Write | None:
        """Return the function to call after the commit; see `Ledger.submit`."""
        return None
