"""Load a submodel from a model's folder, and run batches through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from app.errors import UnknownModel
from app.images.tiling import SIDE
from app.inference.batcher import TooLarge
from app.inference.submodels import DENOISER, FEATURES, WHOLE, Submodel, size_multiple
from app.settings import Settings
from models import checkpoint, detector, runtime
from models.card import ModelCard
from models.preprocess import Preprocess
from models.runtime import Runtime
from models.runtime_selection import Choice, Kind, Prepare

T = TypeVar("T")

# An input of a model: the network's own input tensor, or uint8 pixels [H, W, C], 0..255, of the network's image size.
Item: TypeAlias = Tensor | npt.NDArray[np.uint8]

# Most pixels, of all images together, that run through a network at once: a full batch for a classifier, and few
# images for a detector, whose feature maps are large.
MAX_BATCH_PIXELS = 32 * 256 * 256


@dataclass(frozen=True)
class PreparedModel:
    """A model or submodel on torch, and the choice among faster runtimes; None: torch is the only one."""

    card: ModelCard
    submodel: Submodel
    runtime: Runtime
    choice: Choice | None


def prepare(folder: Path, card: ModelCard, submodel: Submodel, settings: Settings) -> PreparedModel:
    """Read the weights that the card describes.

    Raises:
        CheckpointError: the files do not match each other, or not `card`. UnknownModel: there is no such submodel.
        TooLarge: it does not fit into the device's memory.
    """
    module, stored_card = checkpoint.load(folder)
    if stored_card != card:
        raise checkpoint.CheckpointError(f"{folder}: the card has changed since it was read")
    if not submodel.supports(module):
        raise UnknownModel(f"{card.name} has no {submodel.name}")
    network = submodel.extract(module)
    choice = _runtime_choice(network, card, submodel, settings)
    torch_runtime = convert_out_of_memory(lambda: runtime.prepare(network))
    return PreparedModel(card, submodel, torch_runtime, choice if choice and choice.is_open else None)


def _runtime_choice(network: nn.Module, card: ModelCard, submodel: Submodel, settings: Settings) -> Choice | None:
    comparison = _comparison(card, submodel)
    if comparison is None:
        return None
    kind, prepare, shape = comparison
    key, folder = f"{card.sha256} {submodel.name}", settings.state / "compiled"
    return Choice(network, prepare, shape, kind, card.tolerance, key, folder, settings.runtime)


def _comparison(card: ModelCard, submodel: Submodel) -> tuple[Kind, Prepare, tuple[int, ...]] | None:
    """How runtimes are compared: the kind of output, the preprocessing of photos and their (largest) shape; None: they
    are not, and torch serves.
    """
    preprocess = card.preprocess
    match card.task, submodel.name:
        case "classify", WHOLE.name:
            return "logits", preprocess, preprocess.shape
        case ("classify", FEATURES.name) | ("embed", WHOLE.name):
            return "vectors", preprocess, preprocess.shape
        case "detect", WHOLE.name:
            return "maps", partial(detector.prepare, preprocess=preprocess), preprocess.shape
        case "denoise", DENOISER.name:
            return "maps", partial(_first_tile, card), (preprocess.channels, SIDE, SIDE)
    return None


def _first_tile(card: ModelCard, image: Image.Image) -> Tensor:
    """Return a denoiser's first tile of an image, [C, H, W]."""
    multiple, preprocess = size_multiple(card), card.preprocess
    width, height = (min(length, SIDE) // multiple * multiple for length in image.size)
    pixels = np.array(image.convert(preprocess.mode).crop((0, 0, width, height)))
    return preprocess.normalise(torch.from_numpy(pixels.reshape(height, width, preprocess.channels)))


def output_dimensions(prepared: PreparedModel) -> int:
    """Run one example, so that no request pays for the first call, and return the length of its first dimension.

    Raises:
        CheckpointError: the output has NaN or infinity.
    """
    shape = prepared.submodel.example_shape(prepared.card)
    # A ramp: zeros would hide weights that overflow.
    example = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    (output,) = convert_out_of_memory(lambda: run_padded(prepared.submodel, prepared.runtime, [example]))
    if not output.isfinite().all():
        raise checkpoint.CheckpointError(f"{prepared.card.name}: its output has NaN or infinity")
    return output.shape[0]


def run(submodel: Submodel, preprocess: Preprocess, network: Runtime, items: Sequence[Item]) -> list[Tensor]:
    """Return the submodel's output for each item, in their order.

    Raises:
        TooLarge: it does not fit into the device's memory.
    """
    if submodel.batch_size is None:
        return convert_out_of_memory(lambda: run_by_shape(preprocess, network, items))
    tensors = [item if isinstance(item, Tensor) else stack_items(preprocess, [item])[0] for item in items]
    return convert_out_of_memory(lambda: run_padded(submodel, network, tensors))


def stack_items(preprocess: Preprocess, items: Sequence[Item]) -> Tensor:
    """Return items of one type and shape as a batch [N, C, H, W]. Pixels are normalised all at once: one by one that
    takes as long as decoding them.
    """
    with runtime.one_thread():  # other threads would spin on cores that the network needs next
        tensors = [item for item in items if isinstance(item, Tensor)]
        if tensors:
            return torch.stack(tensors)
        return preprocess.normalise(torch.from_numpy(np.stack([np.asarray(item) for item in items])))


def convert_out_of_memory(function: Callable[[], T]) -> T:
    """Return the function's result.

    Raises:
        TooLarge: instead of torch.OutOfMemoryError.
    """
    try:
        return function()
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Not in the handler: the error's traceback references all tensors of the batch until the handler ends.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise TooLarge(reason)


def run_by_shape(preprocess: Preprocess, network: Runtime, items: Sequence[Item]) -> list[Tensor]:
    """Return the network's output for each item, in their order; items of one shape share a batch."""
    shapes: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for index, item in enumerate(items):
        shapes.setdefault((isinstance(item, Tensor), tuple(item.shape)), []).append(index)
    outputs: dict[int, Tensor] = {}
    for (_, shape), indices in shapes.items():
        size = max(1, MAX_BATCH_PIXELS * preprocess.channels // math.prod(shape))
        for first in range(0, len(indices), size):
            group = indices[first : first + size]
            batch = stack_items(preprocess, [items[index] for index in group])
            outputs |= zip(group, network(batch), strict=True)
    return [outputs[index] for index in range(len(items))]


def run_padded(submodel: Submodel, network: Runtime, items: Sequence[Tensor]) -> list[Tensor]:
    """Return the output for each of at most `batch_size` items of one shape; zeros fill the rest of the batch."""
    missing = (submodel.batch_size or 0) - len(items)
    batch = torch.stack([*items, *(torch.zeros_like(items[0]) for _ in range(missing))])
    with runtime.one_thread() if submodel.deterministic else nullcontext():
        return list(network(batch)[: len(items)])
