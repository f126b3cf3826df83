"""Which models there are, which are loaded and warm, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import structlog

from app import loading
from app.errors import NotReady, UnknownModel
from app.loaded import LoadedModel, Runner
from app.metrics import Metrics
from app.parts import FEATURES, WHOLE, Part
from app.settings import Settings
from models import checkpoint
from models.card import ModelCard
from models.choice import Choice
from models.registry import Task
from models.runtime import Runtime

__all__ = ["Engine", "LoadedModel"]

T = TypeVar("T")

log = structlog.get_logger()

STORE_THREADS = 8


class _Abandoned(Exception):
    """The service stops before a runtime is chosen."""


class Engine:
    """The models of one weights folder. Cards are read at once, weights on first use."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self._folders = _read_cards(settings.weights)
        self._loads: dict[str, asyncio.Task[LoadedModel]] = {}
        self._choices: set[asyncio.Task[None]] = set()
        self._stopping = False
        # The model's own threads use the cores; one caller at a time keeps two models from fighting over them.
        self._compute = ThreadPoolExecutor(1, "compute")
        # What reads weights and what compiles them keep nobody from being answered, nor each other from going on.
        self._load_thread = ThreadPoolExecutor(1, "load")
        self._choose_thread = ThreadPoolExecutor(1, "choose")
        self._decode = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        # What waits for a disk must not keep pictures from being decoded.
        self._store = ThreadPoolExecutor(STORE_THREADS, "store")
        self._defaults: dict[Task, str] = {
            "classify": settings.default_classifier,
            "detect": settings.default_detector,
            "embed": settings.default_embedder,
            "generate": settings.default_generator,
            "denoise": settings.default_denoiser,
            "reconstruct": settings.default_autoencoder,
        }
        self.card(None, "classify")

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """Every model that can be asked for, by name."""
        return MappingProxyType({name: card for name, (card, _) in self._folders.items()})

    def is_default(self, card: ModelCard) -> bool:
        """Whether this model answers where none is named."""
        return self._defaults.get(card.task) == card.name

    def loaded(self, name: str) -> LoadedModel | None:
        """The model, or a part of it, if one is loaded now."""
        return next(iter(self.parts(name)), None)

    def parts(self, name: str) -> list[LoadedModel]:
        """What of the model is loaded now."""
        keys = [key for key in self._loads if key.partition(":")[0] == name]
        return [model for model in map(self._ready, keys) if model]

    def _ready(self, key: str) -> LoadedModel | None:
        load = self._loads.get(key)
        return load.result() if load and load.done() and not load.cancelled() and not load.exception() else None

    @property
    def required(self) -> list[tuple[str, Task]]:
        """What readiness asks for: the default classifier and, as far as their weights are there, the face pair."""
        tasks: tuple[Task, ...] = ("classify", "detect", "embed")
        wanted: list[tuple[str, Task]] = [(self._defaults[task], task) for task in tasks]
        return [(name, task) for name, task in wanted if name in self._folders]

    async def start(self) -> None:
        """Load and warm what readiness asks for.

        Raises:
            NotReady: the default classifier's files do not fit together. Without the face pair the service starts; it
            is not ready then.
        """
        loads = (self.model(name, task) for name, task in self.required)
        classifier, *faces = await asyncio.gather(*loads, return_exceptions=True)
        if isinstance(classifier, BaseException):
            raise classifier
        for error in faces:
            if isinstance(error, BaseException):
                log.error("not_ready", error=str(error))

    async def stop(self) -> None:
        """Answer what waits, then let go of everything."""
        self._stopping = True
        for load in list(self._loads.values()):
            await asyncio.wait([load])
        for key in list(self._loads):
            if model := self._ready(key):
                await model.stop()
        await asyncio.gather(*self._choices)
        for executor in (self._compute, self._load_thread, self._choose_thread, self._decode, self._store):
            executor.shutdown()

    async def decoded(self, function: Callable[[], T]) -> T:
        """Run something that decodes pictures off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decode, function)

    async def stored(self, function: Callable[[], T]) -> T:
        """Run something that waits for files off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._store, function)

    async def embedder(self, name: str | None) -> LoadedModel:
        """The model as one that embeds: the named embedder (None: the default), or a classifier's features.

        Raises:
            UnknownModel: no such name, or a model that does neither. NotReady: its files do not fit together.
        """
        card = self.cards.get(self._defaults["embed"] if name is None else name)
        if card is None or card.task != "classify":
            return await self.model(name, "embed")
        return await self.part(card, FEATURES)

    async def model(self, name: str | None, task: Task) -> LoadedModel:
        """The named model (None: the default for the task), loaded if it was not.

        Raises:
            UnknownModel: no such name, or a model for another task. NotReady: its files do not fit together.
        """
        return await self.part(self.card(name, task), WHOLE)

    def card(self, name: str | None, *tasks: Task) -> ModelCard:
        """The card of the named model (None: the default for the first task), of a model for one of the tasks.

        Raises:
            UnknownModel: no such name, or a model for another task.
        """
        asked = self._defaults[tasks[0]] if name is None else name
        card = self.cards.get(asked)
        if card is None or card.task not in tasks:
            known = ", ".join(sorted(card.name for card in self.cards.values() if card.task in tasks)) or "none"
            raise UnknownModel(f"{asked[:64]!r} is not a model for this task; there are: {known}")
        return card

    async def part(self, card: ModelCard, part: Part) -> LoadedModel:
        """A part of the model that has this card, loaded if it was not.

        Raises:
            UnknownModel: a network without such a part. NotReady: its files do not fit together.
        """
        key = f"{card.name}:{part.name}"
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = asyncio.create_task(self._load(card.name, part))
        try:
            # Shielded: a caller that leaves must not take the load from those who wait with it.
            return await asyncio.shield(load)
        except ValueError as error:  # a CheckpointError, or a card whose preprocessing the network cannot read
            self._loads.pop(key, None)
            log.error("model_refused", model=card.name, error=str(error))
            raise NotReady(f"the files of {card.name} are not whole") from error

    async def _load(self, name: str, part: Part) -> LoadedModel:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        card, folder = self._folders[name]
        prepared = await loop.run_in_executor(self._load_thread, loading.prepare, folder, card, part, self._settings)
        dimensions = await loop.run_in_executor(self._compute, loading.dimensions, prepared)
        runner = Runner(prepared, self._compute, self._metrics)
        model = LoadedModel(prepared, dimensions, runner, self._settings, self._metrics)
        self._metrics.loaded.labels(name, card.version).set(1)
        seconds = round(time.perf_counter() - started, 3)
        log.info("model_loaded", model=name, part=part.name, version=card.version, seconds=seconds)
        if prepared.choice is not None:
            model.choosing = True
            choosing = asyncio.create_task(self._choose(model, prepared.choice, prepared.runtime))
            self._choices.add(choosing)
            choosing.add_done_callback(self._choices.discard)
        return model

    async def _choose(self, model: LoadedModel, choice: Choice, reference: Runtime) -> None:
        """Let the fastest runtime that agrees with torch answer for the model, which is served meanwhile."""

        def turn(work: Callable[[], T]) -> T:
            """Between the batches of those who are served."""
            if self._stopping:
                raise _Abandoned
            return self._compute.submit(work).result()

        loop = asyncio.get_running_loop()
        try:
            runtime, verdict = await loop.run_in_executor(
                self._choose_thread, choice.made, reference, self._settings.probes, turn
            )
        except _Abandoned:
            return
        except Exception:
            # Whatever a compiler or a full disk does to it: torch serves.
            log.exception("runtime_not_chosen", model=model.card.name)
        else:
            model.switch(runtime)
            figures = verdict.model_dump() if verdict else {}
            log.info("runtime_chosen", model=model.card.name, runtime=runtime.name, **figures)
        model.choosing = False


def _read_cards(weights: Path) -> dict[str, tuple[ModelCard, Path]]:
    """Cards and folders by name; a folder that is refused is told of in the log and is not served."""
    found: dict[str, tuple[ModelCard, Path]] = {}
    for path in sorted(weights.glob(f"*/{checkpoint.CARD_FILE}")):
        try:
            card = checkpoint.read_card(path.parent)
        except checkpoint.CheckpointError as error:
            log.error("model_refused", folder=path.parent.name, error=str(error))
            continue
        if card.name != path.parent.name:
            log.error("model_refused", folder=path.parent.name, error=f"its card is that of {card.name}")
            continue
        found[card.name] = (card, path.parent)
    return found
