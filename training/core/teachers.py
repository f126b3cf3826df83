"""Trained classifiers as the teachers of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models import openvino_runtime
from models.card import ModelCard
from models.runtime import Runtime, TorchRuntime
from training.core import weights
from training.core.errors import RecipeError
from training.losses.soft_targets import logit_distillation
from training.recipe.config import Recipe, exported, runs_folder


@dataclass(frozen=True)
class _Teacher:
    card: ModelCard
    run: Runtime


class Teachers:
    """The classifiers that a recipe's `teacher.models` names. They see the same augmented images as the student.

    That a teacher judges the very image that the student gets, and not the image before its augmentation, matters:
    Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022. Several teachers of
    different architectures make different errors, so their mean is more accurate than each: Hinton, Vinyals and Dean,
    "Distilling the Knowledge in a Neural Network", 2015.

    Raises:
        CheckpointError, DataError: see `weights.load`.
        RecipeError: a teacher has other classes than the data, or reads images of another mode.
    """

    def __init__(self, recipe: Recipe, classes: tuple[str, ...], accelerator: Accelerator):
        self._section = recipe.teacher
        self._accelerator = accelerator
        self._teachers = []
        for name in self._section.models:
            network, card = weights.load(exported(name), "classify")
            for what, actual, expected in (
                ("classes", card.classes, classes),
                ("mode", card.preprocess.mode, recipe.preprocess.mode),
            ):
                if actual != expected:
                    raise RecipeError(f"teacher.models: {name} has the {what} {actual}, the recipe {expected}")
            self._teachers.append(_Teacher(card, self._runtime(network, card)))

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """The teachers' cards, in the recipe's order."""
        return tuple(teacher.card for teacher in self._teachers)

    def _runtime(self, network: nn.Module, card: ModelCard) -> Runtime:
        """Return torch on an accelerator, on a CPU OpenVINO, which takes a third of torch's time there."""
        if self._accelerator.device.type != "cpu":
            return TorchRuntime(network, self._accelerator.device)
        return openvino_runtime.OpenVinoRuntime(
            network,
            card.preprocess.shape,
            openvino_runtime.precisions()[0],
            card.version,
            runs_folder() / "teachers" / "openvino",
        )

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the mean of the teachers' calibrated logits [N, K] for images [N, C, H, W], 0..255.

        Each teacher gets the images in its size, and its logits are divided by its card's temperature: then the mean is
        the logarithm of the probabilities' geometric mean, up to a constant.
        """
        calibrated = [_logits(teacher, images) / teacher.card.temperature for teacher in self._teachers]
        return torch.stack(calibrated).mean(dim=0).to(images.device)

    def loss(self, student: Tensor, taught: Tensor, labelled: Tensor) -> Tensor:
        """Return the weighted mean of the divergence of the logits [N, K] and of the loss `labelled` of the labels."""
        section = self._section
        return (
            section.weight * logit_distillation(student, taught, section.temperature) + (1 - section.weight) * labelled
        )


def _logits(teacher: _Teacher, images: Tensor) -> Tensor:
    """Return a teacher's logits [N, K] of images [N, C, H, W], 0..255."""
    preprocess = teacher.card.preprocess
    size = preprocess.shape[1:]
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode=preprocess.interpolation, antialias=True).clamp(0, 255)
    return teacher.run(preprocess.normalise(images.movedim(1, -1)).contiguous())
