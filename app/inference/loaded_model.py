"""A model in memory: its request queue, and the runtime that computes its batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import structlog
from torch import Tensor

from app.errors import DeadlineExceeded, NotReady, OutOfMemory, Overloaded
from app.inference import loader
from app.inference.batcher import Batcher, BatchResult, Expired, Priority, QueueFull, Stopped, TooLarge
from app.inference.loader import Item, PreparedModel
from app.observability.metrics import Metrics
from app.settings import Settings
from models.runtime import Runtime

log = structlog.get_logger()

# Seconds for which an out-of-memory error is reported as a degradation.
DEGRADED_S = 60.0


class BatchRunner:
    """Runs batches on the compute thread, each with the runtime that is set when it starts."""

    def __init__(self, prepared: PreparedModel, compute: Executor, metrics: Metrics):
        self.runtime: Runtime = prepared.runtime
        self._submodel = prepared.submodel
        self._card = prepared.card
        self._compute = compute
        name = prepared.card.name
        self._computed, self._sizes = metrics.computed.labels(name), metrics.batch_size.labels(name)

    async def __call__(self, items: Sequence[Item]) -> list[Tensor]:
        """Return the outputs of the items, in their order."""
        outputs = await asyncio.get_running_loop().run_in_executor(self._compute, self._run, items)
        self._sizes.observe(len(items))
        return outputs

    def _run(self, items: Sequence[Item]) -> list[Tensor]:
        with self._computed.time():
            return loader.run(self._submodel, self._card.preprocess, self.runtime, items)


class LoadedModel:
    """A warm model or submodel with its own queue; `dimensions` is the length of an output's first dimension.

    `selecting_runtime`: a faster runtime is still being looked for. `retired`: removed from the cache; it answers only
    callers that still hold it.
    """

    def __init__(
        self, prepared: PreparedModel, dimensions: int, runner: BatchRunner, settings: Settings, metrics: Metrics
    ):
        self.card = prepared.card
        self.submodel = prepared.submodel
        self.dimensions = dimensions
        self.selecting_runtime = self.retired = False
        self._runner = runner
        self._batcher = Batcher(runner, prepared.submodel.batch_size or settings.max_batch, settings.queue_size)
        self._metrics = metrics
        self._depth = metrics.queue_depth.labels(prepared.card.name)
        self._queued = metrics.queued.labels(prepared.card.name)
        self._out_of_memory: tuple[str, float] | None = None  # the message, and when

    @property
    def degradation(self) -> str | None:
        """Why the model failed to answer an item within the last minute; None if it did not."""
        if self._out_of_memory is None or time.monotonic() - self._out_of_memory[1] > DEGRADED_S:
            return None
        return self._out_of_memory[0]

    @property
    def runtime(self) -> str:
        """The current runtime's name."""
        return self._runner.runtime.name

    @property
    def size(self) -> int:
        """Memory of the current runtime in bytes; see `Runtime`."""
        return self._runner.runtime.size

    def set_runtime(self, runtime: Runtime) -> None:
        """Use this runtime from the next batch on."""
        self._runner.runtime = runtime

    async def infer(self, item: Item, wait_s: float, priority: Priority = "interactive") -> BatchResult[Tensor]:
        """Return the network's output for a preprocessed image [C, H, W], or for one given as pixels.

        Raises:
            Overloaded, DeadlineExceeded, NotReady. OutOfMemory: the item alone does not fit.
        """
        name = self.card.name
        try:
            with self._depth.track_inprogress():
                result = await self._batcher.submit(item, wait_s, priority)
        except asyncio.CancelledError:
            self._metrics.cancelled.labels(name).inc()
            raise
        except QueueFull as error:
            self._metrics.shed.labels("queue", name).inc()
            raise Overloaded(f"the queue of {name} is full", {"Retry-After": "1"}) from error
        except Expired as error:
            self._metrics.shed.labels("deadline", name).inc()
            raise DeadlineExceeded(f"{name} was not free within {wait_s:.0f} s") from error
        except TooLarge as error:
            self._metrics.shed.labels("memory", name).inc()
            message = f"a single image does not fit into the memory of {name}'s device"
            self._out_of_memory = message, time.monotonic()
            log.error("out_of_memory", model=name, error=str(error))
            raise OutOfMemory(message, {"Retry-After": str(round(DEGRADED_S))}) from error
        except Stopped as error:
            raise NotReady("the service is stopping") from error
        self._queued.observe(result.queued_s)
        return result

    async def stop(self) -> None:
        """Accept no more items, and return when all waiting ones are done."""
        await self._batcher.stop()
