"""The use cases of the Open Inference Protocol: a network's own tensors in and out, through the queues of all else.

What `POST /classify` and the others do around a network (test-time augmentation, finding and aligning faces, several
crops of a string) is not done here.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.errors import BadRequest, ImageTooLarge, NotFound, Unprocessable, VestibuleError
from app.images.decoding import LARGE_BYTES
from app.images.encoding import EncodedFile
from app.images.tiling import SIDE
from app.inference import class_labels
from app.inference.loader import Item
from app.inference.predictor import Predictor, gather
from app.inference.submodels import size_multiple
from app.observability import timings
from app.open_inference import messages, signatures
from app.open_inference.messages import Message, Wanted
from app.open_inference.schemas import IndexedModel, ModelMetadata, ModelReady, ServerMetadata
from app.open_inference.signatures import LABELS, LATENTS, PICTURES, PROBABILITIES, Interface, interface
from app.open_inference.tensors import Array
from app.settings import Settings
from models.card import ModelCard
from models.generative import with_label_planes

EXTENSIONS = ["binary_tensor_data", "classification"]
PLATFORM = "pytorch_safetensors"


class OpenInference:
    """Every model but detectors, whose maps mean nothing without what `POST /faces/detect` makes of them."""

    def __init__(self, settings: Settings, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors
        self._most_rows = settings.max_images

    def server(self) -> ServerMetadata:
        """What answers."""
        return ServerMetadata(name="vestibule", version=importlib.metadata.version("vestibule"), extensions=EXTENSIONS)

    def index(self) -> list[IndexedModel]:
        """Every model that can be asked, in the order of names."""
        return [self._indexed(card) for card in self._model_manager.cards.values() if interface(card)]

    def ready(self, name: str, version: str | None) -> ModelReady:
        """That the model is there.

        Raises:
            NotFound: no such model, or not of this version.
        """
        card, _ = self._model(name, version)
        return ModelReady(name=card.name)

    def metadata(self, name: str, version: str | None) -> ModelMetadata:
        """How the model is asked.

        Raises:
            NotFound: as `ready`.
        """
        card, found = self._model(name, version)
        return ModelMetadata(
            name=card.name,
            versions=[card.version],
            platform=PLATFORM,
            inputs=[signatures.metadata(card, name, forms) for name, forms in found.inputs.items()],
            outputs=[signatures.metadata(card, name, (form,)) for name, form in found.outputs.items()],
        )

    async def infer(self, name: str, version: str | None, message: Message) -> EncodedFile:
        """What the network answers; each row is an item of its own to the queue.

        Raises:
            NotFound: as `ready`. BadRequest, BodyTooLarge, TooManyImages: the message. DamagedImage, ImageTooLarge,
            UnsupportedImage: a picture. Unprocessable: numbers that the network cannot compute with.
            Overloaded, NotReady, DeadlineExceeded.
        """
        return await self._predictor.with_deadline(self._inferred(name, version, message))

    async def _inferred(self, name: str, version: str | None, message: Message) -> EncodedFile:
        known, found = self._model(name, version)
        model = await self._model_manager.load_submodel(known, found.part)
        # These weights answer, whatever is reloaded from here on; while they were loaded others may have come.
        card, found = _of_version(model.card, version)
        started = time.perf_counter()
        asked = await self._executors.run_cpu(
            lambda: messages.parse(message, found.inputs, found.outputs, self._most_rows),
            is_long=len(message.body) > LARGE_BYTES,
        )
        timings.record("decode", time.perf_counter() - started)
        items = await self._items(card, asked.inputs)
        answer = await self._predictor.run(model, items)

        def document() -> EncodedFile:
            answers = _answers(card, found, answer)
            arrays = [_array(card, wanted, answers[wanted.name]) for wanted in asked.outputs]
            return messages.document(card.name, card.version, asked, arrays)

        return await self._executors.run_cpu(document)

    async def _items(self, card: ModelCard, inputs: Mapping[str, Array]) -> Sequence[Item]:
        """What the part is asked about, row by row."""
        rows = inputs[LATENTS] if LATENTS in inputs else inputs[PICTURES]
        if rows.dtype != np.float32:
            await self._predictor.check_pixels([row for row in rows if isinstance(row, bytes)])
            return await gather([self._pixels(card, index, row) for index, row in enumerate(rows)])
        given = torch.from_numpy(rows.copy())  # what lies in the message cannot be written to, which torch wants
        ids = _ids(card, inputs[LABELS]) if LABELS in inputs else None
        chosen = class_labels.one_hot(card, ids, len(given))
        if LATENTS in inputs:
            return torch.cat([given, chosen], dim=1).unbind()
        _check_sides(card, given)
        return with_label_planes(given, chosen).unbind()

    async def _pixels(self, card: ModelCard, index: int, row: bytes | Array) -> Item:
        """A picture of the size that the network wants, from a file's bytes or from pixels."""
        try:
            if isinstance(row, bytes):
                return await self._predictor.decode_pixels(row, card.preprocess)
            pixels = row[..., 0] if row.shape[-1] == 1 else row
            return await self._executors.run_cpu(lambda: card.preprocess.pixels(Image.fromarray(pixels)))
        except VestibuleError as error:
            error.detail = f"{PICTURES}[{index}]: {error.detail or error.title}"
            raise

    def _model(self, name: str, version: str | None) -> tuple[ModelCard, Interface]:
        return _of_version(self._model_manager.cards.get(name), version)

    def _indexed(self, card: ModelCard) -> IndexedModel:
        reason = "" if self._model_manager.is_loaded(card.name) else "its first request loads it"
        return IndexedModel(name=card.name, version=card.version, reason=reason)


def _of_version(card: ModelCard | None, version: str | None) -> tuple[ModelCard, Interface]:
    found = interface(card) if card else None
    if card is None or found is None:
        raise NotFound("no model of that name is served here; POST /v2/repository/index lists them")
    if version not in (None, card.version):
        raise NotFound(f"{card.name} has the version {card.version}, no others")
    return card, found


def _ids(card: ModelCard, sent: Array) -> list[int]:
    ids: list[int] = sent.ravel().tolist()
    if not all(0 <= id_ < len(card.classes) for id_ in ids):
        raise BadRequest(f"{LABELS} are classes of {card.name} by number, 0 to {len(card.classes) - 1}")
    return ids


def _check_sides(card: ModelCard, pictures: Tensor) -> None:
    """Of a network that takes more than one size.

    Raises:
        BadRequest, ImageTooLarge.
    """
    multiple, (height, width) = size_multiple(card), pictures.shape[2:]
    if not multiple:
        return
    if height % multiple or width % multiple:
        raise BadRequest(f"the sides of {PICTURES} are multiples of {multiple}; got {height} x {width}")
    if max(height, width) > SIDE:
        raise ImageTooLarge(f"the sides of {PICTURES} are at most {SIDE}; POST /denoise takes larger ones")


def _answers(card: ModelCard, found: Interface, answer: Tensor) -> dict[str, Tensor]:
    """The network's answer by the names of its outputs.

    Raises:
        Unprocessable: it is not finite.
    """
    answers = dict.fromkeys(found.outputs, answer)
    if PROBABILITIES in answers:
        answers[PROBABILITIES] = (answer / card.temperature).softmax(dim=1)
    if not all(tensor.isfinite().all() for tensor in answers.values()):
        raise Unprocessable(f"{card.name} answers no finite numbers to inputs as large as these")
    return answers


def _array(card: ModelCard, wanted: Wanted, answer: Tensor) -> Array:
    """An output as it is, or each row's largest numbers as Triton writes them: `value:index:label`."""
    if not wanted.classes:
        return answer.numpy()
    values, indices = answer.topk(min(wanted.classes, answer.shape[1]))
    names = [f":{name}" for name in card.classes] or [""] * answer.shape[1]
    rows = [
        [f"{value:f}:{index}{names[index]}".encode() for value, index in zip(*row, strict=True)]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    return np.array(rows, object)
