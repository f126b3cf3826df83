"""The service that lists, describes and reloads models."""

from __future__ import annotations

import asyncio

from app.auth.keys import ApiKeys
from app.errors import NotFound, raise_if_full
from app.inference.model_manager import ModelManager
from app.inference.reload_sync import ReloadSync
from app.models_api.schemas import ModelDetail, ModelList, ModelMemory, ModelReloaded, ModelSummary
from models.card import ModelCard


class Models:
    """Lists, describes and reloads the served models."""

    def __init__(self, model_manager: ModelManager, keys: ApiKeys, reload_sync: ReloadSync):
        self._model_manager = model_manager
        self._keys = keys
        self._reload_sync = reload_sync

    def models(self) -> ModelList:
        """Return all models, sorted by name."""
        cache = self._model_manager.cache
        memory = ModelMemory(used=cache.used_bytes, leaving=cache.retired_bytes, budget=cache.budget)
        data = [
            ModelSummary(
                name=card.name,
                version=card.version,
                task=card.task,
                description=card.description,
                license=card.license,
                parameters=card.parameters,
                classes=len(card.classes),
                default=self._model_manager.is_default(card),
                loaded=self._model_manager.is_loaded(card.name),
                memory_bytes=self._memory(card),
            )
            for card in self._model_manager.cards.values()
        ]
        return ModelList(data=data, memory=memory)

    def model(self, name: str) -> ModelDetail:
        """Return a model's card and state.

        Raises:
            NotFound: there is no such model.
        """
        card = self._model_manager.cards.get(name)
        if card is None:
            raise NotFound("there is no such model; GET /models lists the models")
        # The whole network, whose name is empty, first.
        submodels = sorted(self._model_manager.cache.submodels(name), key=lambda model: model.submodel.name)
        return ModelDetail(
            version=card.version,
            default=self._model_manager.is_default(card),
            loaded=bool(submodels),
            memory_bytes=self._memory(card),
            runtime=submodels[0].runtime.name if submodels else None,
            runtimes={submodel.submodel.name: submodel.runtime.name for submodel in submodels},
            choosing=any(submodel.choice for submodel in submodels),
            card=card,
        )

    async def reload(self, name: str, actor: str | None) -> ModelReloaded:
        """Reload the model from its files, in all workers. `actor` is the id of the requesting key, for the audit log.

        Raises:
            NotFound, ModelRefused, Conflict: see `ModelManager.reload`. DiskFull: it is reloaded in this worker, but
            other workers are not notified and the audit log has no entry.
        """
        # Shielded: if the client disconnects, other workers are still notified and the audit entry is written.
        return await asyncio.shield(asyncio.ensure_future(self._reload(name, actor)))

    async def _reload(self, name: str, actor: str | None) -> ModelReloaded:
        done = await self._model_manager.reload(name)
        now, before = (card.version if card else None for card in (done.now, done.before))
        try:
            await asyncio.to_thread(self._reload_sync.announce, name)
            if done.change != "unchanged":
                await asyncio.to_thread(self._keys.note_reload, now, actor)
        except Exception as error:
            raise_if_full(error)
            raise
        return ModelReloaded(model=name, change=done.change, version=now, previous=before)

    def _memory(self, card: ModelCard) -> int:
        return sum(submodel.runtime.size for submodel in self._model_manager.cache.submodels(card.name))
