"""The classification service: classify images and read strings of digits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from app.classification.schemas import Classified, ClassifyParams, ClassifyResponse, Digit, DigitString, Prediction
from app.errors import Unprocessable
from app.images.uploads import Images
from app.inference.loaded_model import Item, LoadedModel
from app.inference.predictor import Predictor
from models.card import ModelCard
from models.digit_segmentation import Lattice, build_lattice
from models.digit_string_decoder import read
from models.rejection import energies
from models.tta import Tta, views

DIGITS = tuple("0123456789")


class Classification:
    """Classifies images, or reads strings of digits in them."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        # A string has hundreds of candidates, so all requests for strings share these slots.
        self._string_slots = predictor.queue_slots()

    async def classify(self, images: Images, params: ClassifyParams) -> ClassifyResponse:
        """Return each image's most probable classes, or with `sequence` its string of digits.

        Raises:
            VestibuleError: about the request or its only image. In a list, an image's error becomes its item.
        """
        model = await self._predictor.model_manager.load(params.model, "classify")
        if params.tta and model.card.tta == "none":
            raise Unprocessable(f"{model.card.name} has no test-time augmentation")
        tta: Tta = model.card.tta if params.tta else "none"
        slots = self._predictor.queue_slots()
        if params.sequence:
            _check_sequence(model.card, params)
        threshold = _rejection_threshold(model.card, params)

        preprocess = model.card.preprocess

        async def prepare(data: bytes) -> Iterable[Item]:
            if tta == "none":
                return [await self._predictor.decode_pixels(data, preprocess)]
            return await self._predictor.decode(
                data,
                lambda image: list(views(preprocess(image), tta, preprocess)),
                preprocess.max_useful_side,
                grey=preprocess.is_grey,
            )

        async def classify_image(index: int, data: bytes) -> Classified:
            logits = await self._predictor.run(model, await prepare(data), slots=slots)  # [views, classes]
            predictions = _top(model.card, _probabilities(logits, model.card.temperature), params.top_k)
            # The first view is the image itself, as in the calibration.
            rejected = None if threshold is None else bool(energies(logits[:1].numpy())[0] > threshold)
            return Classified(index=index, predictions=predictions, rejected=rejected)

        process = partial(self._read_string, model) if params.sequence else classify_image
        items = await self._predictor.for_each_image(images, process)
        return ClassifyResponse(model=model.card.name, version=model.version, data=list(items))

    async def _read_string(self, model: LoadedModel, index: int, data: bytes) -> DigitString:
        card = model.card
        candidates, crops = await self._predictor.decode(data, lambda image: _candidates(card, image))
        logits = torch.empty(0, len(DIGITS))
        if crops:
            logits = await self._predictor.run(model, crops, slots=self._string_slots)
        reading = await self._predictor.executors.run_cpu(lambda: read(candidates, logits, card.temperature))
        digits = [Digit(class_=card.classes[digit.class_id], **asdict(digit)) for digit in reading.digits]
        return DigitString(index=index, sequence=reading.text, digits=digits, confidence=reading.confidence)


def _check_sequence(card: ModelCard, params: ClassifyParams) -> None:
    if card.preprocess.channels != 1 or card.classes != DIGITS:
        raise Unprocessable(f"{card.name} cannot read digit strings: they need grey input and the classes 0 to 9")
    if params.tta:
        raise Unprocessable("digit strings are read without test-time augmentation")
    if params.reject is not None:
        raise Unprocessable("digit strings are read without `reject`")


def _rejection_threshold(card: ModelCard, params: ClassifyParams) -> float | None:
    """Return the energy above which an image is rejected; None without `reject`."""
    if params.reject is None:
        return None
    if card.rejection is None:
        raise Unprocessable(
            f"{card.name} is not calibrated to reject images: run"
            f" `python -m training.calibrate weights/{card.name} --data DATASET`, then reload the model"
        )
    return card.rejection.threshold(params.reject)


def _candidates(card: ModelCard, image: Image.Image) -> tuple[Lattice, list[Tensor]]:
    """Return the candidates for digits in the image, and the network's input [C, H, W] for each."""
    try:
        candidates = build_lattice(np.asarray(image.convert("L")))
    except ValueError as error:
        raise Unprocessable(str(error)) from error
    return candidates, [card.preprocess(Image.fromarray(crop)) for crop in candidates.crops]


def _probabilities(logits: Tensor, temperature: float) -> npt.NDArray[np.float32]:
    """Return each class's mean probability over the views, from logits [views, classes].

    With numpy, as in `_top`: for so few numbers torch takes ten times as long and releases the interpreter lock.
    """
    scaled = logits.numpy() / np.float32(temperature)
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    rows = exponentials / exponentials.sum(axis=1, keepdims=True)
    mean: npt.NDArray[np.float32] = rows[0] if len(rows) == 1 else rows.mean(axis=0)
    return mean


def _top(card: ModelCard, probabilities: npt.NDArray[np.float32], k: int) -> list[Prediction]:
    indices = np.argsort(-probabilities, kind="stable")[:k].tolist()
    return [
        Prediction(class_=card.classes[index], class_id=index, confidence=float(probabilities[index]))
        for index in indices
    ]
