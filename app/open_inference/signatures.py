"""The input and output tensors of each model in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.inference.submodels import DECODER, DENOISER, RECONSTRUCTOR, WHOLE, Submodel, size_multiple
from app.open_inference.schemas import TensorMetadata
from app.open_inference.tensors import TensorType
from models.card import ModelCard
from models.registry import configure

IMAGES, LATENTS, LABELS = "pictures", "latents", "labels"
LOGITS, PROBABILITIES, EMBEDDINGS = "logits", "probabilities", "embeddings"


@dataclass(frozen=True)
class Signature:
    """The submodel that serves requests, the types that each input accepts, and the type of each output.

    The first type of an input is the network's own; the others are converted to it.
    """

    submodel: Submodel
    inputs: Mapping[str, tuple[TensorType, ...]]
    outputs: Mapping[str, TensorType]


def signature(card: ModelCard) -> Signature | None:
    """Return the signature of a model; None if it is not served by this protocol."""
    channels, height, width = card.preprocess.shape
    images = TensorType("FP32", (-1, channels, height, width))
    if card.task in ("classify", "embed"):
        types = (images, TensorType("UINT8", (-1, -1, -1, channels)), TensorType("BYTES", (-1,)))
        if card.task == "embed":
            return Signature(WHOLE, {IMAGES: types}, {EMBEDDINGS: TensorType("FP32", (-1, card.config["dimensions"]))})
        scores = TensorType("FP32", (-1, len(card.classes)))
        return Signature(WHOLE, {IMAGES: types}, {LOGITS: scores, PROBABILITIES: scores})
    labels = {LABELS: (TensorType("INT64", (-1,)), TensorType("INT64", (-1, 1)))} if card.classes else {}
    if card.task == "generate":
        latents = TensorType("FP32", (-1, configure(card.architecture, card.config).latent))
        return Signature(DECODER, {LATENTS: (latents,), **labels}, {IMAGES: images})
    if card.task == "detect":
        return None
    if size_multiple(card):
        images = TensorType("FP32", (-1, channels, -1, -1))
        return Signature(DENOISER, {IMAGES: (images,)}, {IMAGES: images})
    return Signature(RECONSTRUCTOR, {IMAGES: (images,), **labels}, {IMAGES: images})


def tensor_metadata(card: ModelCard, name: str, types: Sequence[TensorType]) -> TensorMetadata:
    """Return the metadata of a tensor of these types; `also` lists all but the first."""
    first, *rest = types
    parameters = {}
    if name == IMAGES:
        scale = card.preprocess
        parameters = {"mode": scale.mode, "mean": str(list(scale.mean)), "std": str(list(scale.std))}
    if rest:
        parameters["also"] = "; ".join(map(str, rest))
    return TensorMetadata(name=name, datatype=first.datatype, shape=list(first.shape), parameters=parameters or None)
