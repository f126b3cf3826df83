"""Which models there are, which are loaded and warm, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import structlog
import torch
from torch import Tensor, nn

from app.batcher import Batched, Batcher, Expired, QueueFull, Stopped
from app.errors import DeadlineExceeded, NotReady, Overloaded, UnknownModel
from app.metrics import Metrics
from app.parts import FEATURES, WHOLE, Part
from app.settings import Settings
from models import checkpoint, runtime
from models.card import ModelCard
from models.choice import Kind, prepare
from models.registry import Task

T = TypeVar("T")

log = structlog.get_logger()

STORE_THREADS = 8

# What goes through a network at once, in pixels of all its pictures: a full batch of classifiers' pictures, and few of
# a detector's, whose maps are large.
MOST_PIXELS = 32 * 256 * 256


@dataclass(frozen=True)
class Prepared:
    """A model or a part of it that has run once; `dimensions` is how many numbers, or maps, it answers an item with."""

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

    async def infer(self, item: Tensor, wait_s: float) -> Batched[Tensor]:
        """One item, as a preprocessed picture [C, H, W] -> the network's output for it.

        Raises:
            Overloaded, DeadlineExceeded, NotReady.
        """
        try:
            batched = await self._batcher.submit(item, wait_s)
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
        keys = (key for key in list(self._loads) if key.partition(":")[0] == name)
        return next(filter(None, map(self._ready, keys)), None)

    def _ready(self, key: str) -> LoadedModel | None:
        load = self._loads.get(key)
        return load.result() if load and load.done() and not load.cancelled() and not load.exception() else None

    async def start(self) -> None:
        """Load and warm what readiness asks for."""
        await self.model(None, "classify")

    async def stop(self) -> None:
        """Answer what waits, then let go of everything."""
        for load in list(self._loads.values()):
            await asyncio.wait([load])
        for key in list(self._loads):
            if model := self._ready(key):
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
        prepared = await loop.run_in_executor(self._compute, _prepare, self._folders[name][1], part, self._settings)
        card, ready = prepared.card, prepared.engine
        compute = _run if part.rows is None else partial(run_filled, part)

        async def run(items: Sequence[Tensor]) -> list[Tensor]:
            clock = time.perf_counter()
            outputs = await loop.run_in_executor(self._compute, compute, ready, items)
            self._metrics.computed.labels(name).observe(time.perf_counter() - clock)
            self._metrics.batch_size.labels(name).observe(len(items))
            return outputs

        batcher = Batcher(run, part.rows or self._settings.max_batch, self._settings.queue_size)
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


def run_filled(part: Part, ready: runtime.Runtime, items: Sequence[Tensor]) -> list[Tensor]:
    """The part's output for each of at most `part.rows` items of one shape; zeros fill the batch."""
    missing = (part.rows or 0) - len(items)
    batch = torch.stack([*items, *(torch.zeros_like(items[0]) for _ in range(missing))])
    with runtime.one_thread() if part.exact else nullcontext():
        return list(ready(batch)[: len(items)])


def _prepare(folder: Path, part: Part, settings: Settings) -> Prepared:
    """Load, and run once, so that no user pays for the first call."""
    module, card = checkpoint.load(folder)
    if not part.fits(module):
        raise UnknownModel(f"{card.name} has no {part.name}")
    ready = _runtime(part.cut(module), card, part, settings)
    (answer,) = run_filled(part, ready, [torch.zeros(part.example(card))])
    return Prepared(card, ready, answer.shape[0])


def _runtime(module: nn.Module, card: ModelCard, part: Part, settings: Settings) -> runtime.Runtime:
    """The fastest that agrees with torch where pictures have one shape, and torch for all else."""
    if (card.task, part) not in {("classify", WHOLE), ("classify", FEATURES), ("embed", WHOLE)}:
        return runtime.prepare(module)
    kind: Kind = "logits" if card.task == "classify" and part == WHOLE else "vectors"
    key, folder = f"{card.sha256} {part.name}", settings.state / "compiled"
    ready, verdict = prepare(module, card.preprocess, kind, key, settings.probes, folder, settings.runtime)
    if verdict is not None:
        log.info("runtime_chosen", model=card.name, part=part.name, runtime=ready.name, **verdict.model_dump())
    return ready
