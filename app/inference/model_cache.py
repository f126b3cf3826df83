"""Least-recently-used cache of loaded models, with a memory budget."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from weakref import WeakSet

import structlog

from app.inference.loaded_model import LoadedModel
from app.observability.metrics import Metrics

log = structlog.get_logger()

Key = tuple[str, str]  # model name, submodel name


class ModelCache:
    """Cache of model loads, in progress or finished.

    Callers may keep using a model after its removal: a removed model is `retired`, and its memory is freed when the
    last caller drops it. `budget` limits the bytes of the models in the cache; None: no limit. Keys in `pinned` are
    never evicted.
    """

    def __init__(self, budget: int | None, pinned: Collection[Key], metrics: Metrics):
        self.budget = budget
        self._pinned = frozenset(pinned)
        self._metrics = metrics
        self._loads: dict[Key, asyncio.Future[LoadedModel]] = {}  # the least recently used first
        self._models: WeakSet[LoadedModel] = WeakSet()

    @property
    def used_bytes(self) -> int:
        """Memory of the models in the cache."""
        return sum(model.size for model in self._models if not model.retired)

    @property
    def retired_bytes(self) -> int:
        """Memory of removed models that callers still hold."""
        return sum(model.size for model in self._models if model.retired)

    def all_models(self) -> list[LoadedModel]:
        """Return all models in memory, including retired ones."""
        return list(self._models)

    def get(self, key: Key) -> asyncio.Future[LoadedModel] | None:
        """Return the load, and mark it as the most recently used."""
        load = self._loads.pop(key, None)
        if load is not None:
            self._loads[key] = load
        return load

    def put(self, key: Key, load: asyncio.Future[LoadedModel]) -> None:
        """Add a load that starts now. Call `finish` or `discard` when it ends."""
        self._loads[key] = load

    def finish(self, key: Key, load: asyncio.Future[LoadedModel], model: LoadedModel) -> None:
        """Add the load's model, and evict others as the budget requires."""
        self._models.add(model)
        if self._loads.get(key) is not load:  # removed meanwhile: only its waiting callers get the model
            model.retired = True
            return
        self._metrics.loaded.labels(model.card.name, model.card.version).set(1)
        self.update_size(model.card.name)

    def update_size(self, name: str) -> None:
        """Account for a model's changed size, and evict others as the budget requires."""
        self._report_size(name)
        self.evict_for(0)

    def add(self, model: LoadedModel) -> None:
        """Add a model that was loaded outside the cache."""
        key, load = (model.card.name, model.submodel.name), asyncio.get_running_loop().create_future()
        self.put(key, load)
        self.finish(key, load, model)
        load.set_result(model)

    def remove(self, name: str) -> None:
        """Remove all submodels of a model."""
        for key in [key for key in self._loads if key[0] == name]:
            self._remove(key)

    def discard(self, key: Key, load: asyncio.Future[LoadedModel]) -> None:
        """Remove a failed load, so that the next caller tries again."""
        if self._loads.get(key) is load:
            del self._loads[key]

    def loads(self, name: str | None = None) -> list[asyncio.Future[LoadedModel]]:
        """Return the loads of a model (None: of all models), in progress or finished."""
        return [load for (model, _), load in self._loads.items() if name in (None, model)]

    def submodels(self, name: str) -> list[LoadedModel]:
        """Return the model's loaded submodels."""
        return [load.result() for load in self.loads(name) if _is_loaded(load)]

    def evict_for(self, size: int) -> None:
        """Evict models until `size` more bytes fit into the budget, or none is left that may be evicted."""
        for key in list(self._loads):
            if self.budget is None or self.used_bytes + size <= self.budget:
                return
            if key not in self._pinned and _is_loaded(self._loads[key]):
                self._remove(key)
                self._metrics.evictions.labels(key[0]).inc()
                log.info("model_evicted", model=key[0], part=key[1])

    def _remove(self, key: Key) -> None:
        load = self._loads.pop(key)
        if not _is_loaded(load):  # `finish` retires its model
            return
        model = load.result()
        model.retired = True
        card = model.card
        if not any(other.card.version == card.version for other in self.submodels(card.name)):
            self._metrics.unloaded(card.name, card.version)
        self._report_size(card.name)

    def _report_size(self, name: str) -> None:
        size = sum(model.size for model in self._models if model.card.name == name and not model.retired)
        self._metrics.memory.labels(name).set(size)


def _is_loaded(load: asyncio.Future[LoadedModel]) -> bool:
    return load.done() and not load.cancelled() and load.exception() is None
