"""What all use cases share: pictures answered each for itself, decoded off the event loop, run through a model."""

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

from app.dependencies import Timings
from app.errors import DeadlineExceeded, TooManyPixels, VestibuleError, problem
from app.images.decoding import (
    FEW_PIXELS,
    LARGE_BYTES,
    Limits,
    count_pixels,
    decode_if_quick,
    is_large,
    load,
    open_image,
)
from app.images.uploads import Images
from app.inference.batcher import Batched, Lane
from app.inference.executors import Long
from app.inference.loaded_model import LoadedModel
from app.inference.loader import Item
from app.inference.model_manager import Engine
from app.schemas import Failed
from app.settings import Settings
from models.preprocess import Preprocess

S = TypeVar("S")
T = TypeVar("T")

# Items that `Inference.mapped` gives a thread at once: some tens of milliseconds of aligning faces.
ITEMS_AT_ONCE = 8
# Tiles of large photos that wait for the detector, of all requests together.
TILES_QUEUED = 2


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What comes of all of it, side by side; of one piece without a task of its own, since most requests are for one
    picture.
    """
    if len(work) == 1:
        return [await work[0]]
    return await asyncio.gather(*work)


def _apply(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    return [work(item) for item in items]


class Inference:
    """The way from bytes to a network's output, over one engine, in one of its lanes."""

    def __init__(self, settings: Settings, engine: Engine, lane: Lane = "interactive"):
        self.engine = engine
        self._settings = settings
        self._lane: Lane = lane
        self._deadline_s = settings.deadline_s
        self._limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._most_pixels = settings.max_request_pixels
        # Places in the detector's queue for tiles of large photos, shared by all requests: a batch has few of them.
        self.tiles = asyncio.Semaphore(TILES_QUEUED)
        # Two batches: one is computed, one waits whole. More would only fill the queue, and refuse what filled it.
        self._places = min(2 * settings.max_batch, settings.queue_size)

    def in_bulk(self) -> Inference:
        """The same for work in the background, which lets those go first who wait for an answer."""
        return Inference(self._settings, self.engine, "bulk")

    def room(self) -> asyncio.Semaphore:
        """For what is queued at once by all that share it."""
        return asyncio.Semaphore(self._places)

    async def each(self, pictures: Images, one: Callable[[int, bytes], Awaitable[T]]) -> list[T | Failed]:
        """`one` for each picture, side by side. A list's bad picture becomes its problem and costs no neighbour.

        Raises:
            VestibuleError: about the only picture. TooManyPixels.
        """
        await self.check_pixels([item for item in pictures.items if isinstance(item, bytes)])
        return await self.answered(pictures, one)

    async def answered(self, pictures: Images, one: Callable[[int, bytes], Awaitable[T]]) -> list[T | Failed]:
        """As `each`, for a request whose pixels have been checked.

        Raises:
            VestibuleError: about the only picture.
        """

        async def answer(index: int, item: bytes | VestibuleError) -> T | Failed:
            try:
                if isinstance(item, VestibuleError):
                    raise item
                return await self.in_time(one(index, item))
            except VestibuleError as error:
                if not pictures.many:
                    raise
                return Failed(index=index, problem=problem(error))

        return await together([answer(index, item) for index, item in enumerate(pictures.items)])

    async def check_pixels(self, pictures: Sequence[bytes], *, redrawn: Sequence[bytes] = ()) -> None:
        """Refuse the pictures of one request where they have too many pixels together. Their headers say how many.

        Each of `redrawn` counts twice: it is answered with a picture of its size.

        Raises:
            TooManyPixels.
        """
        if (len(pictures) + 2 * len(redrawn)) * self._limits.pixels <= self._most_pixels:
            return
        is_long = any(len(data) > LARGE_BYTES for data in (*pictures, *redrawn))

        def count(sent: Sequence[bytes]) -> int:
            return sum(count_pixels(data, self._limits) for data in sent)

        total = await self.in_time(self.engine.decoded(lambda: count(pictures) + 2 * count(redrawn), is_long=is_long))
        if total > self._most_pixels:
            which = "the pictures, their references and the answers" if redrawn else "the pictures"
            raise TooManyPixels(f"{which} have {total} pixels; a request may have {self._most_pixels}")

    async def in_time(self, work: Awaitable[T]) -> T:
        """Its result.

        Raises:
            DeadlineExceeded: there was none in time.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer within {self._deadline_s:.0f} s") from error

    async def decoded(
        self,
        data: bytes,
        prepare: Callable[[Image.Image], T],
        timings: Timings,
        enough: int | None = None,
        *,
        keep_alpha: bool = False,
    ) -> T:
        """Decode a picture and return what `prepare` makes of it; `enough` and `keep_alpha` as in `images.decode`.

        Raises:
            DamagedImage, ImageTooLarge, UnsupportedImage; what `prepare` raises.
        """
        started = time.perf_counter()

        def work() -> T | Long[T]:
            image = open_image(data, self._limits)
            rest = Long(lambda: prepare(load(image, data, enough, keep_alpha=keep_alpha)))
            return rest if is_large(image, data) else rest.rest()

        prepared = await self.engine.decoded(work, is_long=len(data) > LARGE_BYTES)
        timings.record("decode", time.perf_counter() - started)
        return prepared

    async def mapped(self, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """`work` applied to each item in the threads that decode pictures, for work that takes milliseconds an item.

        At most one thread works for a call, on ITEMS_AT_ONCE items before others have their turn. A cancelled caller,
        as at its deadline or when its client has left, begins no further items.
        """
        results: list[T] = []
        for first in range(0, len(items), ITEMS_AT_ONCE):
            piece = items[first : first + ITEMS_AT_ONCE]
            results += await self.engine.decoded(partial(_apply, work, piece))
        return results

    async def pixels(self, data: bytes, preprocess: Preprocess, timings: Timings) -> Item:
        """The whole picture that these bytes are, of the size that a network takes.

        Raises:
            DamagedImage, ImageTooLarge, UnsupportedImage.
        """
        started = time.perf_counter()
        # What is small and is made large would keep the event loop busy, too.
        picture = decode_if_quick(data, self._limits) if math.prod(preprocess.size) <= FEW_PIXELS else None
        if picture is None:
            return await self.decoded(data, preprocess.pixels, timings, preprocess.max_useful_side)
        pixels = preprocess.pixels(picture)
        timings.record("decode", time.perf_counter() - started)
        return pixels

    async def run(
        self,
        model: LoadedModel,
        pictures: Iterable[Item],
        timings: Timings,
        stage: str = "infer",
        room: asyncio.Semaphore | None = None,
    ) -> Tensor:
        """The network's outputs [N, ...] for N preprocessed pictures, or the pixels of such, as many of them queued at
        once as `room` has.

        Raises:
            Overloaded, DeadlineExceeded, NotReady.
        """
        places = room or self.room()

        async def infer(picture: Item) -> Batched[Tensor]:
            async with places:
                return await model.infer(picture, self._deadline_s, self._lane)

        results = await together([infer(picture) for picture in pictures])
        for result in results:
            timings.record("queue", result.queued_s)
            timings.record(stage, result.computed_s)
        # By numpy: torch gives the interpreter away at each call, and in the event loop that waits to have it back.
        return torch.from_numpy(np.stack([result.output.numpy() for result in results]))
