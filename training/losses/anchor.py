"""The distance of a generator's images from those that a trained generator draws of the same latents.

A discriminator alone did not keep `gan-faces` from drawing the same face for every latent. With an anchor, the
images, reduced to a few pixels, stay near those of a VAE; the discriminator determines their details.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F

from models.generative import SupportsDecode
from models.preprocess import Preprocess
from training.core import weights
from training.core.errors import RecipeError
from training.recipe.config import exported
from training.recipe.gan_config import AnchorSection


class Anchor:
    """The trained generator that a recipe's `anchor.model` names; it is frozen.

    Raises:
        CheckpointError, DataError: see `weights.load`.
        RecipeError: it has labels, other latents, or draws images of another size or mode than `preprocess`.
    """

    def __init__(self, section: AnchorSection, latent: int, preprocess: Preprocess, accelerator: Accelerator):
        network, self.card = weights.load(exported(section.model), "generate")
        self._section, self._accelerator = section, accelerator
        theirs = self.card.preprocess
        for what, actual, expected in (
            ("latent", self.card.config["latent"], latent),
            ("number of classes", len(self.card.classes), 0),
            ("image shape", theirs.shape, preprocess.shape),
            ("part of a photo", theirs.crop_fraction, preprocess.crop_fraction),
        ):
            if actual != expected:
                raise RecipeError(f"anchor.model: {self.card.name} has the {what} {actual}, the recipe {expected}")
        self._gain, self._offset = theirs.units_of(preprocess, accelerator.device)
        network = network.to(accelerator.device).eval()
        assert isinstance(network, SupportsDecode)  # noqa: S101  as every network whose task is to generate
        self._network = network

    def copies(self, step: int) -> bool:
        """Return whether `step`, which counts from 0, is one of the first, in which whole images are copied."""
        return step < self._section.copy_steps

    def loss(self, images: Tensor, latents: Tensor, step: int) -> Tensor:
        """Return the weighted mean squared distance of images [N, C, S, S] of `latents` [N, D], a scalar."""
        with torch.no_grad(), self._accelerator.autocast():
            drawn = self._network.decode(latents, latents.new_zeros(len(latents), 0)).float()
        side = images.shape[2] if self.copies(step) else self._section.side
        drawn = F.adaptive_avg_pool2d(drawn * self._gain + self._offset, side)
        return self._section.weight * F.mse_loss(F.adaptive_avg_pool2d(images.float(), side), drawn)
