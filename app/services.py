"""Use cases. Each takes plain values, asks the engine, and answers a schema; none knows a request or a response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import torch
from torch import Tensor

from app.body import Pictures
from app.engine import Engine, LoadedModel
from app.errors import DeadlineExceeded, NotFound, Unprocessable, VestibuleError, problem
from app.images import Limits, decode
from app.observe import Timings
from app.schemas import (
    Classified,
    ClassifyParams,
    ClassifyResponse,
    Failed,
    ModelDetail,
    ModelList,
    ModelSummary,
    Prediction,
)
from app.settings import Settings
from models.card import ModelCard


class Services:
    """The use cases over one engine."""

    def __init__(self, settings: Settings, engine: Engine):
        self._settings = settings
        self._engine = engine
        self._limits = Limits(settings.max_image_bytes, settings.max_image_pixels)

    async def classify(self, pictures: Pictures, params: ClassifyParams, timings: Timings) -> ClassifyResponse:
        """What is in each picture, likeliest first.

        Raises:
            VestibuleError: about the request, or about its only picture. In a list, each picture answers for itself.
        """
        model = await self._engine.model(params.model, "classify")
        if params.tta and model.card.tta == "none":
            raise Unprocessable(f"{model.card.name} has no test-time augmentation")

        async def one(index: int, data: bytes) -> Classified:
            picture = await self._tensor(model.card, data, timings)
            probabilities = await self._probabilities(model, picture, params.tta, timings)
            return Classified(index=index, predictions=_top(model.card, probabilities, params.top_k))

        data = await self._each(pictures, one)
        return ClassifyResponse(model=model.card.name, version=model.card.version, data=data)

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
            default=name == self._settings.default_classifier,
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
            default=card.name == self._settings.default_classifier,
            loaded=self._engine.loaded(card.name) is not None,
        )

    async def _each(
        self, pictures: Pictures, one: Callable[[int, bytes], Awaitable[Classified]]
    ) -> list[Classified | Failed]:
        """`one` for each picture, side by side. A list's bad picture becomes its problem and costs no neighbour."""

        async def answer(index: int, item: bytes | VestibuleError) -> Classified | Failed:
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

    async def _probabilities(self, model: LoadedModel, picture: Tensor, tta: bool, timings: Timings) -> Tensor:
        """Softmax at the card's temperature, [classes]; with `tta`, the mean over the picture and its mirror image."""
        views = [picture, picture.flip(-1)] if tta else [picture]
        results = await asyncio.gather(*(model.infer(view, self._settings.deadline_s) for view in views))
        for result in results:
            timings.record("queue", result.queued_s)
            timings.record("infer", result.computed_s)
        logits = torch.stack([result.output for result in results])
        return (logits / model.card.temperature).softmax(dim=1).mean(dim=0)


def _top(card: ModelCard, probabilities: Tensor, k: int) -> list[Prediction]:
    values, indices = probabilities.topk(min(k, len(card.classes)))
    return [
        Prediction(class_=card.classes[index], class_id=index, confidence=value)
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    ]
