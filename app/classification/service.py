"""Classify images: from plain values to a response schema, without HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from app.classification.schemas import Classified, ClassifyParams, ClassifyResponse, Digit, DigitString, Prediction
from app.errors import Unprocessable
from app.images.uploads import Images
from app.inference.loaded_model import LoadedModel
from app.inference.loader import Item
from app.inference.predictor import Predictor
from models.card import ModelCard
from models.digit_string_decoder import Lattice, lattice, read
from models.tta import Tta, views

DIGITS = tuple("0123456789")


class Classification:
    """Classify images, or read strings of digits in them."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors
        # A string has hundreds of candidates, so all requests for strings share one room.
        self._strings = predictor.queue_slots()

    async def classify(self, pictures: Images, params: ClassifyParams) -> ClassifyResponse:
        """What is in each picture, likeliest first; with `sequence`, which string of digits.

        Raises:
            VestibuleError: about the request, or about its only picture. In a list, each picture answers for itself.
        """
        model = await self._model_manager.load(params.model, "classify")
        if params.tta and model.card.tta == "none":
            raise Unprocessable(f"{model.card.name} has no test-time augmentation")
        kind: Tta = model.card.tta if params.tta else "none"
        room = self._predictor.queue_slots()
        if params.sequence:
            _check_sequence(model.card, params)

        preprocess = model.card.preprocess

        async def seen(data: bytes) -> Iterable[Item]:
            if kind == "none":
                return [await self._predictor.decode_pixels(data, preprocess)]
            return await self._predictor.decode(
                data, lambda picture: list(views(preprocess(picture), kind, preprocess)), preprocess.enough
            )

        async def one(index: int, data: bytes) -> Classified:
            logits = await self._predictor.run(model, await seen(data), slots=room)  # [views, classes]
            probabilities = _probabilities(logits, model.card.temperature)
            return Classified(index=index, predictions=_top(model.card, probabilities, params.top_k))

        async def string(index: int, data: bytes) -> DigitString:
            return await self._string(model, index, data)

        answer = string if params.sequence else one
        answers = await self._predictor.for_each_image(pictures, answer)
        return ClassifyResponse(model=model.card.name, version=model.card.version, data=list(answers))

    async def _string(self, model: LoadedModel, index: int, data: bytes) -> DigitString:
        card = model.card
        found, crops = await self._predictor.decode(data, lambda picture: _candidates(card, picture))
        logits = torch.empty(0, len(DIGITS))
        if crops:
            logits = await self._predictor.run(model, crops, slots=self._strings)
        reading = await self._executors.run_cpu(lambda: read(found, logits, card.temperature))
        digits = [Digit(class_=card.classes[digit.class_id], **asdict(digit)) for digit in reading.digits]
        return DigitString(index=index, sequence=reading.text, digits=digits, confidence=reading.confidence)


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


def _probabilities(logits: Tensor, temperature: float) -> npt.NDArray[np.float32]:
    """Of each class, the mean over the views [N, C]. By numpy, as is `_top`: for so few numbers torch takes ten times
    as long, and gives the interpreter away at each step.
    """
    scaled = logits.numpy() / np.float32(temperature)
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    rows = powers / powers.sum(axis=1, keepdims=True)
    mean: npt.NDArray[np.float32] = rows[0] if len(rows) == 1 else rows.mean(axis=0)
    return mean


def _top(card: ModelCard, probabilities: npt.NDArray[np.float32], k: int) -> list[Prediction]:
    likeliest = np.argsort(-probabilities, kind="stable")[:k].tolist()
    return [
        Prediction(class_=card.classes[index], class_id=index, confidence=float(probabilities[index]))
        for index in likeliest
    ]
