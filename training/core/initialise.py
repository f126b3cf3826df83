"""Where a network starts, before any step: at another one's features, or at what the pictures say of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.preprocess import Preprocess
from training.core.errors import RecipeError
from training.datasets.images import ImageSet, Indices
from training.recipe.config import Recipe, TrainSection

_SAMPLE = 5000
# Of the patches' mean variance: directions with less, as JPEG leaves them in the colours, are noise to be left small.
_NOISE = 1e-2
# What features expect of their pictures: other values, and they are of no use.
_NORMALISATION = {"mode", "mean", "std"}


class Start:
    """The classifier that a recipe's `model.start` names: its card, and its features for another network.

    Raises:
        RecipeError: no whole model in that folder, no classifier, another architecture than the recipe's, or one whose
            pictures were of another mode, mean or deviation. Their size may differ.
    """

    def __init__(self, recipe: Recipe):
        try:
            self._network, self.card = checkpoint.load(Path(recipe.model.start))
        except checkpoint.CheckpointError as error:
            raise RecipeError(f"model.start: {error}") from error
        if self.card.task != "classify":
            raise RecipeError(f"model.start: {self.card.name} is no classifier: it is there to {self.card.task}")
        known = {"architecture": self.card.architecture} | self.card.preprocess.model_dump(include=_NORMALISATION)
        asked = {"architecture": recipe.model.architecture} | recipe.preprocess.model_dump(include=_NORMALISATION)
        for part, value in known.items():
            if asked[part] != value:
                raise RecipeError(f"model.start: {self.card.name} has the {part} {value}, the recipe {asked[part]}")

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """The card's config with the recipe's changes."""
        return self.card.config | recipe.model.config

    def give(self, network: nn.Module) -> None:
        """Let the network's features be this one's, and its last linear layer begin at zero.

        A random one's logits of such features are large and wrong, and few pictures do not unlearn them: after ten
        epochs of 115 pictures of three classes 0.48 of 29 others were right, instead of 0.93.

        Raises:
            RecipeError: they have another form, by the recipe's changes to the config.
        """
        try:
            network.get_submodule("features").load_state_dict(self._network.get_submodule("features").state_dict())
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"model.config asks for other features than {self.card.name} has: {reason}") from error
        linear = [module for module in network.get_submodule("head").modules() if isinstance(module, nn.Linear)]
        for parameter in linear[-1].parameters() if linear else ():
            nn.init.zeros_(parameter)


def whiten(network: nn.Module, images: ImageSet, rows: Indices, preprocess: Preprocess) -> nn.Conv2d:
    """Let the first convolution begin as a whitening of its patches: what follows sees directions that are unrelated.

    Its filters become the eigenvectors of the covariance of patches of at most 5,000 of `rows`, each over the standard
    deviation along it and with both signs, so that a ReLU loses neither half. The directions of most variance come
    first; filters beyond two for each direction that is more than noise stay as they were. After Jordan, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024; there the filters are never trained, see
    `TrainSection.freeze_whitening`. Returns that convolution.

    Raises:
        ValueError: no convolution, or one that does not read `preprocess`'s channels.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != preprocess.channels:
        raise ValueError(f"there is no first convolution of {preprocess.channels} channels to begin as a whitening")
    filters = whitening(_patches(first, images, rows, preprocess))[: first.out_channels // 2]
    with torch.no_grad():
        pairs = torch.stack([filters, -filters], dim=1).view(-1, *first.weight.shape[1:])
        first.weight[: len(pairs)] = pairs.to(first.weight)
        if first.bias is not None:
            first.bias.zero_()
    return first


def begin_as_identity(network: nn.Module) -> None:
    """Let each convolution after the first pass its input on: its first `in_channels` filters become a Dirac delta.

    The other filters, and convolutions with fewer outputs than inputs, several groups or an even kernel, stay as they
    are. After Jordan 2024, see `whiten`.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for layer in convolutions[1:]:
        odd = all(side % 2 for side in layer.kernel_size)
        if odd and layer.groups == 1 and layer.out_channels >= layer.in_channels:
            nn.init.dirac_(layer.weight.data[: layer.in_channels])


def set_norms(network: nn.Module, train: TrainSection) -> None:
    """Give every batch normalisation the recipe's `norm_momentum`, and keep its gain where `freeze_gains` says so."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = train.norm_momentum
            if train.freeze_gains and module.weight is not None:
                module.weight.requires_grad_(False)


def whitening(patches: Tensor) -> Tensor:
    """Rows [M, D] that take patches [N, D] to M <= D unrelated numbers of variance about 1, most variance first.

    Directions with less than a hundredth of the mean variance are left out; the rest are damped by as much.
    """
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    floor = _NOISE * values.mean()
    kept = values > floor
    rows: Tensor = (vectors[:, kept] / (values[kept] + floor).sqrt()).T
    return rows.flip(0)


def _patches(convolution: nn.Conv2d, images: ImageSet, rows: Indices, preprocess: Preprocess) -> Tensor:
    """Float64 [N, C * kernel height * kernel width] of normalised pictures, one place in so many that N stays small."""
    chosen = rows[:: -(-len(rows) // _SAMPLE)]
    pictures = preprocess.normalise(torch.from_numpy(np.array(images.images[chosen])))
    size = (convolution.kernel_size[0], convolution.kernel_size[1])
    step = max(1, min(pictures.shape[-2:]) // 8)
    return F.unfold(pictures, size, stride=step).movedim(1, -1).flatten(0, 1).double()
