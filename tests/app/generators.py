"""A weights folder with generative networks of random weights: their images are meaningless but repeatable."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app.settings import PROJECT
from models import checkpoint
from models.generative import SupportsDecode, SupportsEncode
from models.preprocess import Preprocess
from models.registry import build, configure, lookup

DIGITS = tuple("0123456789")
GREY = Preprocess(mode="L", size=(28, 28), mean=(0.0,), std=(255.0,))
COLOUR = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(255.0,) * 3)
SIGNED = Preprocess(mode="L", size=(28, 28), mean=(127.5,), std=(127.5,))
SIGNED_COLOUR = Preprocess(size=(32, 32), mean=(127.5,) * 3, std=(127.5,) * 3)
# 28 pixels in a frame of two.
FRAMED = Preprocess(mode="L", size=(28, 28), pad=2, mean=(0.0,), std=(255.0,))

SMALL: dict[str, Any] = {"widths": [8, 16], "hidden": 32}
LARGER = {"in_channels": 3, "image_size": 32, "latent": 12}

NETWORKS: dict[str, tuple[str, dict[str, Any], Preprocess]] = {
    "cvae-mnist": ("vae", {**SMALL, "latent": 6, "num_classes": 10}, GREY),
    "vae-faces": ("vae", {**SMALL, **LARGER}, COLOUR),
    "gan-mnist": ("gan", {"widths": [16, 8], "latent": 20, "num_classes": 10}, SIGNED),
    "wgan-faces": ("wgan", {**LARGER, "widths": [16, 8]}, SIGNED_COLOUR),
    "ae-mnist": ("autoencoder", {**SMALL, "latent": 8}, GREY),
    "vae-denoiser-mnist": ("vae-denoiser", {**SMALL, "latent": 16}, GREY),
    "framed": ("vae-denoiser", {**SMALL, "latent": 16, "image_size": 32}, FRAMED),
    "denoiser-mnist": ("denoiser", {"in_channels": 1, "widths": [8, 12], "blocks": 1}, GREY),
    "denoiser-photo": ("denoiser", {"widths": [8, 12, 16], "blocks": 1}, COLOUR),
}


def random_generators(weights: Path) -> None:
    """Write all of `NETWORKS` into the folder `weights`, and link the classifier that a service needs."""
    (weights / "lenet5-mnist").symlink_to(PROJECT / "weights" / "lenet5-mnist")
    for name, (architecture, changes, preprocess) in NETWORKS.items():
        torch.manual_seed(0)
        network = build(architecture, changes)
        _fill_statistics(network)
        config = configure(architecture, changes)
        checkpoint.save(
            weights / name,
            network.eval(),
            name=name,
            description="random",
            task=lookup(architecture).task,
            architecture=architecture,
            config=asdict(config),
            preprocess=preprocess,
            classes=DIGITS if getattr(config, "num_classes", 0) else (),
            data="none",
            source="this test",
            license="Apache-2.0",
        )


@torch.no_grad()
def _fill_statistics(network: nn.Module) -> None:
    """Fill the batch norms' statistics; without them every latent decodes to the same grey image."""
    network.train()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 0.9
    if isinstance(network, SupportsEncode):
        config = network.config
        pictures = torch.rand(64, config.in_channels, config.image_size, config.image_size)
        network.embed(pictures, torch.zeros(64, config.num_classes))
    if isinstance(network, SupportsDecode):
        config = network.config
        for _ in range(3):
            network.decode(torch.randn(64, config.latent), torch.zeros(64, config.num_classes))
