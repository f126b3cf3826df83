"""A trained classifier as the teacher of another."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from training.core import weights
from training.core.errors import RecipeError
from training.losses.soft_targets import logit_distillation
from training.recipe.config import Recipe


class Teacher:
    """The classifier that a recipe's `teacher.model` names. It sees the same augmented images as the student.

    That the teacher judges the very image that the student gets, and not the image before its augmentation, matters:
    Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022.

    Raises:
        CheckpointError, DataError: see `weights.load`.
        RecipeError: the teacher has other classes than the data, or reads images of another mode.
    """

    def __init__(self, recipe: Recipe, classes: tuple[str, ...], accelerator: Accelerator):
        self._section = recipe.teacher
        network, self.card = weights.load(Path(self._section.model), "classify")
        self._preprocess = self.card.preprocess
        for name, actual, expected in (
            ("classes", self.card.classes, classes),
            ("mode", self._preprocess.mode, recipe.preprocess.mode),
        ):
            if actual != expected:
                raise RecipeError(f"teacher.model: {self.card.name} has the {name} {actual}, the recipe {expected}")
        self._network = network.to(memory_format=torch.channels_last).to(accelerator.device).eval()
        self._accelerator = accelerator

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the teacher's logits [N, K] of images [N, C, H, W], 0..255, which are resized to its size."""
        size = self._preprocess.shape[1:]
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode=self._preprocess.interpolation, antialias=True).clamp(0, 255)
        images = self._preprocess.normalise(images.movedim(1, -1)).contiguous(memory_format=torch.channels_last)
        with self._accelerator.autocast():
            logits: Tensor = self._network(images)
        return logits.float()

    def loss(self, student: Tensor, taught: Tensor, labelled: Tensor) -> Tensor:
        """Return the weighted mean of the divergence of the logits [N, K] and of the loss `labelled` of the labels."""
        section = self._section
        return (
            section.weight * logit_distillation(student, taught, section.temperature) + (1 - section.weight) * labelled
        )
