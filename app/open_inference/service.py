"""The service of the Open Inference Protocol: run a network on tensors, in the same queues as all other requests.

It runs the network only, without the steps that `POST /classify` and other routes add: test-time augmentation, face
detection and alignment, several crops of a string of digits.
"""

from __future__ import annotations

import importlib.metadata
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
from app.inference.loaded_model import Item
from app.inference.predictor import Predictor, gather
from app.inference.submodels import size_multiple
from app.observability import timings
from app.open_inference import messages, signatures
from app.open_inference.messages import Message, RequestedOutput
from app.open_inference.schemas import IndexedModel, ModelMetadata, ModelReady, ServerMetadata
from app.open_inference.signatures import IMAGES, LABELS, LATENTS, PROBABILITIES, Signature, signature
from app.open_inference.tensors import Array
from app.settings import Settings
from models.card import ModelCard
from models.generative import with_label_planes

EXTENSIONS = ["binary_tensor_data", "classification"]
PLATFORM = "pytorch_safetensors"


class OpenInference:
    """Serves all models except detectors, whose raw outputs are of no use without `POST /faces/detect`'s decoding."""

    def __init__(self, settings: Settings, predictor: Predictor):
        self._predictor = predictor
        self._model_manager = predictor.model_manager
        self._executors = predictor.executors
        self._max_rows = settings.max_images

    def server(self) -> ServerMetadata:
        """Return the server's name, version and extensions."""
        return ServerMetadata(name="vestibule", version=importlib.metadata.version("vestibule"), extensions=EXTENSIONS)

    def index(self) -> list[IndexedModel]:
        """Return the served models, sorted by name."""
        return [
            IndexedModel(
                name=card.name,
                version=card.version,
                reason="" if self._model_manager.is_loaded(card.name) else "loaded by its first request",
            )
            for card in self._model_manager.cards.values()
            if signature(card)
        ]

    def ready(self, name: str, version: str | None) -> ModelReady:
        """Return the readiness of a model: every served model is ready.

        Raises:
            NotFound: there is no such model, or it has another version.
        """
        card, _ = self._find(name, version)
        return ModelReady(name=card.name)

    def metadata(self, name: str, version: str | None) -> ModelMetadata:
        """Return the inputs and outputs of a model.

        Raises:
            NotFound: as `ready`.
        """
        card, model_signature = self._find(name, version)
        return ModelMetadata(
            name=card.name,
            versions=[card.version],
            platform=PLATFORM,
            inputs=[signatures.tensor_metadata(card, *item) for item in model_signature.inputs.items()],
            outputs=[
                signatures.tensor_metadata(card, name, (type_,)) for name, type_ in model_signature.outputs.items()
            ],
        )

    async def infer(self, name: str, version: str | None, message: Message) -> EncodedFile:
        """Run the network on the message's tensors and return the encoded response; each row is queued by itself.

        Raises:
            NotFound: as `ready`. BadRequest, BodyTooLarge, TooManyImages: if the message is invalid or too large.
            DamagedImage, ImageTooLarge, UnsupportedImage: if an image is. Unprocessable: if the outputs are not finite.
            Overloaded, NotReady, DeadlineExceeded.
        """
        return await self._predictor.with_deadline(self._infer(name, version, message))

    async def _infer(self, name: str, version: str | None, message: Message) -> EncodedFile:
        card, model_signature = self._find(name, version)
        model = await self._model_manager.load_submodel(card, model_signature.submodel)
        # The model may have been reloaded meanwhile: from here on, use the card of the loaded weights.
        card, model_signature = _check_version(model.card, version)
        parsing = self._executors.run_cpu(
            lambda: messages.parse(message, model_signature.inputs, model_signature.outputs, self._max_rows),
            is_long=len(message.body) > LARGE_BYTES,
        )
        request = await timings.timed("decode", parsing)
        items = await self._prepare_items(card, request.inputs)
        output = await self._predictor.run(model, items)

        def encode() -> EncodedFile:
            outputs = _named_outputs(card, model_signature, output)
            arrays = [_to_array(card, requested, outputs[requested.name]) for requested in request.outputs]
            return messages.encode_response(card.name, card.version, request, arrays)

        return await self._executors.run_cpu(encode)

    async def _prepare_items(self, card: ModelCard, inputs: Mapping[str, Array]) -> Sequence[Item]:
        """Return the submodel's input for each row.

        Raises:
            BadRequest: if a label is not a class. Also the errors of `_prepare_pixels` and `_check_sides`.
        """
        rows = inputs[LATENTS] if LATENTS in inputs else inputs[IMAGES]
        if rows.dtype != np.float32:
            await self._predictor.check_pixels([row for row in rows if isinstance(row, bytes)])
            return await gather([self._prepare_pixels(card, index, row) for index, row in enumerate(rows)])
        batch = torch.from_numpy(rows.copy())  # torch requires writable memory; the message's is read-only
        ids: list[int] | None = inputs[LABELS].ravel().tolist() if LABELS in inputs else None
        if not all(0 <= id_ < len(card.classes) for id_ in ids or ()):
            raise BadRequest(f"{LABELS} must be class numbers of {card.name}, 0 to {len(card.classes) - 1}")
        labels = class_labels.one_hot(card, ids, len(batch))
        if LATENTS in inputs:
            return torch.cat([batch, labels], dim=1).unbind()
        _check_sides(card, batch)
        return with_label_planes(batch, labels).unbind()

    async def _prepare_pixels(self, card: ModelCard, index: int, row: bytes | Array) -> Item:
        """Return an encoded image or an array of pixels as pixels in the network's size."""
        try:
            if isinstance(row, bytes):
                return await self._predictor.decode_pixels(row, card.preprocess)
            pixels = row[..., 0] if row.shape[-1] == 1 else row
            return await self._executors.run_cpu(lambda: card.preprocess.pixels(Image.fromarray(pixels)))
        except VestibuleError as error:
            error.detail = f"{IMAGES}[{index}]: {error.detail or error.title}"
            raise

    def _find(self, name: str, version: str | None) -> tuple[ModelCard, Signature]:
        return _check_version(self._model_manager.cards.get(name), version)


def _check_version(card: ModelCard | None, version: str | None) -> tuple[ModelCard, Signature]:
    model_signature = signature(card) if card else None
    if card is None or model_signature is None:
        raise NotFound("there is no such model; POST /v2/repository/index lists the models")
    if version not in (None, card.version):
        raise NotFound(f"the only version of {card.name} is {card.version}")
    return card, model_signature


def _check_sides(card: ModelCard, images: Tensor) -> None:
    """Check the sides of images for a network that accepts several sizes.

    Raises:
        BadRequest: if a side is not a multiple of the network's. ImageTooLarge.
    """
    multiple, (height, width) = size_multiple(card), images.shape[2:]
    if not multiple:
        return
    if height % multiple or width % multiple:
        raise BadRequest(f"the sides of {IMAGES} must be multiples of {multiple}; got {height} x {width}")
    if max(height, width) > SIDE:
        raise ImageTooLarge(f"the sides of {IMAGES} must be at most {SIDE}; POST /denoise accepts larger ones")


def _named_outputs(card: ModelCard, model_signature: Signature, output: Tensor) -> dict[str, Tensor]:
    """Return the network's output as the outputs of its signature.

    Raises:
        Unprocessable: it is not finite.
    """
    outputs = dict.fromkeys(model_signature.outputs, output)
    if PROBABILITIES in outputs:
        outputs[PROBABILITIES] = (output / card.temperature).softmax(dim=1)
    if not all(tensor.isfinite().all() for tensor in outputs.values()):
        raise Unprocessable(f"the outputs of {card.name} are not finite: the inputs are too large")
    return outputs


def _to_array(card: ModelCard, requested: RequestedOutput, output: Tensor) -> Array:
    """Return an output unchanged, or each row's largest values as Triton formats them: `value:index:label`."""
    if not requested.classes:
        return output.numpy()
    values, indices = output.topk(min(requested.classes, output.shape[1]))
    names = [f":{name}" for name in card.classes] or [""] * output.shape[1]
    rows = [
        [f"{value:f}:{index}{names[index]}".encode() for value, index in zip(*row, strict=True)]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    return np.array(rows, object)
