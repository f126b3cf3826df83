"""Write a model of the weights folder as an ONNX file: the submodel that serves requests which give only its name."""

from __future__ import annotations

from pathlib import Path

import onnx

from app.inference.submodels import default_submodel, size_multiple
from models import checkpoint
from models.card import ModelCard
from models.onnx_export import export_onnx
from models.registry import Task

_OUTPUTS: dict[Task, str] = {"classify": "logits", "embed": "embeddings", "detect": "maps"}
CARD_PROPERTY = "vestibule.card"  # the name of the ONNX file's property that holds the card as JSON


def write_onnx(folder: Path, file: Path) -> ModelCard:
    """Write the model in `folder` to an ONNX file and return its card, which the file also holds.

    The input is any number of images [N, C, H, W] or, for a generator, latent vectors, float32; detectors and denoisers
    accept images of several sizes.

    Raises:
        CheckpointError: see `checkpoint.load`. OSError: the file cannot be written.
    """
    module, card = checkpoint.load(folder)
    submodel = default_submodel(card)
    shape = submodel.example_shape(card)
    if card.task == "detect" or (card.task == "denoise" and size_multiple(card)):
        shape = (shape[0], -1, -1)
    network = onnx.load_from_string(export_onnx(submodel.extract(module), shape, _OUTPUTS.get(card.task, "images")))
    onnx.helper.set_model_props(network, {CARD_PROPERTY: card.model_dump_json()})
    checkpoint.write_atomically(file, network.SerializeToString())
    return card
