"""Use cases. Each takes plain values, asks the engine, and answers a schema; none knows a request or a response."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.batcher import Batched
from app.body import Pictures
from app.engine import Engine, LoadedModel
from app.errors import DeadlineExceeded, NotFound, Unprocessable, VestibuleError, problem
from app.images import Limits, decode
from app.observe import Timings
from app.schemas import (
    Classified,
    ClassifyParams,
    ClassifyResponse,
    Detected,
    DetectedFace,
    DetectParams,
    DetectResponse,
    Digit,
    DigitString,
    FaceQuality,
    Failed,
    Landmarks,
    ModelDetail,
    ModelList,
    ModelSummary,
    Prediction,
)
from app.settings import Settings
from models import align, detector
from models.card import ModelCard
from models.decode import Lattice, lattice, read
from models.tta import Tta, views

Item = TypeVar("Item")

DIGITS = tuple("0123456789")


class Services:
    """The use cases over one engine."""

    def __init__(self, settings: Settings, engine: Engine):
        self._settings = settings
        self._engine = engine
        self._limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
        # Two batches: one is computed, one waits whole. More would only fill the queue, and refuse what filled it.
        self._room = min(2 * settings.max_batch, settings.queue_size)
        # A string has hundreds of candidates, so all requests for strings share one room.
        self._strings = asyncio.Semaphore(self._room)

    async def classify(self, pictures: Pictures, params: ClassifyParams, timings: Timings) -> ClassifyResponse:
        """What is in each picture, likeliest first; with `sequence`, which string of digits.

        Raises:
            VestibuleError: about the request, or about its only picture. In a list, each picture answers for itself.
        """
        model = await self._engine.model(params.model, "classify")
        if params.tta and model.card.tta == "none":
            raise Unprocessable(f"{model.card.name} has no test-time augmentation")
        kind: Tta = model.card.tta if params.tta else "none"
        room = asyncio.Semaphore(self._room)
        if params.sequence:
            _check_sequence(model.card, params)

        async def one(index: int, data: bytes) -> Classified:
            picture = await self._tensor(model.card, data, timings)
            probabilities = await self._probabilities(model, picture, kind, room, timings)
            return Classified(index=index, predictions=_top(model.card, probabilities, params.top_k))

        async def string(index: int, data: bytes) -> DigitString:
            return await self._string(model, index, data, timings)

        answers = await self._each(pictures, string) if params.sequence else await self._each(pictures, one)
        return ClassifyResponse(model=model.card.name, version=model.card.version, data=list(answers))

    async def detect(self, pictures: Pictures, params: DetectParams, timings: Timings) -> DetectResponse:
        """The faces in each picture, with what speaks against enrolling them.

        Raises:
            VestibuleError: as `classify`.
        """
        model = await self._engine.model(params.model, "detect")
        card = model.card

        async def one(index: int, data: bytes) -> Detected:
            started = time.perf_counter()
            image, prepared = await self._engine.decoded(lambda: _prepared(card, decode(data, self._limits)))
            timings.record("decode", time.perf_counter() - started)
            result = await model.infer(prepared, self._settings.deadline_s)
            timings.record("queue", result.queued_s)
            timings.record("infer", result.computed_s)
            faces = await self._engine.decoded(lambda: _faces(card, image, result.output, params.threshold))
            return Detected(index=index, width=image.width, height=image.height, faces=faces)

        data = await self._each(pictures, one)
        return DetectResponse(model=card.name, version=card.version, data=data)

    def models(self) -> ModelList:
        """Every model, in the order of names."""
        return ModelList(data=[self._summary(card) for card in self._engine.cards.values()])

    def model(self, name: str) -> ModelDetail:
        """One model's card.

        Raises:
            NotFound: no model of that name.
        """
        card = self._engine.cards.get(name)
        if card is None:
            raise NotFound("no model of that name; GET /models lists them")
        loaded = self._engine.loaded(name)
        return ModelDetail(
            version=card.version,
            default=self._engine.is_default(card),
            loaded=loaded is not None,
            runtime=loaded.runtime if loaded else None,
            card=card,
        )

    def _summary(self, card: ModelCard) -> ModelSummary:
        return ModelSummary(
            name=card.name,
            version=card.version,
            task=card.task,
            description=card.description,
            license=card.license,
            parameters=card.parameters,
            classes=len(card.classes),
            default=self._engine.is_default(card),
            loaded=self._engine.loaded(card.name) is not None,
        )

    async def _each(self, pictures: Pictures, one: Callable[[int, bytes], Awaitable[Item]]) -> list[Item | Failed]:
        """`one` for each picture, side by side. A list's bad picture becomes its problem and costs no neighbour."""

        async def answer(index: int, item: bytes | VestibuleError) -> Item | Failed:
            try:
                if isinstance(item, VestibuleError):
                    raise item
                async with asyncio.timeout(self._settings.deadline_s):
                    return await one(index, item)
            except TimeoutError as error:
                late = DeadlineExceeded(f"no answer within {self._settings.deadline_s:.0f} s")
                if not pictures.many:
                    raise late from error
                return Failed(index=index, problem=problem(late))
            except VestibuleError as error:
                if not pictures.many:
                    raise
                return Failed(index=index, problem=problem(error))

        return await asyncio.gather(*(answer(index, item) for index, item in enumerate(pictures.items)))

    async def _tensor(self, card: ModelCard, data: bytes, timings: Timings) -> Tensor:
        started = time.perf_counter()
        picture = await self._engine.decoded(lambda: card.preprocess(decode(data, self._limits)))
        timings.record("decode", time.perf_counter() - started)
        return picture

    async def _probabilities(
        self, model: LoadedModel, picture: Tensor, tta: Tta, room: asyncio.Semaphore, timings: Timings
    ) -> Tensor:
        """Softmax at the card's temperature, [classes]: the mean over the picture's views."""
        logits = await self._logits(model, views(picture, tta, model.card.preprocess), room, timings)
        return (logits / model.card.temperature).softmax(dim=1).mean(dim=0)

    async def _string(self, model: LoadedModel, index: int, data: bytes, timings: Timings) -> DigitString:
        card = model.card
        started = time.perf_counter()
        found, crops = await self._engine.decoded(lambda: _candidates(card, decode(data, self._limits)))
        timings.record("decode", time.perf_counter() - started)
        logits = await self._logits(model, crops, self._strings, timings) if crops else torch.empty(0, len(DIGITS))
        reading = await self._engine.decoded(lambda: read(found, logits, card.temperature))
        digits = [Digit(class_=card.classes[digit.class_id], **asdict(digit)) for digit in reading.digits]
        return DigitString(index=index, sequence=reading.text, digits=digits, confidence=reading.confidence)

    async def _logits(
        self, model: LoadedModel, pictures: Iterable[Tensor], room: asyncio.Semaphore, timings: Timings
    ) -> Tensor:
        """The network's outputs [N, classes] for preprocessed pictures, as many of them queued at once as fit."""

        async def infer(picture: Tensor) -> Batched[Tensor]:
            async with room:
                return await model.infer(picture, self._settings.deadline_s)

        results = await asyncio.gather(*(infer(picture) for picture in pictures))
        for result in results:
            timings.record("queue", result.queued_s)
            timings.record("infer", result.computed_s)
        return torch.stack([result.output for result in results])


def _check_sequence(card: ModelCard, params: ClassifyParams) -> None:
    if card.preprocess.channels != 1 or card.classes != DIGITS:
        raise Unprocessable(f"{card.name} reads no digit strings: that takes grey pictures and the classes 0 to 9")
    if params.tta:
        raise Unprocessable("a digit string is read without test-time augmentation")


def _candidates(card: ModelCard, picture: Image.Image) -> tuple[Lattice, list[Tensor]]:
    """What may be digits in the picture, and the same as the network wants it, each [C, H, W]."""
    try:
        found = lattice(np.asarray(picture.convert("L")))
    except ValueError as error:
        raise Unprocessable(str(error)) from error
    return found, [card.preprocess(Image.fromarray(crop)) for crop in found.crops]


def _prepared(card: ModelCard, picture: Image.Image) -> tuple[Image.Image, Tensor]:
    """The picture in RGB, and as the detector wants it."""
    picture = picture.convert("RGB")
    return picture, detector.prepare(picture, card.preprocess)


def _faces(card: ModelCard, picture: Image.Image, maps: Tensor, threshold: float) -> list[DetectedFace]:
    (found,) = detector.decode(maps[None], threshold)
    faces = []
    for face in detector.restore(found, picture.size, card.preprocess):
        quality = align.measure(face, align.align(picture, face.landmarks))
        measures = {name: value if math.isfinite(value) else None for name, value in asdict(quality).items()}
        faces.append(
            DetectedFace(
                box=face.box,
                confidence=measures.pop("confidence"),
                landmarks=Landmarks(**dict(zip(Landmarks.model_fields, face.landmarks, strict=True))),
                quality=FaceQuality(**measures),
                reasons=list(align.reasons(quality)),
            )
        )
    return faces


def _top(card: ModelCard, probabilities: Tensor, k: int) -> list[Prediction]:
    values, indices = probabilities.topk(min(k, len(card.classes)))
    return [
        Prediction(class_=card.classes[index], class_id=index, confidence=value)
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]
