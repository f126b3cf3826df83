"""What is loaded: by model and part, the least recently used first, within a budget of memory."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from weakref import WeakSet

import structlog

from app.inference.loaded_model import LoadedModel
from app.observability.metrics import Metrics

log = structlog.get_logger()

Key = tuple[str, str]  # a model's name and that of its part


class Shelf:
    """Loads that are under way or done. Who was given a model may use it for as long as they hold it.

    So what is taken off answers all who have it, and is gone when the last of them lets go: nobody is waited for.
    `budget` is in bytes of what stays; None: there is no end to it. What is `kept` is never evicted.
    """

    def __init__(self, budget: int | None, kept: Collection[Key], metrics: Metrics):
        self.budget = budget
        self._kept = frozenset(kept)
        self._metrics = metrics
        self._loads: dict[Key, asyncio.Future[LoadedModel]] = {}
        self._alive: WeakSet[LoadedModel] = WeakSet()

    @property
    def used(self) -> int:
        """Bytes of what is on it."""
        return sum(model.size for model in self._alive if not model.retired)

    @property
    def leaving(self) -> int:
        """Bytes of what was taken off and still has users."""
        return sum(model.size for model in self._alive if model.retired)

    def alive(self) -> list[LoadedModel]:
        """All there is, on it and taken off."""
        return list(self._alive)

    def get(self, key: Key) -> asyncio.Future[LoadedModel] | None:
        """The load, which is the most recently used now."""
        load = self._loads.pop(key, None)
        if load is not None:
            self._loads[key] = load
        return load

    def put(self, key: Key, load: asyncio.Future[LoadedModel]) -> None:
        """A load that begins; `arrived` follows, or `drop`."""
        self._loads[key] = load

    def arrived(self, key: Key, load: asyncio.Future[LoadedModel], model: LoadedModel) -> None:
        """The load came to this; what is too much now is evicted."""
        self._alive.add(model)
        if self._loads.get(key) is not load:  # it was taken off meanwhile: it is for those who wait for it
            model.retired = True
            return
        self._metrics.loaded.labels(model.card.name, model.card.version).set(1)
        self.resized(model.card.name)

    def resized(self, name: str) -> None:
        """The model takes more or less than before; what is too much now is evicted."""
        self._tell(name)
        self.make_room(0)

    def add(self, model: LoadedModel) -> None:
        """One that was loaded beside it."""
        key, load = (model.card.name, model.part.name), asyncio.get_running_loop().create_future()
        self.put(key, load)
        self.arrived(key, load, model)
        load.set_result(model)

    def take_off(self, name: str) -> None:
        """All of the model, for those who ask from now on."""
        for key in [key for key in self._loads if key[0] == name]:
            self._take(key)

    def drop(self, key: Key, load: asyncio.Future[LoadedModel]) -> None:
        """It failed: the next who asks tries again."""
        if self._loads.get(key) is load:
            del self._loads[key]

    def loads(self, name: str | None = None) -> list[asyncio.Future[LoadedModel]]:
        """Of the model (None: of all), those under way among them."""
        return [load for (of, _), load in self._loads.items() if name in (None, of)]

    def parts(self, name: str) -> list[LoadedModel]:
        """What of the model is loaded."""
        return [load.result() for load in self.loads(name) if _is_loaded(load)]

    def make_room(self, size: int) -> None:
        """Evict until so many bytes more are within the budget, as far as there is something to evict."""
        for key in list(self._loads):
            if self.budget is None or self.used + size <= self.budget:
                return
            if key not in self._kept and _is_loaded(self._loads[key]):
                self._take(key)
                self._metrics.evictions.labels(key[0]).inc()
                log.info("model_evicted", model=key[0], part=key[1])

    def _take(self, key: Key) -> None:
        load = self._loads.pop(key)
        if not _is_loaded(load):  # who waits for it gets it, and it was never on the shelf
            return
        model = load.result()
        model.retired = True
        card = model.card
        if not any(part.card.version == card.version for part in self.parts(card.name)):
            self._metrics.unloaded(card.name, card.version)
        self._tell(card.name)

    def _tell(self, name: str) -> None:
        size = sum(model.size for model in self._alive if model.card.name == name and not model.retired)
        self._metrics.memory.labels(name).set(size)


def _is_loaded(load: asyncio.Future[LoadedModel]) -> bool:
    return load.done() and not load.cancelled() and load.exception() is None
