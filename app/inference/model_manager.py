"""Which models there are, which are loaded and warm, and the threads they run on."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

import structlog

from app.errors import Conflict, ModelRefused, NotFound, NotReady, OutOfMemory, UnknownModel
from app.inference import loader, model_repository
from app.inference.batcher import TooLarge
from app.inference.executors import Long, Pool
from app.inference.loaded_model import LoadedModel, Runner
from app.inference.loader import Prepared
from app.inference.model_cache import Shelf
from app.inference.submodels import FEATURES, WHOLE, Part, first_part
from app.observability.metrics import Metrics
from app.settings import Settings, variable
from models.card import ModelCard
from models.registry import Task
from models.runtime import Runtime
from models.runtime_selection import RuntimeSelector

T = TypeVar("T")

log = structlog.get_logger()

STORE_THREADS = 8
WORK_THREADS = 4  # two for each of bulk jobs and re-embedding: a step, and the renewal of its lease beside it
STEPS_BACK = 5  # of `nice`, for threads that compute
BYTES = 4  # of a parameter

# The setting that names the default model of each task.
_DEFAULTS: dict[Task, str] = {
    "classify": "default_classifier",
    "detect": "default_detector",
    "embed": "default_embedder",
    "generate": "default_generator",
    "denoise": "default_denoiser",
    "reconstruct": "default_autoencoder",
}


def _step_back() -> None:
    """Let other threads go before this one and those that it begins. Where requests are read and pictures decoded
    before networks run, batches are larger; a network that has the machine to itself loses nothing.
    """
    os.nice(STEPS_BACK)


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Abandoned(Exception):
    """The service stops, or the model is let go of, before a runtime is chosen."""


Change = Literal["added", "reloaded", "unchanged", "removed"]


@dataclass(frozen=True)
class Reloaded:
    """What became of a model that was asked to be read anew; the cards are None where there was none, or is none."""

    change: Change
    before: ModelCard | None
    now: ModelCard | None


class Engine:
    """The models of one weights folder. Cards are read at once, weights on first use."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self._folders = model_repository.read_all(settings.weights)
        kept = (settings.default_classifier, settings.default_detector, settings.default_embedder)
        budget = None if settings.model_memory_mb is None else settings.model_memory_mb * 2**20
        self.shelf = Shelf(budget, [(name, WHOLE.name) for name in kept], metrics)
        self._reloading = asyncio.Lock()
        self._choices: set[asyncio.Task[None]] = set()
        self._stopping = False
        # The model's own threads use the cores; one caller at a time keeps two models from fighting over them.
        self._compute = ThreadPoolExecutor(1, "compute", initializer=_step_back)
        # What reads weights and what compiles them keep nobody from being answered, nor each other from going on.
        self._load_thread = ThreadPoolExecutor(1, "load")
        self._choose_thread = ThreadPoolExecutor(1, "choose", initializer=_step_back)
        self._decode = Pool(_processors(), "decode", _step_back)
        # What waits for a disk must not keep pictures from being decoded.
        self._store = ThreadPoolExecutor(STORE_THREADS, "store")
        # Background work waits for commits; on a slow disk that must not keep requests from reading.
        self._work = ThreadPoolExecutor(WORK_THREADS, "work")
        self._defaults: dict[Task, str] = {task: getattr(settings, field) for task, field in _DEFAULTS.items()}
        self._check_defaults()

    def _check_defaults(self) -> None:
        """Check that the default classifier, and every default that was set, names a model for its task.

        Raises:
            UnknownModel: the message names the variable.
        """
        for task, field in _DEFAULTS.items():
            if task == "classify" or field in self._settings.model_fields_set:
                try:
                    self.card(None, task)
                except UnknownModel as error:
                    raise UnknownModel(f"{variable(field)}: {error.detail}") from None

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
        return self.shelf.parts(name)

    @property
    def troubles(self) -> list[str]:
        """Why the service does not answer all that it should, as of the last minute."""
        return sorted({model.trouble for model in self.shelf.alive() if model.trouble})

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
        async with self._reloading:
            for load in self.shelf.loads():
                await asyncio.wait([load])
        for model in self.shelf.alive():
            await model.stop()
        await asyncio.gather(*self._choices)
        self._decode.stop()
        for executor in (self._compute, self._load_thread, self._choose_thread, self._store, self._work):
            executor.shutdown()

    async def decoded(self, function: Callable[[], T | Long[T]], *, is_long: bool = False) -> T:
        """Run something that decodes pictures off the event loop; see `Pool.run`."""
        return await self._decode.run(function, is_long=is_long)

    async def stored(self, function: Callable[[], T]) -> T:
        """Run something that reads files off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._store, function)

    async def worked(self, function: Callable[[], T]) -> T:
        """Run a step of background work, which may wait for files to be written, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._work, function)

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
        key = card.name, part.name
        load = self.shelf.get(key)
        if load is None:
            load = asyncio.create_task(self._load(card.name, part))
            self.shelf.put(key, load)
        try:
            # Shielded: a caller that leaves must not take the load from those who wait with it.
            return await asyncio.shield(load)
        except Exception as error:
            self.shelf.drop(key, load)
            if not isinstance(error, ValueError):
                raise
            # A CheckpointError, or a card whose preprocessing the network cannot read.
            log.error("model_refused", model=card.name, error=str(error))
            raise NotReady(
                f"the files of {card.name} are not whole, or were exchanged: "
                f"POST /models/{card.name}/reload says more, and takes them in"
            ) from error

    async def _load(self, name: str, part: Part) -> LoadedModel:
        load = asyncio.current_task()
        assert load is not None  # noqa: S101  it is one
        if name not in self._folders:
            raise UnknownModel(f"{name} was removed")
        card, folder = self._folders[name]
        self.shelf.make_room(card.parameters * BYTES)
        model, prepared = await self._made(card, folder, part)
        self.shelf.arrived((name, part.name), load, model)
        self._begin_choice(model, prepared)
        return model

    async def _made(self, card: ModelCard, folder: Path, part: Part) -> tuple[LoadedModel, Prepared]:
        """A part of the model, warm.

        Raises:
            ValueError, RuntimeError: its files do not fit together. UnknownModel: no such part. OutOfMemory.
        """
        started = time.perf_counter()
        loop, given = asyncio.get_running_loop(), (folder, card, part, self._settings)
        try:
            prepared = await loop.run_in_executor(self._load_thread, loader.prepare, *given)
            dimensions = await loop.run_in_executor(self._compute, loader.dimensions, prepared)
        except TooLarge as error:
            log.error("out_of_memory", model=card.name, error=str(error))
            raise OutOfMemory(f"{card.name} does not fit into the device's memory beside what is loaded") from error
        runner = Runner(prepared, self._compute, self._metrics)
        model = LoadedModel(prepared, dimensions, runner, self._settings, self._metrics)
        seconds = round(time.perf_counter() - started, 3)
        log.info("model_loaded", model=card.name, part=part.name, version=card.version, seconds=seconds)
        return model, prepared

    async def reload(self, name: str) -> Reloaded:
        """Read what lies in the weights folder under this name by now, and serve that from the next request on.

        It is loaded beside what serves, and checked by running it once; only then it takes over. Who was given the old
        one goes on with it.

        Raises:
            NotFound: nothing is there, nor was. ModelRefused: it is not whole, or fits not together. Conflict: without
            it there would be no default classifier. OutOfMemory: it does not fit beside what is loaded. In all these
            cases all stays as it was.
        """
        # Shielded: it is done wholly or not at all, whether or not somebody waits for that.
        return await asyncio.shield(asyncio.ensure_future(self._reload(name)))

    async def _reload(self, name: str) -> Reloaded:
        async with self._reloading:
            try:
                reloaded = await self._exchanged(name)
            except (ModelRefused, Conflict):
                self._metrics.reloads.labels(name, "refused").inc()
                raise
        self._metrics.reloads.labels(name, reloaded.change).inc()
        log.info("model_reloaded", model=name, change=reloaded.change)
        return reloaded

    async def _exchanged(self, name: str) -> Reloaded:
        folder = self._settings.weights / name
        before, _ = self._folders.get(name, (None, folder))
        card = await self.stored(lambda: model_repository.read(folder))
        if card is None and before is None:
            raise NotFound(f"there is no model {name!r} in the weights folder")
        if name == self._settings.default_classifier and (card is None or card.task != "classify"):
            raise Conflict(f"{name} is the default classifier, and what lies in its place by now is none")
        if card is None:
            del self._folders[name]
            self.shelf.take_off(name)
            return Reloaded("removed", before, None)
        if loads := self.shelf.loads(name):
            await asyncio.wait(loads)
        fresh = await self._checked(card, folder)
        # From here on nobody else has a say before all of it is done.
        if card != before:
            self.shelf.take_off(name)
            self._folders = dict(sorted((self._folders | {name: (card, folder)}).items()))
        for model, prepared in fresh:
            if model.part not in [part.part for part in self.parts(name)]:
                self.shelf.add(model)
                self._begin_choice(model, prepared)
        change: Change = "added" if before is None else "unchanged" if card == before else "reloaded"
        return Reloaded(change, before, card)

    async def _checked(self, card: ModelCard, folder: Path) -> list[tuple[LoadedModel, Prepared]]:
        """What answers for the model, and its parts that are loaded of what is there so far.

        Raises:
            ModelRefused.
        """
        first = first_part(card)
        made = []
        for part in dict.fromkeys([first, *(model.part for model in self.parts(card.name))]):
            try:
                made.append(await self._made(card, folder, part))
            except UnknownModel as error:
                if part == first:
                    raise ModelRefused(error.detail) from error
            except (ValueError, RuntimeError) as error:
                log.error("model_refused", model=card.name, error=str(error))
                raise ModelRefused(model_repository.told(error, folder)) from error
        return made

    def _begin_choice(self, model: LoadedModel, prepared: Prepared) -> None:
        if prepared.choice is None:
            return
        model.choosing = True
        choosing = asyncio.create_task(self._choose(model, prepared.choice, prepared.runtime))
        self._choices.add(choosing)
        choosing.add_done_callback(self._choices.discard)

    async def _choose(self, model: LoadedModel, choice: RuntimeSelector, reference: Runtime) -> None:
        """Let the fastest runtime that agrees with torch answer for the model, which is served meanwhile."""

        def turn(work: Callable[[], T]) -> T:
            """Between the batches of those who are served."""
            if self._stopping or model.retired:
                raise _Abandoned
            return self._compute.submit(work).result()

        loop = asyncio.get_running_loop()
        try:
            runtime, verdict = await loop.run_in_executor(
                self._choose_thread, choice.select, reference, self._settings.probes, turn
            )
        except _Abandoned:
            return
        except Exception:
            # Whatever a compiler or a full disk does to it: torch serves.
            log.exception("runtime_not_chosen", model=model.card.name)
        else:
            model.switch(runtime)
            self.shelf.resized(model.card.name)
            figures = verdict.model_dump() if verdict else {}
            log.info("runtime_chosen", model=model.card.name, runtime=runtime.name, **figures)
        model.choosing = False
