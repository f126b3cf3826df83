"""Load a submodel from a model's folder, and check it by one run."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from app.errors import UnknownModel
from app.images.tiling import SIDE
from app.inference.loaded_model import PreparedModel, convert_out_of_memory, run_padded
from app.inference.submodels import DENOISER, FEATURES, INT8, WHOLE, Submodel, size_multiple
from app.settings import Settings
from models import checkpoint, detector, imported_runtime, runtime
from models.card import ModelCard
from models.runtime_selection import OutputKind, PrepareImage, RuntimeSelector

COMPILED = "compiled"  # the folder of converted and compiled networks in the state folder


def prepare(folder: Path, card: ModelCard, submodel: Submodel, settings: Settings) -> PreparedModel:
    """Read the weights that the card describes.

    Raises:
        CheckpointError: the files do not match each other, or not `card`. UnknownModel: there is no such submodel.
        TooLarge: it does not fit into the device's memory.
    """
    if imported_runtime.is_imported(card):
        return _prepare_imported(folder, card, submodel, settings)
    module, stored_card = checkpoint.load(folder)
    _check_unchanged(folder, card, stored_card)
    if not submodel.supports(module):
        raise UnknownModel(f"{card.name} has no {submodel.name}")
    network = submodel.extract(module)
    choice = _runtime_choice(network, card, submodel, settings)
    accepts_int8 = submodel == INT8 if card.has_int8_vectors else submodel == WHOLE
    if choice is not None and accepts_int8 and (int8 := checkpoint.load_int8(folder, card)) and card.int8:
        choice = replace(choice, int8=(int8, card.int8.tolerance))
    torch_runtime = convert_out_of_memory(lambda: runtime.prepare(network))
    return PreparedModel(card, submodel, torch_runtime, choice)


def _prepare_imported(folder: Path, card: ModelCard, submodel: Submodel, settings: Settings) -> PreparedModel:
    """Read an imported graph, which only OpenVINO runs."""
    is_features = submodel == FEATURES
    if is_features and not card.config["features"]:
        raise UnknownModel(f"{card.name} has no {submodel.name}: its last layer is not a linear layer")
    runtime, stored_card = imported_runtime.load(folder, settings.state / COMPILED, features=is_features)
    _check_unchanged(folder, card, stored_card)
    return PreparedModel(card, submodel, runtime, None)


def _check_unchanged(folder: Path, card: ModelCard, stored_card: ModelCard) -> None:
    if stored_card != card:
        raise checkpoint.CheckpointError(f"{folder}: the card has changed since it was read")


def _runtime_choice(
    network: nn.Module, card: ModelCard, submodel: Submodel, settings: Settings
) -> RuntimeSelector | None:
    """Return the choice among faster runtimes, with how they are compared: the kind of output, the preprocessing of
    photos and their (largest) shape; None: torch serves.
    """
    preprocess = card.preprocess
    kind: OutputKind = "maps"
    prepare: PrepareImage = preprocess
    shape = preprocess.shape
    match card.task, submodel.name:
        case "classify", WHOLE.name:
            kind = "logits"
        case ("classify", FEATURES.name) | ("embed", WHOLE.name | INT8.name):
            kind = "vectors"
        case "detect", WHOLE.name:
            kind, prepare = "faces", partial(detector.prepare, preprocess=preprocess)
        case "denoise", DENOISER.name:
            prepare, shape = partial(_first_tile, card), (preprocess.channels, SIDE, SIDE)
        case _:
            return None
    part = WHOLE if submodel == INT8 else submodel  # the same network, which is converted once
    key, folder = f"{card.sha256} {part.name}", settings.state / COMPILED
    choice = RuntimeSelector(network, prepare, shape, kind, card.tolerance, key, folder, settings.runtime)
    return choice if choice.has_alternatives else None


def _first_tile(card: ModelCard, image: Image.Image) -> Tensor:
    """Return a denoiser's first tile of an image, [C, H, W]."""
    multiple, preprocess = size_multiple(card), card.preprocess
    width, height = (min(length, SIDE) // multiple * multiple for length in image.size)
    pixels = np.array(image.convert(preprocess.mode).crop((0, 0, width, height)))
    return preprocess.normalise(torch.from_numpy(pixels.reshape(height, width, preprocess.channels)))


def output_dimensions(prepared: PreparedModel) -> int:
    """Run one example, so that the first call delays no request, and return the length of the output's first dimension.

    Raises:
        CheckpointError: the output has NaN or infinity. TooLarge: it does not fit into the device's memory.
    """
    shape = prepared.submodel.example_shape(prepared.card)
    # A ramp: zeros would hide weights that overflow.
    example = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    (output,) = convert_out_of_memory(lambda: run_padded(prepared.submodel, prepared.runtime, [example]))
    if not output.isfinite().all():
        raise checkpoint.CheckpointError(f"{prepared.card.name}: its output has NaN or infinity")
    return output.shape[0]
