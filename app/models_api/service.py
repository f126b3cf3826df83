"""List models, describe one, and reload one from its files."""

from __future__ import annotations

import asyncio

from app.auth.keys import ApiKeys
from app.errors import NotFound, full_disk
from app.inference.model_manager import Engine
from app.inference.reload_sync import Reloads
from app.models_api.schemas import ModelDetail, ModelList, ModelMemory, ModelReloaded, ModelSummary
from models.card import ModelCard


class Models:
    """The models of the service, as `/models` shows them."""

    def __init__(self, engine: Engine, keys: ApiKeys, reloads: Reloads):
        self._engine = engine
        self._keys = keys
        self._reloads = reloads

    def models(self) -> ModelList:
        """Every model, in the order of names."""
        shelf = self._engine.shelf
        memory = ModelMemory(used=shelf.used, leaving=shelf.leaving, budget=shelf.budget)
        return ModelList(data=[self._summary(card) for card in self._engine.cards.values()], memory=memory)

    def model(self, name: str) -> ModelDetail:
        """One model's card.

        Raises:
            NotFound: no model of that name.
        """
        card = self._engine.cards.get(name)
        if card is None:
            raise NotFound("no model of that name; GET /models lists them")
        loaded = self._engine.loaded(name)
        return ModelDetail(
            version=card.version,
            default=self._engine.is_default(card),
            loaded=loaded is not None,
            memory_bytes=self._memory(card),
            runtime=loaded.runtime if loaded else None,
            choosing=any(part.choosing for part in self._engine.parts(name)),
            card=card,
        )

    async def reload(self, name: str, actor: str | None) -> ModelReloaded:
        """The model as its files are now; the other workers follow. `actor` is the id of the key that asked for it.

        Raises:
            NotFound, ModelRefused, Conflict: see `Engine.reload`. DiskFull: it is reloaded here, but other workers
            and the audit log do not know.
        """
        # Shielded as the reload itself is: where the client leaves, the others and the audit log are told all the same.
        return await asyncio.shield(asyncio.ensure_future(self._reloaded(name, actor)))

    async def _reloaded(self, name: str, actor: str | None) -> ModelReloaded:
        done = await self._engine.reload(name)
        now, before = (card.version if card else None for card in (done.now, done.before))
        with full_disk():
            await asyncio.to_thread(self._reloads.tell, name)
            if done.change != "unchanged":
                await asyncio.to_thread(self._keys.note_reload, now, actor)
        return ModelReloaded(model=name, change=done.change, version=now, previous=before)

    def _summary(self, card: ModelCard) -> ModelSummary:
        return ModelSummary(
            name=card.name,
            version=card.version,
            task=card.task,
            description=card.description,
            license=card.license,
            parameters=card.parameters,
            classes=len(card.classes),
            default=self._engine.is_default(card),
            loaded=self._engine.loaded(card.name) is not None,
            memory_bytes=self._memory(card),
        )

    def _memory(self, card: ModelCard) -> int:
        return sum(part.size for part in self._engine.parts(card.name))
