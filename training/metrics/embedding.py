"""Compute embeddings as the service does, and measure them while an embedder is trained or calibrated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from models import checkpoint, imported_runtime
from models.card import ModelCard
from models.imported_runtime import is_imported
from models.openvino_runtime import OpenVinoInt8Runtime
from models.preprocess import Preprocess
from models.runtime import Runtime
from models.tta import Tta
from training.core import weights
from training.core.errors import DataError
from training.datasets.images import ImageSet, Indices
from training.losses.metric_learning import unit
from training.metrics.classification import evaluation_runtime, predict
from training.recipe.config import runs_folder


def load_embedder(folder: Path) -> tuple[Runtime, ModelCard]:
    """Return runtime and card of an embedder's weights folder.

    Raises:
        CheckpointError, DataError: see `weights.load` and `imported_runtime.load`.
    """
    if is_imported(weights.read_card(folder, "embed")):
        return imported_runtime.load(folder)
    network, card = weights.load(folder, "embed")
    return evaluation_runtime(network), card


def load_int8_embedder(folder: Path) -> tuple[Runtime, ModelCard]:
    """Return runtime and card of an embedder's quantised network.

    Raises:
        CheckpointError: see `weights.read_card` and `checkpoint.load_int8`. DataError: see `weights.read_card`; there
            is no quantised network.
    """
    card = weights.read_card(folder, "embed")
    int8 = checkpoint.load_int8(folder, card)
    if int8 is None:
        raise DataError(f"{folder} has no quantised network: `vestibule quantise {card.name}` writes it")
    return OpenVinoInt8Runtime(*int8, card.preprocess.shape, runs_folder() / "cache" / "compiled"), card


def embed_rows(runtime: Runtime, images: ImageSet, rows: Indices, preprocess: Preprocess, *, tta: Tta) -> Tensor:
    """Return unit vectors, float32 [len(rows), D] on the CPU: the normalised sum of the vectors of each view."""
    return unit(predict(runtime, images, rows, preprocess, tta=tta).sum(dim=0))


def embed_faces(runtime: Runtime, faces: npt.NDArray[np.uint8], preprocess: Preprocess, *, tta: Tta) -> Tensor:
    """Return the unit vectors, float32 [N, D], of aligned faces, uint8 [N, 112, 112, 3], as `embed_rows`."""
    pixels = np.stack([preprocess.pixels(Image.fromarray(face)) for face in faces])
    rows = np.arange(len(faces))
    return embed_rows(runtime, ImageSet(pixels, rows, ()), rows, preprocess, tta=tta)
