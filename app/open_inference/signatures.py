"""How each model is asked by the Open Inference Protocol: the tensors of its network, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.inference.submodels import DECODER, DENOISER, RECONSTRUCTOR, WHOLE, Submodel, size_multiple
from app.open_inference.schemas import TensorMetadata
from app.open_inference.tensors import Form
from models.card import ModelCard
from models.registry import configure

PICTURES, LATENTS, LABELS = "pictures", "latents", "labels"
LOGITS, PROBABILITIES, EMBEDDINGS = "logits", "probabilities", "embeddings"


@dataclass(frozen=True)
class Interface:
    """How a part of a model is asked and what it answers: the forms of each input, the first of which is its own."""

    part: Submodel
    inputs: Mapping[str, tuple[Form, ...]]
    outputs: Mapping[str, Form]


def interface(card: ModelCard) -> Interface | None:
    """How the model of this card is asked; None for one that is not."""
    channels, height, width = card.preprocess.shape
    pictures = Form("FP32", (-1, channels, height, width))
    if card.task in ("classify", "embed"):
        forms = (pictures, Form("UINT8", (-1, -1, -1, channels)), Form("BYTES", (-1,)))
        return Interface(WHOLE, {PICTURES: forms}, _vectors(card))
    known = {LABELS: (Form("INT64", (-1,)), Form("INT64", (-1, 1)))} if card.classes else {}
    if card.task == "generate":
        latents = Form("FP32", (-1, configure(card.architecture, card.config).latent))
        return Interface(DECODER, {LATENTS: (latents,), **known}, {PICTURES: pictures})
    if card.task == "detect":
        return None
    if size_multiple(card):
        pictures = Form("FP32", (-1, channels, -1, -1))
        return Interface(DENOISER, {PICTURES: (pictures,)}, {PICTURES: pictures})
    return Interface(RECONSTRUCTOR, {PICTURES: (pictures,), **known}, {PICTURES: pictures})


def _vectors(card: ModelCard) -> dict[str, Form]:
    if card.task == "embed":
        return {EMBEDDINGS: Form("FP32", (-1, card.config["dimensions"]))}
    form = Form("FP32", (-1, len(card.classes)))
    return {LOGITS: form, PROBABILITIES: form}


def metadata(card: ModelCard, name: str, forms: Sequence[Form]) -> TensorMetadata:
    """A tensor that comes in these forms, the first of which is its own."""
    own, *others = forms
    parameters = {}
    if name == PICTURES:
        scale = card.preprocess
        parameters = {"mode": scale.mode, "mean": str(list(scale.mean)), "std": str(list(scale.std))}
    if others:
        parameters["also"] = "; ".join(map(str, others))
    return TensorMetadata(name=name, datatype=own.datatype, shape=list(own.shape), parameters=parameters or None)
