"""A model that is loaded: its queue, and the runtime that answers for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import structlog
from torch import Tensor

from app.errors import DeadlineExceeded, NotReady, OutOfMemory, Overloaded
from app.inference import loader
from app.inference.batcher import Batched, Batcher, Expired, Lane, QueueFull, Stopped, TooLarge
from app.inference.loader import Item, Prepared
from app.observability.metrics import Metrics
from app.settings import Settings
from models.runtime import Runtime

log = structlog.get_logger()

# For how long it is told that something did not fit into memory.
TROUBLE_S = 60.0


class Runner:
    """What a batcher runs: whichever runtime is the model's when a batch begins, on the compute thread."""

    def __init__(self, prepared: Prepared, compute: Executor, metrics: Metrics):
        self.runtime: Runtime = prepared.runtime
        self._part = prepared.part
        self._card = prepared.card
        self._compute = compute
        name = prepared.card.name
        self._computed, self._sizes = metrics.computed.labels(name), metrics.batch_size.labels(name)

    async def __call__(self, items: Sequence[Item]) -> list[Tensor]:
        """The outputs of the items, in their order."""
        outputs = await asyncio.get_running_loop().run_in_executor(self._compute, self._run, items)
        self._sizes.observe(len(items))
        return outputs

    def _run(self, items: Sequence[Item]) -> list[Tensor]:
        with self._computed.time():
            return loader.run(self._part, self._card.preprocess, self.runtime, items)


class LoadedModel:
    """A model or a part of one, warm, behind its own queue; `dimensions` is how many numbers, or maps, it answers with.

    `choosing`: whether a faster runtime than that which answers is still looked for. `retired`: whether it answers only
    those who have it already.
    """

    def __init__(self, prepared: Prepared, dimensions: int, runner: Runner, settings: Settings, metrics: Metrics):
        self.card = prepared.card
        self.part = prepared.part
        self.dimensions = dimensions
        self.choosing = self.retired = False
        self._runner = runner
        self._batcher = Batcher(runner, prepared.part.rows or settings.max_batch, settings.queue_size)
        self._metrics = metrics
        self._depth = metrics.queue_depth.labels(prepared.card.name)
        self._queued = metrics.queued.labels(prepared.card.name)
        self._short: tuple[str, float] | None = None

    @property
    def trouble(self) -> str | None:
        """Why it does not answer all that it should, as of the last minute."""
        if self._short is None or time.monotonic() - self._short[1] > TROUBLE_S:
            return None
        return self._short[0]

    @property
    def runtime(self) -> str:
        """The name of what answers."""
        return self._runner.runtime.name

    @property
    def size(self) -> int:
        """Bytes that it takes; see `Runtime`."""
        return self._runner.runtime.size

    def switch(self, runtime: Runtime) -> None:
        """From the next batch on this one answers."""
        self._runner.runtime = runtime

    async def infer(self, item: Item, wait_s: float, lane: Lane = "interactive") -> Batched[Tensor]:
        """One item, as a preprocessed picture [C, H, W] or the pixels of one -> the network's output for it.

        Raises:
            Overloaded, DeadlineExceeded, NotReady. OutOfMemory: the item alone does not fit.
        """
        name = self.card.name
        try:
            with self._depth.track_inprogress():
                batched = await self._batcher.submit(item, wait_s, lane)
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
            self._short = f"a picture alone does not fit into the memory of {name}'s device", time.monotonic()
            log.error("out_of_memory", model=name, error=str(error))
            raise OutOfMemory(self._short[0], {"Retry-After": str(round(TROUBLE_S))}) from error
        except Stopped as error:
            raise NotReady("the service is stopping") from error
        self._queued.observe(batched.queued_s)
        return batched

    async def stop(self) -> None:
        """Answer what waits, then take no more."""
        await self._batcher.stop()
