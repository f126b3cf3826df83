"""A model in memory: its request queue, and the runtime that computes its batches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from app.errors import DeadlineExceeded, NotReady, OutOfMemory, Overloaded
from app.inference.batcher import Batcher, BatchResult, Expired, Priority, QueueFull, Stopped, TooLarge
from app.inference.submodels import Submodel
from app.observability.metrics import Metrics
from app.settings import Settings
from models import runtime as runtimes
from models.card import ModelCard
from models.preprocess import Preprocess
from models.runtime import Runtime
from models.runtime_selection import RuntimeSelector

T = TypeVar("T")

# An input of a model: the network's own input tensor, or uint8 pixels [H, W, C], 0..255, of the network's image size.
Item: TypeAlias = Tensor | npt.NDArray[np.uint8]

# The most pixels of a batch: a full batch for a classifier, and few images for a detector, whose feature maps are
# large.
MAX_BATCH_PIXELS = 32 * 256 * 256
# Seconds for which an out-of-memory error is reported as a degradation.
DEGRADED_S = 60.0

log = structlog.get_logger()


@dataclass(frozen=True)
class PreparedModel:
    """A model or submodel on its reference runtime, and the choice among faster ones; None: there is no other.

    The reference is torch in float32; for an imported graph it is OpenVINO.
    """

    card: ModelCard
    submodel: Submodel
    runtime: Runtime
    choice: RuntimeSelector | None


class BatchRunner:
    """Runs batches on the compute thread, each with the runtime that is set when it starts."""

    def __init__(self, prepared: PreparedModel, compute: Executor, metrics: Metrics):
        self.runtime: Runtime = prepared.runtime
        self._submodel = prepared.submodel
        self._preprocess = prepared.card.preprocess
        self._compute = compute
        name = prepared.card.name
        self._computed, self._sizes = metrics.computed.labels(name), metrics.batch_size.labels(name)

    async def __call__(self, items: Sequence[Item]) -> list[Tensor]:
        """Return the outputs of the items, in their order.

        Raises:
            TooLarge: the batch does not fit into the device's memory.
        """
        outputs = await asyncio.get_running_loop().run_in_executor(self._compute, self._run, items)
        self._sizes.observe(len(items))
        return outputs

    def _run(self, items: Sequence[Item]) -> list[Tensor]:
        with self._computed.time():
            if self._submodel.batch_size is None:
                return convert_out_of_memory(lambda: run_by_shape(self._preprocess, self.runtime, items))
            tensors = [item if isinstance(item, Tensor) else stack_items(self._preprocess, [item])[0] for item in items]
            return convert_out_of_memory(lambda: run_padded(self._submodel, self.runtime, tensors))


class LoadedModel:
    """A warm model or submodel with its own queue; `dimensions` is the length of an output's first dimension.

    `choice`: the pending choice among faster runtimes, else None. `retired`: removed from the cache; it serves only
    callers that still hold it.
    """

    def __init__(
        self, prepared: PreparedModel, dimensions: int, compute: Executor, settings: Settings, metrics: Metrics
    ):
        self.card = prepared.card
        self.version = prepared.card.version
        self.submodel = prepared.submodel
        self.choice = prepared.choice
        self.dimensions = dimensions
        self.retired = False
        # A separate object, so that no reference cycle keeps a retired model in memory.
        self._runner = BatchRunner(prepared, compute, metrics)
        self._batcher = Batcher(self._runner, prepared.submodel.batch_size or settings.max_batch, settings.queue_size)
        self._metrics = metrics
        self._depth = metrics.queue_depth.labels(prepared.card.name)
        self._queued = metrics.queued.labels(prepared.card.name)
        self._out_of_memory: tuple[str, float] | None = None  # the message, and when

    @property
    def degradation(self) -> str | None:
        """The reason why an item failed within the last minute; None if none failed."""
        if self._out_of_memory is None or time.monotonic() - self._out_of_memory[1] > DEGRADED_S:
            return None
        return self._out_of_memory[0]

    @property
    def runtime(self) -> Runtime:
        """The runtime of the next batch."""
        return self._runner.runtime

    @runtime.setter
    def runtime(self, runtime: Runtime) -> None:
        self._runner.runtime = runtime

    async def infer(self, item: Item, wait_s: float, priority: Priority = "interactive") -> BatchResult[Tensor]:
        """Return the network's output for a preprocessed image [C, H, W], or for one given as pixels.

        Raises:
            Overloaded: the queue is full. DeadlineExceeded: the item waited for `wait_s` seconds. NotReady: the service
            is stopping. OutOfMemory: the item alone does not fit.
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


def stack_items(preprocess: Preprocess, items: Sequence[Item]) -> Tensor:
    """Return items of one type and shape as a batch [N, C, H, W]. Pixels are normalised all at once: one by one that
    takes as long as decoding them.
    """
    with runtimes.one_thread():  # other threads would spin on cores that the network needs next
        tensors = [item for item in items if isinstance(item, Tensor)]
        if tensors:
            return torch.stack(tensors)
        return preprocess.normalise(torch.from_numpy(np.stack([np.asarray(item) for item in items])))


def convert_out_of_memory(function: Callable[[], T]) -> T:
    """Return the function's result.

    Raises:
        TooLarge: instead of torch.OutOfMemoryError.
    """
    try:
        return function()
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Not in the handler: the error's traceback references all tensors of the batch until the handler ends.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise TooLarge(reason)


def run_by_shape(preprocess: Preprocess, network: Runtime, items: Sequence[Item]) -> list[Tensor]:
    """Return the network's output for each item, in their order; items of one shape share a batch."""
    shapes: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for index, item in enumerate(items):
        shapes.setdefault((isinstance(item, Tensor), tuple(item.shape)), []).append(index)
    outputs: dict[int, Tensor] = {}
    for (_, shape), indices in shapes.items():
        size = max(1, MAX_BATCH_PIXELS * preprocess.channels // math.prod(shape))
        for first in range(0, len(indices), size):
            group = indices[first : first + size]
            batch = stack_items(preprocess, [items[index] for index in group])
            outputs |= zip(group, network(batch), strict=True)
    return [outputs[index] for index in range(len(items))]


def run_padded(submodel: Submodel, network: Runtime, items: Sequence[Tensor]) -> list[Tensor]:
    """Return the output for each of at most `batch_size` items of one shape; zeros fill the rest of the batch."""
    missing = (submodel.batch_size or 0) - len(items)
    batch = torch.stack([*items, *(torch.zeros_like(items[0]) for _ in range(missing))])
    with runtimes.one_thread() if submodel.deterministic else nullcontext():
        return list(network(batch)[: len(items)])
