"""Shared by all endpoints: decode each image, run it through a model, and collect per-image errors."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.errors import DeadlineExceeded, TooManyPixels, VestibuleError, problem
from app.images.decoding import (
    FAST_PIXELS,
    LARGE_BYTES,
    ImageLimits,
    count_pixels,
    decode_fast,
    is_large,
    load,
    open_image,
)
from app.images.uploads import Images
from app.inference.batcher import BatchResult, Priority
from app.inference.executors import Continuation
from app.inference.loaded_model import Item, LoadedModel
from app.inference.model_manager import ModelManager
from app.observability import timings
from app.schemas import Failed
from app.settings import Settings
from models.preprocess import Preprocess

S = TypeVar("S")
T = TypeVar("T")

# Items that `Predictor.map` processes in one task of a thread: some tens of milliseconds of face alignment.
MAP_CHUNK_SIZE = 8
# The most tiles of large photos that wait for the detector, over all requests.
MAX_QUEUED_TILES = 2


async def gather(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run the coroutines concurrently and return their results. A single coroutine is awaited without a task."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    return await asyncio.gather(*coroutines)


class Predictor:
    """Decodes images and runs models, with requests of one priority."""

    def __init__(self, settings: Settings, model_manager: ModelManager, priority: Priority = "interactive"):
        self.model_manager = model_manager
        self.executors = model_manager.executors
        self.settings = settings
        self._priority: Priority = priority
        self._limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        # Shared by all requests, so that the detector's batches contain few tiles of large photos.
        self.tile_slots = asyncio.Semaphore(MAX_QUEUED_TILES)
        # Two batches, one running and one waiting. More would fill the queue without a gain in speed.
        self._queue_slots = min(2 * settings.max_batch, settings.queue_size)

    def background(self) -> Predictor:
        """Return a predictor whose requests have lower priority than interactive ones."""
        return Predictor(self.settings, self.model_manager, "background")

    def queue_slots(self) -> asyncio.Semaphore:
        """Return a semaphore that bounds how many items its holders may queue."""
        return asyncio.Semaphore(self._queue_slots)

    async def for_each_image(self, images: Images, function: Callable[[int, bytes], Awaitable[T]]) -> list[T | Failed]:
        """Run `function` on the index and bytes of each image concurrently, and return its results.

        In a list, an image's error becomes its `Failed` item and does not affect the other images.

        Raises:
            VestibuleError: about a single image that is not in a list. TooManyPixels.
        """
        await self.check_pixels([item for item in images.items if isinstance(item, bytes)])
        return await self.for_each_checked(images, function)

    async def for_each_checked(
        self, images: Images, function: Callable[[int, bytes], Awaitable[T]]
    ) -> list[T | Failed]:
        """Return the results of `for_each_image`, for a request whose pixels were checked before.

        Raises:
            VestibuleError: about a single image that is not in a list.
        """

        async def process(index: int, item: bytes | VestibuleError) -> T | Failed:
            try:
                if isinstance(item, VestibuleError):
                    raise item
                return await self.with_deadline(function(index, item))
            except VestibuleError as error:
                if not images.is_list:
                    raise
                return Failed(index=index, problem=problem(error))

        return await gather([process(index, item) for index, item in enumerate(images.items)])

    async def check_pixels(self, images: Sequence[bytes], *, transformed: Sequence[bytes] = ()) -> None:
        """Check the total number of pixels of a request's images, which is read from their headers.

        Each of the `transformed` images counts twice: the response has an image of its size.

        Raises:
            TooManyPixels: if it exceeds the limit of a request.
        """
        if (len(images) + 2 * len(transformed)) * self._limits.pixels <= self.settings.max_request_pixels:
            return

        def count(files: Sequence[bytes]) -> int:
            return sum(count_pixels(data, self._limits) for data in files)

        is_long = any(len(data) > LARGE_BYTES for data in (*images, *transformed))
        total = await self.with_deadline(
            self.executors.run_cpu(lambda: count(images) + 2 * count(transformed), is_long=is_long)
        )
        if total > self.settings.max_request_pixels:
            counted = "the images, their references and the responses" if transformed else "the images"
            allowed = self.settings.max_request_pixels
            raise TooManyPixels(f"{counted} have {total} pixels; a request may have {allowed}")

    async def with_deadline(self, work: Awaitable[T]) -> T:
        """Return the result of `work`.

        Raises:
            DeadlineExceeded: it took longer than the request's deadline allows.
        """
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"no result within {self.settings.deadline_s:.0f} s") from error

    async def decode(
        self,
        data: bytes,
        prepare: Callable[[Image.Image], T],
        min_side: int | None = None,
        *,
        grey: bool = False,
        keep_alpha: bool = False,
    ) -> T:
        """Decode an image and return `prepare(image)`; the options are those of `images.decoding.decode`.

        Raises:
            DamagedImage, ImageTooLarge, UnsupportedImage; the errors of `prepare`.
        """

        def work() -> T | Continuation[T]:
            image = open_image(data, self._limits)
            rest = Continuation(lambda: prepare(load(image, data, min_side, grey=grey, keep_alpha=keep_alpha)))
            return rest if is_large(image, data) else rest.function()

        return await timings.timed("decode", self.executors.run_cpu(work, is_long=len(data) > LARGE_BYTES))

    async def map(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """Return `function` of each item, computed in the CPU thread pool; for work of milliseconds per item.

        A call uses at most one thread at a time, and releases it after each MAP_CHUNK_SIZE items. A cancelled caller
        starts no further items.
        """
        results: list[T] = []
        for first in range(0, len(items), MAP_CHUNK_SIZE):
            chunk = items[first : first + MAP_CHUNK_SIZE]
            results += await self.executors.run_cpu(partial(list, map(function, chunk)))
        return results

    async def decode_pixels(self, data: bytes, preprocess: Preprocess) -> Item:
        """Decode an image and return its pixels in the network's size.

        Raises:
            DamagedImage, ImageTooLarge, UnsupportedImage.
        """
        started = time.perf_counter()
        # Also enlarging a small image would block the event loop.
        is_small = math.prod(preprocess.size) <= FAST_PIXELS
        image = decode_fast(data, self._limits, grey=preprocess.is_grey) if is_small else None
        if image is None:
            return await self.decode(data, preprocess.pixels, preprocess.max_useful_side, grey=preprocess.is_grey)
        pixels = preprocess.pixels(image)
        timings.record("decode", time.perf_counter() - started)
        return pixels

    async def run(
        self,
        model: LoadedModel,
        items: Iterable[Item],
        stage: str = "infer",
        slots: asyncio.Semaphore | None = None,
    ) -> Tensor:
        """Return the network's outputs [N, ...] for N items; `slots` bounds how many of them are queued at once.

        Raises:
            Overloaded, DeadlineExceeded, NotReady, OutOfMemory: see `LoadedModel.infer`.
        """
        slots = slots or self.queue_slots()

        async def infer(item: Item) -> BatchResult[Tensor]:
            async with slots:
                return await model.infer(item, self.settings.deadline_s, self._priority)

        results = await gather([infer(item) for item in items])
        for result in results:
            timings.record("queue", result.queued_s)
            timings.record(stage, result.computed_s)
        # With numpy: each torch call releases the interpreter lock, and the event loop waits to get it back.
        return torch.from_numpy(np.stack([result.output.numpy() for result in results]))
