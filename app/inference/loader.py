"""From a model's folder to a part of it that answers, and how a batch goes through that."""

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
from app.inference.submodels import DENOISER, FEATURES, WHOLE, Part, multiple_of
from app.settings import Settings
from models import checkpoint, detector, runtime
from models.card import ModelCard
from models.preprocess import Preprocess
from models.runtime import Runtime
from models.runtime_selection import OutputKind, PrepareImage, RuntimeSelector

T = TypeVar("T")

# What a model is asked about: what its network takes, or uint8 pixels [H, W, C], 0..255, of a picture's right size.
Item: TypeAlias = Tensor | npt.NDArray[np.uint8]

# What goes through a network at once, in pixels of all its pictures: a full batch of classifiers' pictures, and few of
# a detector's, whose maps are large.
MOST_PIXELS = 32 * 256 * 256


@dataclass(frozen=True)
class Prepared:
    """A model or a part of it, on torch, and what there is to choose instead; None: nothing."""

    card: ModelCard
    part: Part
    runtime: Runtime
    choice: RuntimeSelector | None


def prepare(folder: Path, card: ModelCard, part: Part, settings: Settings) -> Prepared:
    """Read the weights that the card is of.

    Raises:
        CheckpointError: the files do not fit together, or hold another card by now. UnknownModel: no such part.
        TooLarge: it does not fit into the device's memory.
    """
    module, found = checkpoint.load(folder)
    if found != card:
        raise checkpoint.CheckpointError(f"{folder}: the card is not the one that was read before")
    if not part.fits(module):
        raise UnknownModel(f"{card.name} has no {part.name}")
    network = part.cut(module)
    choice = _choice(network, card, part, settings)
    ready = fitting(lambda: runtime.prepare(network))
    return Prepared(card, part, ready, choice if choice and choice.has_alternatives else None)


def _choice(network: nn.Module, card: ModelCard, part: Part, settings: Settings) -> RuntimeSelector | None:
    compared = _compared(card, part)
    if compared is None:
        return None
    kind, prepare, shape = compared
    key, folder = f"{card.sha256} {part.name}", settings.state / "compiled"
    return RuntimeSelector(network, prepare, shape, kind, card.tolerance, key, folder, settings.runtime)


def _compared(card: ModelCard, part: Part) -> tuple[OutputKind, PrepareImage, tuple[int, ...]] | None:
    """What answers to photos are, how photos are shown, and their (largest) shape; None: torch serves in any case."""
    preprocess = card.preprocess
    match card.task, part.name:
        case "classify", WHOLE.name:
            return "logits", preprocess, preprocess.shape
        case ("classify", FEATURES.name) | ("embed", WHOLE.name):
            return "vectors", preprocess, preprocess.shape
        case "detect", WHOLE.name:
            return "maps", partial(detector.prepare, preprocess=preprocess), preprocess.shape
        case "denoise", DENOISER.name:
            return "maps", partial(_tile, card), (preprocess.channels, SIDE, SIDE)
    return None


def _tile(card: ModelCard, picture: Image.Image) -> Tensor:
    """The first tile of a picture for a denoiser, [C, H, W]."""
    multiple, preprocess = multiple_of(card), card.preprocess
    width, height = (min(length, SIDE) // multiple * multiple for length in picture.size)
    pixels = np.array(picture.convert(preprocess.mode).crop((0, 0, width, height)))
    return preprocess.normalise(torch.from_numpy(pixels.reshape(height, width, preprocess.channels)))


def dimensions(prepared: Prepared) -> int:
    """How many numbers, or maps, an item is answered with, by running it once: so no user pays for the first call.

    Raises:
        CheckpointError: the output has NaN or infinity.
    """
    shape = prepared.part.example(prepared.card)
    # A ramp: zeros would hide weights that overflow.
    example = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    (answer,) = fitting(lambda: run_filled(prepared.part, prepared.runtime, [example]))
    if not answer.isfinite().all():
        raise checkpoint.CheckpointError(f"{prepared.card.name}: its output has NaN or infinity")
    return answer.shape[0]


def run(part: Part, preprocess: Preprocess, ready: Runtime, items: Sequence[Item]) -> list[Tensor]:
    """The part's output for each item, in their order.

    Raises:
        TooLarge: it does not fit into the device's memory.
    """
    if part.rows is None:
        return fitting(lambda: run_shaped(preprocess, ready, items))
    filled = [item if isinstance(item, Tensor) else stacked(preprocess, [item])[0] for item in items]
    return fitting(lambda: run_filled(part, ready, filled))


def stacked(preprocess: Preprocess, items: Sequence[Item]) -> Tensor:
    """Items of one kind and shape as the network takes them, [N, C, H, W]: of pixels all at once, since one by one they
    cost as much as to decode them.
    """
    with runtime.one_thread():  # others would spin for a while, on the cores that the network is about to need
        tensors = [item for item in items if isinstance(item, Tensor)]
        if tensors:
            return torch.stack(tensors)
        return preprocess.normalise(torch.from_numpy(np.stack([np.asarray(item) for item in items])))


def fitting(work: Callable[[], T]) -> T:
    """What comes of it.

    Raises:
        TooLarge: it does not fit into the device's memory.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Only here: the error's traceback holds all that was in memory, and is gone by now.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise TooLarge(reason)


def run_shaped(preprocess: Preprocess, ready: Runtime, items: Sequence[Item]) -> list[Tensor]:
    """The network's output for each item, in their order; those of one shape go through together."""
    shapes: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for index, item in enumerate(items):
        shapes.setdefault((isinstance(item, Tensor), tuple(item.shape)), []).append(index)
    outputs: dict[int, Tensor] = {}
    for (_, shape), indices in shapes.items():
        size = max(1, MOST_PIXELS * preprocess.channels // math.prod(shape))
        for first in range(0, len(indices), size):
            group = indices[first : first + size]
            batch = stacked(preprocess, [items[index] for index in group])
            outputs |= zip(group, ready(batch), strict=True)
    return [outputs[index] for index in range(len(items))]


def run_filled(part: Part, ready: Runtime, items: Sequence[Tensor]) -> list[Tensor]:
    """The part's output for each of at most `part.rows` items of one shape; zeros fill the batch."""
    missing = (part.rows or 0) - len(items)
    batch = torch.stack([*items, *(torch.zeros_like(items[0]) for _ in range(missing))])
    with runtime.one_thread() if part.exact else nullcontext():
        return list(ready(batch)[: len(items)])
