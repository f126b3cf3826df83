"""The training script of autoencoders and denoisers, from recipe to export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from models import checkpoint
from models.card import ModelCard
from models.generative import ReconstructionSubmodel
from models.vae import VAE
from tests.training.conftest import (
    CLASSES,
    TWO_PROCESSES,
    assert_error,
    check_resumed,
    png,
    sets,
    strokes,
    write_parquet,
)
from training import autoencode
from training.core.export import begin
from training.core.run_folder import Run
from training.core.seeds import generator
from training.datasets.camera_noise import photograph_each
from training.datasets.crops_and_noise import CroppedImages, add_fixed_noise
from training.recipe.config import read_recipe
from training.recipe.generative_config import AutoencodeRecipe

ROOT = Path(__file__).parents[2]

RECIPE = """
name = "lines"
description = "Strokes"
seed = 3
model = { architecture = "autoencoder", config = { latent = 6, widths = [8, 12], hidden = 0, blocks = 1 } }
data = [{ name = "strokes", validation = 30 }]
preprocess = { mode = "L", size = [28, 28], mean = [0], std = [255] }
train = { epochs = 2, batch_size = 10, optimizer = "adamw", lr = 0.01, warmup_epochs = 1, ema = 0.9 }
card = { data = "strokes", source = "a test", license = "Apache-2.0" }
"""
VAE_RECIPE = ["model.architecture=vae", "model.conditional=true"]
PERCEPTUAL = [*VAE_RECIPE, "loss.perceptual=3"]
PERCEPTUAL += [f"features={{ folder = '{ROOT / 'weights/judge-mnist'}', taps = [0, 2], side = 28 }}"]
TWO_SETS = "data=[{name='a', validation=1}, {name='b', validation=1}]"
NOISE = "noise={sigma=[20, 100], validation=[40, 80]}"
DENOISER = ["model.architecture=denoiser", "model.config={widths=[8, 12], blocks=1}", NOISE, "train.lr=0.003"]


@pytest.fixture
def workshop(workshop: Path) -> Path:
    """The classifier's data with this recipe beside it."""
    (workshop / "recipe.toml").write_text(RECIPE)
    return workshop


def invoke(workshop: Path, *options: str) -> Result:
    return CliRunner().invoke(autoencode.cli, [str(workshop / "recipe.toml"), *options])


def trained(workshop: Path, *changes: str) -> tuple[torch.nn.Module, ModelCard, dict[str, float]]:
    result = invoke(workshop, *sets(*changes))
    assert result.exit_code == 0, result.output
    module, card = checkpoint.load(workshop / "runs/lines/export/lines")
    return module, card, {metric.name: metric.value for metric in card.metrics}


def held_out(workshop: Path, *changes: str) -> tuple[AutoencodeRecipe, CroppedImages]:
    recipe = read_recipe(AutoencodeRecipe, workshop / "recipe.toml", changes)
    return recipe, CroppedImages(recipe.data[0], recipe.preprocess, 10, recipe.seed)


def psnr(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    pairs = zip(outputs.clamp(0, 1).double(), targets.double(), strict=True)
    return sum(-10 * float(((item - other) ** 2).mean().log10()) for item, other in pairs) / len(targets)


def test_autoencoder_is_exported(workshop: Path) -> None:
    module, card, figures = trained(workshop, "train.epochs=5")
    assert (card.task, card.architecture, card.classes) == ("reconstruct", "autoencoder", ())
    assert (card.config["image_size"], card.config["in_channels"], card.config["num_classes"]) == (28, 1, 0)
    recipe, pictures = held_out(workshop, "train.epochs=5")
    assert card.preprocess == recipe.preprocess
    assert card.training is not None
    assert AutoencodeRecipe.model_validate(card.training.recipe) == recipe
    clean = pictures.clean(pictures.held_out)
    with torch.inference_mode():
        answer = ReconstructionSubmodel(module)(clean)
    assert figures == {"psnr": pytest.approx(psnr(answer, clean), abs=1e-3)}
    mean = clean.mean(dim=0, keepdim=True).expand_as(clean)
    assert figures["psnr"] > psnr(mean, clean) + 0.5  # it has learnt more than the mean picture
    best = Run(workshop / "runs/lines").load_best()
    history = json.loads((workshop / "runs/lines/history.json").read_text())
    assert history[best["epoch"] - 1]["validation/psnr"] == max(row["validation/psnr"] for row in history)
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in best["networks"]["autoencoder"].items())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_conditional_vae_is_exported_with_its_bound(workshop: Path, likelihood: str) -> None:
    changes = [*VAE_RECIPE, f"model.config.likelihood={likelihood}", "loss.beta_epochs=1", "loss.beta=0.8"]
    module, card, figures = trained(workshop, *changes)
    assert (card.task, card.classes, card.config["num_classes"]) == ("generate", CLASSES, 3)
    assert isinstance(module, VAE)
    recipe, pictures = held_out(workshop, *changes)
    bounds, divergences = [], []
    for row in pictures.held_out:
        picture = pictures.clean(row[None])
        label = F.one_hot(torch.tensor([pictures.set.labels[row]]), 3).float()
        noise = torch.randn(6, generator=generator(recipe.seed, "latent", int(row)))
        with torch.inference_mode():
            mean, log_variance = module.posterior(picture, label)
            posterior = Normal(mean, (log_variance / 2).exp())
            logits = module.decode_logits(mean + posterior.scale * noise, label)
        if module.log_scale is None:
            likely = Bernoulli(logits=logits, validate_args=False).log_prob(picture).sum()  # type: ignore[no-untyped-call]
        else:
            likely = Normal(logits.sigmoid(), module.log_scale.detach().exp()).log_prob(picture).sum()  # type: ignore[no-untyped-call]
        divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
        bounds.append(float(likely - divergence))
        divergences.append(float(divergence))
    assert figures["elbo"] == pytest.approx(sum(bounds) / 30, rel=1e-4)
    assert figures["kl"] == pytest.approx(sum(divergences) / 30, rel=1e-4)
    history = json.loads((workshop / "runs/lines/history.json").read_text())
    assert history[-1]["validation/elbo"] > history[0]["validation/elbo"]
    if module.log_scale is not None:
        assert float(module.log_scale.detach()) != pytest.approx(-1.609, abs=0.02)  # it has moved from 0.2


def test_denoiser_removes_noise(workshop: Path) -> None:
    module, card, figures = trained(workshop, *DENOISER, "train.epochs=8")
    assert (card.task, card.architecture, card.config["image_size"]) == ("denoise", "denoiser", 28)
    recipe, pictures = held_out(workshop, *DENOISER)
    clean = pictures.clean(pictures.held_out)
    names = {"psnr_strokes_40": 40.0, "psnr_strokes_80": 80.0}
    assert figures.keys() == {"psnr", *names}
    for name, sigma in names.items():
        noisy = add_fixed_noise(clean, pictures.held_out, sigma, recipe.seed)
        with torch.inference_mode():
            assert figures[name] == pytest.approx(psnr(module(noisy), clean), abs=1e-3)
        assert figures[name] > psnr(noisy, clean) + 2
    assert figures["psnr"] == pytest.approx((figures["psnr_strokes_40"] + figures["psnr_strokes_80"]) / 2)


def test_denoiser_removes_a_cameras_noise(workshop: Path) -> None:
    camera = "noise.camera={share=0.5, blur=0.5, shot=8, read=60, jpeg=50}"
    module, _, figures = trained(workshop, *DENOISER, camera, "train.epochs=8")
    recipe, pictures = held_out(workshop, *DENOISER, camera)
    assert recipe.noise is not None
    assert figures.keys() == {"psnr", "psnr_strokes_40", "psnr_strokes_80", "psnr_strokes_camera"}
    clean = pictures.clean(pictures.held_out)
    photos = photograph_each(clean, pictures.held_out, recipe.noise.camera, recipe.seed)
    with torch.inference_mode():
        assert figures["psnr_strokes_camera"] == pytest.approx(psnr(module(photos), clean), abs=1e-3)
    assert figures["psnr_strokes_camera"] > psnr(photos, clean) + 1


def test_vae_as_denoiser(workshop: Path) -> None:
    module, card, figures = trained(workshop, "model.architecture=vae-denoiser", NOISE)
    assert (card.task, card.architecture) == ("denoise", "vae-denoiser")
    assert figures.keys() == {"psnr", "elbo", "kl", "psnr_strokes_40", "psnr_strokes_80"}
    assert isinstance(module, VAE)


def test_data_sets_alternate(workshop: Path) -> None:
    pictures, labels = strokes(70, seed=9)
    write_parquet(workshop / "data/more/train.parquet", [png(picture) for picture in pictures], labels)
    first, second = "name='strokes', validation=30, size=28, crop=24", "name='more', validation=10, size=16"
    data = f"data=[{{{first}}}, {{{second}, batch_size=30}}]"
    changes = [*DENOISER, data, "preprocess.fit=within"]
    recipe = read_recipe(AutoencodeRecipe, workshop / "recipe.toml", changes)
    task, _ = begin(autoencode.setup, recipe, "turns")
    assert task.steps_per_epoch == 2 * 2  # the second has two batches of 30, and the first waits for it
    shapes: list[tuple[int, ...]] = []
    model = task.learners["autoencoder"].model
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    for index in range(4):
        task.step(0, index, torch.Generator().manual_seed(index))
    assert shapes == [(10, 1, 24, 24), (30, 1, 16, 16)] * 2
    _, card, figures = trained(workshop, *changes)
    assert figures.keys() == {"psnr", *(f"psnr_{name}_{sigma}" for name in ("strokes", "more") for sigma in (40, 80))}
    assert card.config["image_size"] == 24
    assert card.preprocess.fit == "within"


def test_loss_is_the_distance_of_the_recipe(workshop: Path) -> None:
    recipe = read_recipe(AutoencodeRecipe, workshop / "recipe.toml", ["loss.distance=l1"])
    task, _ = begin(autoencode.setup, recipe)
    clean, labels = task.datasets[0].batch(0, 0, recipe.augment, generator(1))
    with torch.no_grad():
        restored = deepcopy(task.learners["autoencoder"].model).train()(clean, torch.zeros(len(labels), 0))
    loss = task.step(0, 0, generator(1))["loss"]
    torch.testing.assert_close(loss, (restored - clean).abs().mean())


def test_kl_weight_rises(workshop: Path) -> None:
    for change, expected in (("loss.beta=2", 2.0), ("loss.beta_epochs=0.5", 0.0)):
        recipe = read_recipe(AutoencodeRecipe, workshop / "recipe.toml", [*VAE_RECIPE, change])
        task, _ = begin(autoencode.setup, recipe, "beta", overwrite=True)
        first = task.step(0, 0, torch.Generator().manual_seed(0))
        surprise = (expected - 1) * first["kl"] - first["elbo"]
        assert float(first["loss"]) == pytest.approx(float(surprise) / 28**2, rel=1e-5)
    last = task.step(0, 7, torch.Generator().manual_seed(0))
    assert float(last["loss"]) == pytest.approx(-float(last["elbo"]) / 28**2, rel=1e-5)


def test_perceptual_distance_is_added_and_trains_the_decoder(workshop: Path) -> None:
    gradients = []
    for changes in (VAE_RECIPE, PERCEPTUAL):
        recipe = read_recipe(AutoencodeRecipe, workshop / "recipe.toml", changes)
        task, _ = begin(autoencode.setup, recipe, "perceptual", overwrite=True)
        first = task.step(0, 0, torch.Generator().manual_seed(0))
        gradients.append(task.learners["autoencoder"].model.get_parameter("decoder.pixels.0.weight").grad)
    expected = 3 * first["perceptual"] - first["elbo"] / 28**2
    assert float(first["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert 0 < float(first["perceptual"]) < 2 * 2  # two maps of vectors of length 1
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([*PERCEPTUAL, "loss.perceptual=0"], "features is required by loss.perceptual"),
        ([*PERCEPTUAL, "model.architecture=autoencoder"], "for VAEs, not for autoencoder"),
        (["model={architecture='lenet5'}"], "is built to classify; this script trains"),
        (["model.architecture=denoiser", "model.config={}"], "noise is required to denoise"),
        ([NOISE], "required to denoise, and not allowed otherwise"),
        ([*DENOISER, "noise.sigma=[3, 2]"], "is not (low, high)"),
        (["preprocess.mean=[33]"], "the images must be in 0..1"),
        (["preprocess.fit=within"], "each data set needs a size"),
        (
            ["model.conditional=true", "data=[{name='a', validation=1}, {name='b', validation=1}]"],
            "exactly one data set",
        ),
    ],
)
def test_errors_are_one_line(workshop: Path, changes: list[str], message: str) -> None:
    assert_error(invoke(workshop, *sets(*changes)), message)


@pytest.mark.parametrize("changes", [VAE_RECIPE, PERCEPTUAL, DENOISER], ids=["vae", "perceptual", "denoiser"])
def test_resumed_run_ends_with_the_same_weights(workshop: Path, changes: list[str]) -> None:
    check_resumed(
        partial(invoke, workshop, *sets(*changes, "train.checkpoint_steps=5")), autoencode.AutoencodingTask, 18
    )


@pytest.mark.slow
def test_two_processes_agree_with_one(workshop: Path) -> None:
    # Without batch norm, which sees each process's share alone, and without what each process draws for itself.
    changes = ["model.architecture=denoiser", "model.config={widths=[8], blocks=1}"]
    changes += ["noise={sigma=[0, 0], clipped=0, validation=[40]}"]
    command = ["-m", "training.autoencode", str(workshop / "recipe.toml"), "--run", "two", *sets(*changes)]
    subprocess.run(
        [sys.executable, *TWO_PROCESSES, *command],
        cwd=ROOT,
        check=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert invoke(workshop, "--run", "one", *sets(*changes)).exit_code == 0
    histories = [json.loads((workshop / "runs" / run / "history.json").read_text()) for run in ("one", "two")]
    for alone, shared in zip(*histories, strict=True):
        assert shared == pytest.approx(alone, rel=1e-2)
