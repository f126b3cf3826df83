"""Least-recently-used cache of loaded models, with a memory budget."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from weakref import WeakSet

import structlog

from app.inference.loaded_model import LoadedModel
from app.observability.metrics import Metrics

log = structlog.get_logger()

Key = tuple[str, str]  # model name, submodel name


class ModelCache:
    """Cache of model loads, in progress or finished.

    `loads`: the least recently used first. `models`: all models in memory. Callers may keep using a model after its
    removal from the cache: a removed model is `retired`, and its memory is freed when the last caller drops it.
    `budget` limits the bytes of the models in the cache; None: no limit. Keys in `pinned` are never evicted.
    """

    def __init__(self, budget: int | None, pinned: Collection[Key], metrics: Metrics):
        self.budget = budget
        self.loads: OrderedDict[Key, asyncio.Future[LoadedModel]] = OrderedDict()
        self.models: WeakSet[LoadedModel] = WeakSet()
        self._pinned = frozenset(pinned)
        self._metrics = metrics

    @property
    def used_bytes(self) -> int:
        """Memory of the models in the cache."""
        return sum(model.runtime.size for model in self.models if not model.retired)

    @property
    def retired_bytes(self) -> int:
        """Memory of removed models that callers still hold."""
        return sum(model.runtime.size for model in self.models if model.retired)

    def finish(self, model: LoadedModel, *, retired: bool = False) -> None:
        """Add the model of a load, and evict others as the budget requires. `retired`: the load was removed meanwhile,
        and only the callers that wait for it get the model.
        """
        self.models.add(model)
        model.retired = retired
        if not retired:
            self._metrics.loaded.labels(model.card.name, model.version).set(1)
            self.update_size(model.card.name)

    def update_size(self, name: str) -> None:
        """Account for a model's changed size, and evict others as the budget requires."""
        self._report_size(name)
        self.evict_for(0)

    def add(self, model: LoadedModel) -> None:
        """Add a model that was loaded outside the cache."""
        load = self.loads[model.card.name, model.submodel.name] = asyncio.get_running_loop().create_future()
        self.finish(model)
        load.set_result(model)

    def remove(self, name: str) -> None:
        """Remove all submodels of a model."""
        for key in [key for key in self.loads if key[0] == name]:
            self._remove(key)

    def loads_of(self, name: str) -> list[asyncio.Future[LoadedModel]]:
        """Return the loads of a model and its submodels, in progress or finished."""
        return [load for (model, _), load in self.loads.items() if model == name]

    def submodels(self, name: str) -> list[LoadedModel]:
        """Return the model's loaded submodels."""
        return [load.result() for load in self.loads_of(name) if _is_loaded(load)]

    def evict_for(self, size: int) -> None:
        """Evict models until `size` more bytes fit into the budget, or none is left that may be evicted."""
        for key in list(self.loads):
            if self.budget is None or self.used_bytes + size <= self.budget:
                return
            if key not in self._pinned and _is_loaded(self.loads[key]):
                self._remove(key)
                self._metrics.evictions.labels(key[0]).inc()
                log.info("model_evicted", model=key[0], part=key[1])

    def _remove(self, key: Key) -> None:
        load = self.loads.pop(key)
        if not _is_loaded(load):  # `finish` retires its model
            return
        model = load.result()
        model.retired = True
        name, version = model.card.name, model.version
        if not any(other.version == version for other in self.submodels(name)):
            self._metrics.unloaded(name, version)
        self._report_size(name)

    def _report_size(self, name: str) -> None:
        size = sum(model.runtime.size for model in self.models if model.card.name == name and not model.retired)
        self._metrics.memory.labels(name).set(size)


def _is_loaded(load: asyncio.Future[LoadedModel]) -> bool:
    return load.done() and not load.cancelled() and load.exception() is None
