"""The anchor of a generator: its distance from a trained generator's images, which those are, and refusals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]

from models import checkpoint
from models.preprocess import Preprocess
from models.registry import build, configure
from models.vae import VAE
from tests.training.conftest import save_network
from training.core.errors import RecipeError
from training.losses.anchor import Anchor
from training.recipe.gan_config import AnchorSection

# The anchor's values are 0..1, the recipe's -1..1.
UNIT = Preprocess(mode="L", size=(28, 28), mean=(0.0,), std=(255.0,))
SIGNED = Preprocess(mode="L", size=(28, 28), mean=(127.5,), std=(127.5,))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    config = asdict(configure("vae", {"in_channels": 1, "image_size": 28, "latent": 6, "widths": [4, 8], "hidden": 8}))
    return save_network(tmp_path / "drawer", build("vae", config), "vae", config, task="generate", preprocess=UNIT)


def load(folder: Path) -> VAE:
    network, _ = checkpoint.load(folder)
    assert isinstance(network, VAE)
    return network


def anchor(latent: int = 6, preprocess: Preprocess = SIGNED, **section: float) -> Anchor:
    settings = AnchorSection.model_validate({"model": "drawer"} | section)
    return Anchor(settings, latent, preprocess, Accelerator(cpu=True))


def test_loss_is_the_distance_of_the_means_of_blocks(trained: Path) -> None:
    network = load(trained)
    latents, images = torch.randn(3, 6), torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        drawn = network.decode(latents, torch.zeros(3, 0)).numpy() * 2 - 1
    squares = []
    for x, y in zip(images.numpy(), drawn, strict=True):
        for row in range(0, 28, 7):
            for column in range(0, 28, 7):
                block = np.s_[0, row : row + 7, column : column + 7]
                squares.append((x[block].mean() - y[block].mean()) ** 2)
    loss = anchor(side=4, weight=3.0, copy_steps=2).loss(images, latents, 2)
    assert loss.item() == pytest.approx(3 * np.mean(squares), rel=1e-4)


def test_the_first_steps_copy_every_pixel(trained: Path) -> None:
    network = load(trained)
    latents, images = torch.randn(2, 6), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        drawn = network.decode(latents, torch.zeros(2, 0)) * 2 - 1
    judged = anchor(side=4, copy_steps=2)
    assert [judged.copies(step) for step in range(4)] == [True, True, False, False]
    assert judged.loss(images, latents, 1).item() == pytest.approx((images - drawn).square().mean().item(), rel=1e-4)
    assert judged.loss(drawn, latents, 0).item() == pytest.approx(0, abs=1e-9)


def test_gradients_pass_to_the_images_and_to_no_weight(trained: Path) -> None:
    assert trained.is_dir()
    images = torch.randn(2, 1, 28, 28, requires_grad=True)
    judged = anchor(side=4)
    network = judged._network
    assert isinstance(network, VAE)
    judged.loss(images, torch.randn(2, 6), 0).backward()
    assert images.grad is not None
    assert images.grad.any()
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("latent", "preprocess", "message"),
    [
        (7, SIGNED, "drawer has the latent 6, the recipe 7"),
        (6, SIGNED.model_copy(update={"size": (32, 32)}), "image shape"),
        (6, SIGNED.model_copy(update={"crop_fraction": 0.5}), "part of a photo"),
    ],
)
def test_unsuitable_generators_are_refused(trained: Path, latent: int, preprocess: Preprocess, message: str) -> None:
    assert trained.is_dir()
    with pytest.raises(RecipeError, match=message):
        anchor(latent, preprocess)
