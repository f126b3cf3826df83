"""Feature maps of a shipped network, as inputs of losses: the network is frozen, gradients pass to its images.

A projected GAN discriminates them (Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021); a perceptual loss
compares them (Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import checkpoint
from models.blocks import ConvNormAct
from models.preprocess import Preprocess
from training.core.errors import RecipeError
from training.losses.frozen_depthwise import FrozenDepthwise
from training.recipe.generative_config import FeaturesSection


class FeatureMaps:
    """Images [N, C, H, W] in the units of `source` -> maps [N, C_i, S_i, S_i] after the layers `section.taps`.

    `shapes` are (C_i, S_i) of the maps. Device and precision are the accelerator's.

    Raises:
        CheckpointError: see `checkpoint.load`. RecipeError: the network has no such layers, reads other channels, or
            the output of a layer is not a square map.
    """

    def __init__(self, section: FeaturesSection, source: Preprocess, accelerator: Accelerator, channels_last: bool):
        network, card = checkpoint.load(section.folder)
        features = getattr(network, "features", None)
        if not isinstance(features, nn.Sequential) or len(features) <= section.taps[-1]:
            raise RecipeError(f"{section.folder}: {card.architecture} has no layer features.{section.taps[-1]}")
        target = card.preprocess
        if target.mode != source.mode:
            raise RecipeError(f"{section.folder} reads {target.mode} images, not {source.mode}")
        self._side, self._taps, self._accelerator = section.side, section.taps, accelerator
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._gain, self._offset = source.units_of(target, accelerator.device)
        self._layers = features[: section.taps[-1] + 1].eval().requires_grad_(False)
        _fuse(self._layers)
        _accelerate_gradients(self._layers)
        self._layers.to(accelerator.device).to(memory_format=self._format)
        with torch.no_grad():
            maps = self(torch.zeros(1, source.channels, section.side, section.side, device=accelerator.device))
        if any(x.ndim != 4 or x.shape[2] != x.shape[3] for x in maps):
            raise RecipeError(f"{section.folder}: outputs {[list(x.shape[1:]) for x in maps]} are not square maps")
        self.shapes = tuple((x.shape[1], x.shape[2]) for x in maps)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        with self._accelerator.autocast():
            x = images * self._gain + self._offset
            if x.shape[2:] != (self._side, self._side):
                x = F.interpolate(x, (self._side, self._side), mode="bilinear")
            x = x.contiguous(memory_format=self._format)
            maps = []
            for number, layer in enumerate(self._layers):
                x = layer(x)
                if number in self._taps:
                    maps.append(x.float())
        return maps


def _fuse(module: nn.Module) -> None:
    """Fold every batch normalisation that follows a convolution in a `ConvNormAct` into the convolution."""
    for layer in module.modules():
        if isinstance(layer, ConvNormAct):
            conv, norm = layer[0], layer[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layer[0], layer[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


def _accelerate_gradients(module: nn.Module) -> None:
    """Replace every depthwise convolution by one whose gradient is fast."""
    for layer in list(module.modules()):
        for name, child in list(layer.named_children()):
            if FrozenDepthwise.fits(child):
                setattr(layer, name, FrozenDepthwise(child))


def perceptual_distance(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the distance of each image's maps from those of its target: [N].

    Maps are [N, C_i, H_i, W_i]. The vectors of channels are divided by their lengths; the squared distance of two
    vectors is averaged over positions and summed over maps (Zhang et al., "The Unreasonable Effectiveness of Deep
    Features as a Perceptual Metric", CVPR 2018, without the paper's weights of channels).
    """
    parts = [
        (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for x, y in zip(maps, targets, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)
