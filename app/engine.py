"""Which models there are, which are loaded and warm, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

# What goes through a network at once, in pixels of all its pictures: a full batch of classifiers' pictures, and few of
# a detector's, whose maps are large.
MOST_PIXELS = 32 * 256 * 256


class LoadedModel:
    """One model, warm, behind its own queue."""

    def __init__(self, card: ModelCard, engine: runtime.Runtime, batcher: Batcher[Tensor, Tensor], metrics: Metrics):
        self.card = card
        self.runtime = engine.name
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

    async def decoded(self, function: Callable[[], T]) -> T:
        """Run something that decodes pictures off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decode, function)

    async def model(self, name: str | None, task: Task) -> LoadedModel:
        """The named model (None: the default for the task), loaded if it was not.

        Raises:
            UnknownModel: no such name, or a model for another task. NotReady: its files do not fit together.
        """
        card = self._card_of(self._defaults[task] if name is None else name, task)
        load = self._loads.get(card.name)
        if load is None:
            load = self._loads[card.name] = asyncio.create_task(self._load(card.name))
        try:
            # Shielded: a caller that leaves must not take the load from those who wait with it.
            return await asyncio.shield(load)
        except ValueError as error:  # a CheckpointError, or a card whose preprocessing the network cannot read
            self._loads.pop(card.name, None)
            log.error("model_refused", model=card.name, error=str(error))
            raise NotReady(f"the files of {card.name} are not whole") from error

    def _card_of(self, name: str, task: Task) -> ModelCard:
        card = self.cards.get(name)
        if card is None or card.task != task:
            known = ", ".join(sorted(card.name for card in self.cards.values() if card.task == task)) or "none"
            raise UnknownModel(f"{name[:64]!r} is not a model for this task; there are: {known}")
        return card

    async def _load(self, name: str) -> LoadedModel:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        card, ready = await loop.run_in_executor(self._compute, _prepare, self._folders[name][1])

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
        return LoadedModel(card, ready, batcher, self._metrics)


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


def _prepare(folder: Path) -> tuple[ModelCard, runtime.Runtime]:
    """Load, and run once, so that no user pays for the first call."""
    module, card = checkpoint.load(folder)
    ready = runtime.prepare(module)
    ready(torch.zeros(1, *card.preprocess.shape))
    return card, ready
