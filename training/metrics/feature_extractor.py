"""Extract features of images with a shipped network, to compare distributions of images.

The extractor is a classifier, whose features are the inputs of its head, or a face embedder, whose features are its
embeddings. Figures of different extractors cannot be compared, so every figure states the extractor's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from models import checkpoint
from training.core.errors import DataError

_ROWS_AT_ONCE = 256

# The InceptionV3 of the Frechet Inception distance was trained on ImageNet.
_IMAGENET_CLASSES = 1000


class ExtractedFeatures(NamedTuple):
    """Features float32 [N, D] of N images, and class probabilities float64 [N, K]; K is 0 for an embedder."""

    features: Tensor
    probabilities: Tensor

    @property
    def labels(self) -> Tensor:
        """The most likely class of each image, int64 [N]; 0 if there are no classes."""
        return (
            self.probabilities.argmax(dim=1) if self.probabilities.shape[1] else torch.zeros(len(self.features)).long()
        )


class Extractor:
    """A network of a weights folder, on the CPU.

    Raises:
        CheckpointError: see `checkpoint.load`. DataError: if the network is neither a classifier nor an embedder.
    """

    def __init__(self, folder: Path):
        self._network, self.card = checkpoint.load(folder)
        if self.card.task not in {"classify", "embed"}:
            raise DataError(f"{folder} is built to {self.card.task}: features come from a classifier or an embedder")
        self._network.to(memory_format=torch.channels_last)  # takes half the time on a CPU

    @property
    def name(self) -> str:
        """The name of the features, as `judge-mnist features`."""
        return f"{self.card.name} features"

    @property
    def frechet_name(self) -> str:
        """The name of the Frechet distance in these features: FID for those of ImageNet's InceptionV3."""
        is_inception = self.card.architecture == "inception-v3" and len(self.card.classes) == _IMAGENET_CLASSES
        return f"{'FID' if is_inception else 'Frechet distance'} ({self.name})"

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> ExtractedFeatures:
        """Extract from images uint8 [N, H, W, C] of any size, grey or RGB, with the card's preprocessing."""
        starts = range(0, len(pixels), _ROWS_AT_ONCE)
        batches = [self._extract(pixels[first : first + _ROWS_AT_ONCE]) for first in starts]
        return ExtractedFeatures(*(torch.cat(parts) for parts in zip(*batches, strict=True)))

    def _extract(self, pixels: npt.NDArray[np.uint8]) -> ExtractedFeatures:
        images = torch.stack([self.card.preprocess(to_image(image)) for image in pixels])
        if self.card.task == "embed":
            return ExtractedFeatures(self._network(images), torch.zeros(len(images), 0, dtype=torch.float64))
        features: Tensor = self._network.get_submodule("features")(images)
        logits: Tensor = self._network.get_submodule("head")(features)
        return ExtractedFeatures(features, (logits.double() / self.card.temperature).softmax(dim=1))


def to_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Convert uint8 [H, W, 1 or 3] to a grey or RGB image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
