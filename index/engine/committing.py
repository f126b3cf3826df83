"""Methods of an engine that change a gallery; the engines define how a change is committed.

C is the type of the engine's connection in a transaction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from index.protocol import PlannedChange

C = TypeVar("C")
P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class EngineChange(PlannedChange[T], ABC, Generic[C, T]):
    """A change that is not submitted yet: `write` runs in a transaction of its own."""

    write: Callable[[C], T]

    def then(self, answer: Callable[[T], U]) -> EngineChange[C, U]:
        """See `PlannedChange`."""
        return replace(self, write=lambda db: answer(self.write(db)))  # type: ignore[arg-type,return-value]

    @abstractmethod
    def commit(self) -> T:
        """Commit the change, wait until it is durable, and return its result."""


class Committing(Generic[P, T]):
    """A bound method decorated by an engine's decorator; see `index.protocol.ChangingMethod`."""

    def __init__(self, plan: Callable[P, EngineChange[Any, T]]):
        self.planned = plan

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Commit the change, wait until it is durable, and return its result."""
        return self.planned(*args, **kwargs).commit()


class CommittingDecorator(ABC, Generic[C, P, T]):
    """Decorates a method that runs in a transaction and gets the connection as its first argument.

    A call without the connection commits the change and returns its result, `method.planned(...)` returns the change.
    """

    def __init__(self, write: Callable[Concatenate[Any, C, P], T]):
        self._write = write
        self.__doc__ = write.__doc__

    def __get__(self, instance: Any, owner: type) -> Committing[P, T]:
        return Committing(partial(self._planned, instance))

    def _planned(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> EngineChange[C, T]:
        return self.change(instance, lambda db: self._write(instance, db, *args, **kwargs))

    @abstractmethod
    def change(self, instance: Any, write: Callable[[C], T]) -> EngineChange[C, T]:
        """Return the change of the gallery that `instance` works on."""
