"""Changes of a gallery as methods: decorated by `committing`, a method runs in a write of the ledger."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import apsw

from index.embedded.store import idempotency_records
from index.embedded.store.ledger import Ledger, Write
from index.engine.committing import CommittingDecorator, EngineChange

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Change(EngineChange[apsw.Connection, T]):
    """A write that is not submitted yet; `after` as in `Ledger.submit`."""

    ledger: Ledger
    after: Write | None = None

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

    def commit(self) -> T:
        """See `EngineChange`."""
        return self.submit().result()


class committing(CommittingDecorator[apsw.Connection, P, T]):  # noqa: N801  a decorator
    """Decorate a method that runs in a write of `self.ledger`; see `CommittingDecorator`."""

    def change(self, instance: Any, write: Callable[[apsw.Connection], T]) -> Change[T]:
        """See `CommittingDecorator`."""
        return Change(write, instance.ledger, self._after(instance))

    def _after(self, instance: Any) -> Write | None:
        """Return the function to call after the commit; see `Ledger.submit`."""
        return None
