"""What a shipped network sees in pictures: the features that distributions of pictures are compared by.

Any classifier serves, by what goes into its head, or any face embedder, by its embeddings; a figure that is made of
them is worth something only beside others of the same extractor, so its name always goes with the figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from models import checkpoint
from models.card import ModelCard
from training.core.errors import DataError

_ROWS_AT_ONCE = 256

# Of ImageNet, on which the Inception of the Frechet Inception distance was trained.
_IMAGENET_CLASSES = 1000


class Sight(NamedTuple):
    """Of N pictures: features float32 [N, D] and, of a classifier with K classes, probabilities float64 [N, K].

    An embedder has no classes: its probabilities are [N, 0].
    """

    features: Tensor
    probabilities: Tensor

    @property
    def labels(self) -> Tensor:
        """The likeliest class of each picture, int64 [N]; without classes all are one, 0."""
        return (
            self.probabilities.argmax(dim=1) if self.probabilities.shape[1] else torch.zeros(len(self.features)).long()
        )


class Extractor:
    """A network of a weights folder, on the CPU.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: a network that is neither a classifier nor an embedder.
    """

    def __init__(self, folder: Path):
        self._network, self.card = checkpoint.load(folder)
        if self.card.task not in {"classify", "embed"}:
            raise DataError(f"{folder} is built to {self.card.task}: features are a classifier's or an embedder's")

    @property
    def name(self) -> str:
        """As `judge-mnist features`."""
        return f"{self.card.name} features"

    @property
    def frechet_name(self) -> str:
        """What the Frechet distance of these features is called: FID if they are those of ImageNet's InceptionV3."""
        return f"{'FID' if _is_inception(self.card) else 'Frechet distance'} ({self.name})"

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Sight:
        """Pictures uint8 [N, H, W, C] of any size, grey or RGB, by way of the card's preprocessing."""
        features, probabilities = [], []
        for first in range(0, len(pixels), _ROWS_AT_ONCE):
            images = torch.stack([self.card.preprocess(picture(one)) for one in pixels[first : first + _ROWS_AT_ONCE]])
            seen, likely = self._read(images)
            features.append(seen)
            probabilities.append(likely)
        return Sight(torch.cat(features), torch.cat(probabilities))

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.card.task == "embed":
            embeddings: Tensor = self._network(images)
            return embeddings, torch.zeros(len(images), 0, dtype=torch.float64)
        seen: Tensor = self._part("features")(images)
        logits: Tensor = self._part("head")(seen)
        return seen, (logits.double() / self.card.temperature).softmax(dim=1)

    def _part(self, name: str) -> nn.Module:
        return self._network.get_submodule(name)


def _is_inception(card: ModelCard) -> bool:
    return card.architecture == "inception-v3" and len(card.classes) == _IMAGENET_CLASSES


def picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """uint8 [H, W, 1 or 3] as a grey or RGB picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
