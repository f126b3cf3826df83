"""Which models there are, which are loaded and warm, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import structlog
import torch
from torch import Tensor

from app.batcher import Batched, Batcher, Expired, QueueFull, Stopped
from app.errors import DeadlineExceeded, NotReady, Overloaded, UnknownModel
from app.metrics import Metrics
from app.settings import Settings
from models import checkpoint, runtime
from models.card import ModelCard
from models.registry import Task

T = TypeVar("T")

log = structlog.get_logger()

# Of a model that is loaded for what it sees in a picture, without its classes.
FEATURES = ":features"
STORE_THREADS = 8

# What goes through a network at once, in pixels of all its pictures: a full batch of classifiers' pictures, and few of
# a detector's, whose maps are large.
MOST_PIXELS = 32 * 256 * 256


@dataclass(frozen=True)
class Prepared:
    """A model that has run once; `dimensions` is how many numbers, or maps, it answers a picture with."""

    card: ModelCard
    engine: runtime.Runtime
    dimensions: int


class LoadedModel:
    """One model, warm, behind its own queue."""

    def __init__(self, prepared: Prepared, batcher: Batcher[Tensor, Tensor], metrics: Metrics):
        self.card = prepared.card
        self.runtime = prepared.engine.name
        self.dimensions = prepared.dimensions
        self._batcher = batcher
        self._metrics = metrics

    async def infer(self, picture: Tensor, wait_s: float) -> Batched[Tensor]:
        """One preprocessed picture [C, H, W] -> the network's output for it.

        Raises:
            Overloaded, DeadlineExceeded, NotReady.
        """
        try:
            batched = await self._batcher.submit(picture, wait_s)
        except QueueFull as error:
            self._metrics.shed.labels("queue").inc()
            raise Overloaded(f"the queue of {self.card.name} is full", {"Retry-After": "1"}) from error
        except Expired as error:
            raise DeadlineExceeded(f"{self.card.name} was not free within {wait_s:.0f} s") from error
        except Stopped as error:
            raise NotReady("the service is stopping") from error
        self._metrics.queued.labels(self.card.name).observe(batched.queued_s)
        return batched

    async def stop(self) -> None:
        """Answer what waits, then take no more."""
        await self._batcher.stop()


class Engine:
    """The models of one weights folder. Cards are read at once, weights on first use."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self._folders = _read_cards(settings.weights)
        self._loads: dict[str, asyncio.Task[LoadedModel]] = {}
        # The model's own threads use the cores; one caller at a time keeps two models from fighting over them.
        self._compute = ThreadPoolExecutor(1, "compute")
        self._decode = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        # What waits for a disk must not keep pictures from being decoded.
        self._store = ThreadPoolExecutor(STORE_THREADS, "store")
        self._defaults: dict[Task, str] = {
            "classify": settings.default_classifier,
            "detect": settings.default_detector,
            "embed": settings.default_embedder,
        }
        self._card_of(settings.default_classifier, "classify")

    @property
    def cards(self) -> Mapping[str, ModelCard]:
        """Every model that can be asked for, by name."""
        return MappingProxyType({name: card for name, (card, _) in self._folders.items()})

    def is_default(self, card: ModelCard) -> bool:
        """Whether this model answers where none is named."""
        return self._defaults.get(card.task) == card.name

    def loaded(self, name: str) -> LoadedModel | None:
        """The model, if it is loaded now."""
        load = self._loads.get(name)
        return load.result() if load and load.done() and not load.cancelled() and not load.exception() else None

    async def start(self) -> None:
        """Load and warm what readiness asks for."""
        await self.model(None, "classify")

    async def stop(self) -> None:
        """Answer what waits, then let go of everything."""
        for load in list(self._loads.values()):
            await asyncio.wait([load])
        for name in list(self._loads):
            if model := self.loaded(name):
                await model.stop()
        self._compute.shutdown()
        self._decode.shutdown()
        self._store.shutdown()

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
        return await self._loaded(card, FEATURES)

    async def model(self, name: str | None, task: Task) -> LoadedModel:
        """The named model (None: the default for the task), loaded if it was not.

        Raises:
            UnknownModel: no such name, or a model for another task. NotReady: its files do not fit together.
        """
        return await self._loaded(self._card_of(self._defaults[task] if name is None else name, task))

    async def _loaded(self, card: ModelCard, suffix: str = "") -> LoadedModel:
        key = card.name + suffix
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = asyncio.create_task(self._load(card.name, suffix))
        try:
            # Shielded: a caller that leaves must not take the load from those who wait with it.
            return await asyncio.shield(load)
        except ValueError as error:  # a CheckpointError, or a card whose preprocessing the network cannot read
            self._loads.pop(key, None)
            log.error("model_refused", model=card.name, error=str(error))
            raise NotReady(f"the files of {card.name} are not whole") from error

    def _card_of(self, name: str, task: Task) -> ModelCard:
        card = self.cards.get(name)
        if card is None or card.task != task:
            known = ", ".join(sorted(card.name for card in self.cards.values() if card.task == task)) or "none"
            raise UnknownModel(f"{name[:64]!r} is not a model for this task; there are: {known}")
        return card

    async def _load(self, name: str, suffix: str) -> LoadedModel:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        folder, features = self._folders[name][1], suffix == FEATURES
        prepared = await loop.run_in_executor(self._compute, partial(_prepare, folder, features=features))
        card, ready = prepared.card, prepared.engine

        async def run(pictures: Sequence[Tensor]) -> list[Tensor]:
            clock = time.perf_counter()
            outputs = await loop.run_in_executor(self._compute, _run, ready, pictures)
            self._metrics.computed.labels(name).observe(time.perf_counter() - clock)
            self._metrics.batch_size.labels(name).observe(len(pictures))
            return outputs

        batcher = Batcher(run, self._settings.max_batch, self._settings.queue_size)
        self._metrics.loaded.labels(name, card.version).set(1)
        seconds = round(time.perf_counter() - started, 3)
        log.info("model_loaded", model=name, version=card.version, runtime=ready.name, seconds=seconds)
        return LoadedModel(prepared, batcher, self._metrics)


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


def _run(ready: runtime.Runtime, pictures: Sequence[Tensor]) -> list[Tensor]:
    """The network's output for each picture, in their order; pictures of one shape go through together."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, picture in enumerate(pictures):
        shapes.setdefault(picture.shape, []).append(index)
    outputs: dict[int, Tensor] = {}
    for shape, indices in shapes.items():
        size = max(1, MOST_PIXELS // (shape[-2] * shape[-1]))
        for first in range(0, len(indices), size):
            group = indices[first : first + size]
            outputs |= zip(group, ready(torch.stack([pictures[index] for index in group])), strict=True)
    return [outputs[index] for index in range(len(pictures))]


def _prepare(folder: Path, *, features: bool) -> Prepared:
    """Load, and run once, so that no user pays for the first call."""
    module, card = checkpoint.load(folder)
    ready = runtime.prepare(module.get_submodule("features") if features else module)
    answer = ready(torch.zeros(1, *card.preprocess.shape))
    return Prepared(card, ready, answer.shape[1])
