"""The models of the weights folder: find, load, reload and unload them, and select their runtimes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from app.errors import Conflict, ModelRefused, NotFound, NotReady, OutOfMemory, UnknownModel
from app.inference import loader, model_repository
from app.inference.batcher import TooLarge
from app.inference.executors import Executors
from app.inference.loaded_model import LoadedModel
from app.inference.model_cache import ModelCache
from app.inference.submodels import FEATURES, INT8, WHOLE, Submodel, default_submodel
from app.observability.metrics import Metrics
from app.settings import Settings, variable
from models.card import ModelCard
from models.registry import Task
from models.runtime_selection import RuntimeSelector

T = TypeVar("T")

log = structlog.get_logger()

BYTES_PER_PARAMETER = 4

# The setting that names the default model of each task.
_DEFAULTS: dict[Task, str] = {
    "classify": "default_classifier",
    "detect": "default_detector",
    "embed": "default_embedder",
    "generate": "default_generator",
    "denoise": "default_denoiser",
    "reconstruct": "default_autoencoder",
}


class _SelectionCancelled(Exception):
    """The service stops, or the model was retired, before a runtime was selected."""


Change = Literal["added", "reloaded", "unchanged", "removed"]


@dataclass(frozen=True)
class ReloadResult:
    """How a reload changed the model; a card is None if there was no model before or is none now."""

    change: Change
    before: ModelCard | None
    now: ModelCard | None


class ModelManager:
    """The models of one weights folder. Cards are read at construction, weights on first use.

    `cards`: by the model's name, which is that of its folder; sorted.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        self.cards = model_repository.read_all(settings.weights)
        pinned = (settings.default_classifier, settings.default_detector, settings.default_embedder)
        budget = None if settings.model_memory_mb is None else settings.model_memory_mb * 2**20
        self.cache = ModelCache(budget, [(name, WHOLE.name) for name in pinned], metrics)
        self.executors = Executors()
        self._reload_lock = asyncio.Lock()
        self._selections: set[asyncio.Task[None]] = set()
        self._stopping = False
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
                    self.find_card(None, task)
                except UnknownModel as error:
                    raise UnknownModel(f"{variable(field)}: {error.detail}") from None

    def is_default(self, card: ModelCard) -> bool:
        """Return whether this model serves its task's requests that name no model."""
        return self._defaults.get(card.task) == card.name

    def is_loaded(self, name: str) -> bool:
        """Return whether the model or a submodel of it is in memory."""
        return bool(self.cache.submodels(name))

    @property
    def degradations(self) -> list[str]:
        """The reasons why models failed requests within the last minute."""
        return sorted({model.degradation for model in self.cache.models if model.degradation})

    @property
    def required_models(self) -> list[tuple[str, Task]]:
        """Names and tasks of the models that readiness requires: the default classifier, and those of the default
        detector and embedder that are installed.
        """
        tasks: tuple[Task, ...] = ("classify", "detect", "embed")
        return [(self._defaults[task], task) for task in tasks if self._defaults[task] in self.cards]

    async def start(self) -> None:
        """Load and warm the required models.

        Raises:
            NotReady: the default classifier's files do not match each other. If the detector or embedder cannot be
                loaded, the service starts, but is not ready.
        """
        loads = (self.load(name, task) for name, task in self.required_models)
        classifier, *face_models = await asyncio.gather(*loads, return_exceptions=True)
        if isinstance(classifier, BaseException):
            raise classifier
        for error in face_models:
            if isinstance(error, BaseException):
                log.error("not_ready", error=str(error))

    async def stop(self) -> None:
        """Finish all queued work, then stop the threads."""
        self._stopping = True
        async with self._reload_lock:
            for load in list(self.cache.loads.values()):
                await asyncio.wait([load])
        for model in list(self.cache.models):
            await model.stop()
        await asyncio.gather(*self._selections)
        self.executors.stop()

    async def load_embedder(self, name: str | None, *, allow_int8: bool = False) -> LoadedModel:
        """Return a model that embeds: the named embedder (None: the default), or a classifier's features.

        With `allow_int8` an embedder may run its quantised network although vectors differ by more than its tolerance.

        Raises:
            UnknownModel: no such name, or a model that is neither. NotReady: its files do not match each other.
        """
        card = self.find_card(name, "embed", "classify")
        if card.task == "classify":
            return await self.load_submodel(card, FEATURES)
        return await self.load_submodel(card, INT8 if allow_int8 and card.has_int8_vectors else WHOLE)

    async def load(self, name: str | None, task: Task) -> LoadedModel:
        """Return the named model (None: the default for the task), loaded on first use.

        Raises:
            UnknownModel: no such name, or a model for another task. NotReady: its files do not match each other.
        """
        return await self.load_submodel(self.find_card(name, task), WHOLE)

    def find_card(self, name: str | None, *tasks: Task) -> ModelCard:
        """Return the named model's card (None: the default for the first task); the model is for one of the tasks.

        Raises:
            UnknownModel: no such name, or a model for another task.
        """
        name = self._defaults[tasks[0]] if name is None else name
        card = self.cards.get(name)
        if card is None or card.task not in tasks:
            names = ", ".join(sorted(card.name for card in self.cards.values() if card.task in tasks)) or "none"
            raise UnknownModel(f"{name[:64]!r} is not a model for this task; there are: {names}")
        return card

    async def load_submodel(self, card: ModelCard, submodel: Submodel) -> LoadedModel:
        """Return a submodel of the model with this card, loaded on first use.

        Raises:
            UnknownModel: the network has no such submodel. NotReady: its files do not match each other.
        """
        key = card.name, submodel.name
        load = self.cache.loads.get(key)
        if load is None:
            load = self.cache.loads[key] = asyncio.create_task(self._load(card.name, submodel))
        self.cache.loads.move_to_end(key)  # the most recently used
        try:
            # Shielded: cancelling one caller must not cancel the load for the others.
            return await asyncio.shield(load)
        except Exception as error:
            if self.cache.loads.get(key) is load:  # remove it, so that the next caller tries again
                del self.cache.loads[key]
            if not isinstance(error, ValueError):
                raise
            # A CheckpointError, or a card whose preprocessing the network cannot read.
            log.error("model_refused", model=card.name, error=str(error))
            raise NotReady(
                f"the files of {card.name} are incomplete or were replaced: "
                f"POST /models/{card.name}/reload reports why, and loads them once they match"
            ) from error

    async def _load(self, name: str, submodel: Submodel) -> LoadedModel:
        card = self.cards.get(name)
        if card is None:
            raise UnknownModel(f"{name} was removed")
        self.cache.evict_for(card.parameters * BYTES_PER_PARAMETER)
        model = await self._load_warm(card, submodel)
        self.cache.finish(model, retired=self.cards.get(name) is not card)
        self._start_selection(model)
        return model

    async def _load_warm(self, card: ModelCard, submodel: Submodel) -> LoadedModel:
        """Load a submodel and run one example.

        Raises:
            ValueError, RuntimeError: its files do not match each other. UnknownModel: no such submodel. OutOfMemory:
            it does not fit beside the loaded models.
        """
        started = time.perf_counter()
        loop, arguments = asyncio.get_running_loop(), (self._folder(card.name), card, submodel, self._settings)
        try:
            prepared = await loop.run_in_executor(self.executors.load, loader.prepare, *arguments)
            dimensions = await loop.run_in_executor(self.executors.compute, loader.output_dimensions, prepared)
        except TooLarge as error:
            log.error("out_of_memory", model=card.name, error=str(error))
            raise OutOfMemory(f"{card.name} does not fit into the device's memory beside the loaded models") from error
        seconds = round(time.perf_counter() - started, 3)
        log.info("model_loaded", model=card.name, part=submodel.name, version=card.version, seconds=seconds)
        return LoadedModel(prepared, dimensions, self.executors.compute, self._settings, self._metrics)

    async def reload(self, name: str) -> ReloadResult:
        """Read the model's folder again, and serve its present files from the next request on.

        The new model is loaded and checked by one run while the old one serves, and then replaces it. Callers that hold
        the old model continue to use it.

        Raises:
            NotFound: there is no such model, before or now. ModelRefused: its files are incomplete or do not match.
            Conflict: no default classifier would be left. OutOfMemory: it does not fit beside the loaded models. After
                any error or cancellation, the old model serves.
        """
        async with self._reload_lock:
            try:
                result = await self._replace(name)
            except (ModelRefused, Conflict):
                self._metrics.reloads.labels(name, "refused").inc()
                raise
        self._metrics.reloads.labels(name, result.change).inc()
        log.info("model_reloaded", model=name, change=result.change)
        return result

    async def _replace(self, name: str) -> ReloadResult:
        before = self.cards.get(name)
        card = await self.executors.run_io(lambda: model_repository.read(self._folder(name)))
        if card is None and before is None:
            raise NotFound(f"there is no model {name!r} in the weights folder")
        if name == self._settings.default_classifier and (card is None or card.task != "classify"):
            raise Conflict(f"{name} is the default classifier, and its folder holds no classifier now")
        if card is None:
            del self.cards[name]
            self.cache.remove(name)
            return ReloadResult("removed", before, None)
        if loads := self.cache.loads_of(name):
            await asyncio.wait(loads)
        replacements = await self._load_replacements(card)
        # No await from here on: requests see either the old model or the new one.
        if card != before:
            self.cache.remove(name)
            self.cards = dict(sorted((self.cards | {name: card}).items()))
        for model in replacements:
            if model.submodel not in [loaded.submodel for loaded in self.cache.submodels(name)]:
                self.cache.add(model)
                self._start_selection(model)
        change: Change = "added" if before is None else "unchanged" if card == before else "reloaded"
        return ReloadResult(change, before, card)

    async def _load_replacements(self, card: ModelCard) -> list[LoadedModel]:
        """Load the new model's default submodel, and each loaded submodel of the old model that the new one also has.

        Raises:
            ModelRefused: its files do not match each other, or the default submodel is missing.
        """
        default = default_submodel(card)
        replacements = []
        for submodel in dict.fromkeys([default, *(model.submodel for model in self.cache.submodels(card.name))]):
            try:
                replacements.append(await self._load_warm(card, submodel))
            except UnknownModel as error:
                if submodel == default:
                    raise ModelRefused(error.detail) from error
            except (ValueError, RuntimeError) as error:
                log.error("model_refused", model=card.name, error=str(error))
                raise ModelRefused(model_repository.public_reason(error, self._folder(card.name))) from error
        return replacements

    def _folder(self, name: str) -> Path:
        return self._settings.weights / name

    def _start_selection(self, model: LoadedModel) -> None:
        if model.choice is not None:
            selection = asyncio.create_task(self._select_runtime(model, model.choice))
            self._selections.add(selection)
            selection.add_done_callback(self._selections.discard)

    async def _select_runtime(self, model: LoadedModel, choice: RuntimeSelector) -> None:
        """Switch the model to the fastest runtime that agrees with torch. Torch serves until then."""

        def run_on_compute_thread(work: Callable[[], T]) -> T:
            """Run a step between two batches of requests."""
            if self._stopping or model.retired:
                raise _SelectionCancelled
            return self.executors.compute.submit(work).result()

        loop = asyncio.get_running_loop()
        try:
            runtime, verdict = await loop.run_in_executor(
                self.executors.select_runtime,
                choice.select,
                model.runtime,
                self._settings.probes,
                run_on_compute_thread,
            )
        except _SelectionCancelled:
            return
        except Exception:
            # Any error of a compiler, or a full disk: torch serves.
            log.exception("runtime_not_chosen", model=model.card.name)
        else:
            model.runtime = runtime
            self.cache.update_size(model.card.name)
            figures = verdict.model_dump() if verdict else {}
            log.info("runtime_chosen", model=model.card.name, part=model.submodel.name, runtime=runtime.name, **figures)
        model.choice = None
