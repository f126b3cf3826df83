"""Trainings that compare ideas: cells differ in the idea alone, and a small run ends in rows, a table and plots."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn

from benchmarks import tables
from benchmarks.experiments import compression, face_losses, gan_collapse, ideas, ideas_cells
from benchmarks.experiments.compression import KINDS, LATENTS, Yardstick, measure, samples
from benchmarks.experiments.ideas_cells import EXPERIMENTS, Cell, Experiment, Job, cost, find, minutes, pilots, runs
from benchmarks.experiments.ideas_report import read
from models.generative import latents
from models.registry import build
from models.vae import VAE, VAEConfig
from tests.benchmarks.conftest import invoke
from tests.training.conftest import CLASSES, RECIPE, png, save, strokes, write_parquet
from training.metrics.reconstruction import psnr


def first(experiment: str) -> list[Job]:
    """A job of each cell of that experiment."""
    return [Job(one, cell, 1, cell.rates[0]) for one in find([experiment]) for cell in one.cells]


def test_the_ideas_fit_the_budget_and_read_training_images_only() -> None:
    rates = {(experiment.name, cell.name): cell.rates[0] for experiment in EXPERIMENTS for cell in experiment.cells}
    jobs = [*runs(list(EXPERIMENTS), 2, rates), *(job for experiment in EXPERIMENTS for job in pilots(experiment))]
    assert len({job.name for job in jobs}) == len(jobs)
    assert sum(minutes(job, 150) for job in jobs) <= 80
    assert max(minutes(job, job.cell.gflops) for job in jobs) <= 20
    for recipe in (job.recipe for job in jobs):
        assert (recipe.data.name, recipe.data.train, recipe.data.validation) == ("cifar10", 10_000, 2_000)
        assert (recipe.train.batch_size, recipe.train.precision, recipe.train.channels_last) == (128, "bf16", True)


def test_networks_of_an_experiment_are_equally_large() -> None:
    for name in ("activation", "switches"):
        assert len({cost(job.recipe).parameters for job in first(name)}) == 1
    plain_20, plain_56, residual_20, residual_56 = (cost(job.recipe) for job in first("depth"))
    assert (plain_20, plain_56) == (residual_20, residual_56)
    heads, none = (cost(job.recipe) for job in first("auxiliary"))
    assert heads.macs == none.macs
    resnet, densenet = (cost(job.recipe) for job in first("density"))
    assert densenet.parameters == pytest.approx(resnet.parameters, rel=0.02)
    assert densenet.macs == pytest.approx(resnet.macs, rel=0.15)
    every, *others = (job.recipe.model.config for job in first("switches"))
    changed = [{key for key in every.keys() | other.keys() if every.get(key) != other.get(key)} for other in others]
    assert changed == [{"overlapping_pooling"}, {"local_response_norm"}, {"dropout"}]


@pytest.mark.parametrize("experiment", [experiment.name for experiment in EXPERIMENTS])
def test_every_network_of_the_ideas_learns_a_step(experiment: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for job in first(experiment):
        module = build(job.recipe.model.architecture, job.recipe.model.config | {"num_classes": 10})
        if experiment == "depth":
            layers = sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())
            assert layers == int(job.cell.name.split("-")[1])
        auxiliary = bool(job.recipe.model.config.get("auxiliary"))
        logits: tuple[Tensor, ...] = module(images, auxiliary=True) if auxiliary else (module(images),)
        torch.stack([nn.functional.cross_entropy(each, labels) for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in module.parameters())


LENETS = Experiment(
    "lenets",
    "Two rates",
    {"train.epochs": 4},
    (
        Cell("one", "one rate", {}, (0.002,), 10),
        Cell("two", "two rates", {"train.optimizer": "sgd"}, (0.05, 100_000.0), 10),
    ),
)


@pytest.mark.slow
def test_ideas_are_trained_and_plotted(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = strokes(130)
    write_parquet(folders / "data/strokes/train.parquet", [png(image) for image in images], labels)
    (folders / "recipe.toml").write_text(RECIPE)
    (folders / "ideas.md").write_text("# Ideas\n<!-- lenets:begin -->\n<!-- lenets:end -->\nThe end\n")
    experiment = replace(LENETS, recipe=folders / "recipe.toml")
    monkeypatch.setattr(ideas_cells, "EXPERIMENTS", (experiment,))
    for name, path in {"RESULTS": "ideas.csv", "PILOTS": "pilots.csv", "PAGE": "ideas.md", "PICTURES": ""}.items():
        monkeypatch.setattr(ideas, name, folders / path)
    for command in (["run", "--seeds", "1", "--only", "lenets"], ["plot"]):
        result = invoke(ideas.cli, *command)
        assert result.exit_code == 0, result.output
    rows = read(folders / "ideas.csv")
    assert [(row.cell, row.epoch, row.lr) for row in rows] == [
        (cell, epoch, lr) for cell, lr in (("one", 0.002), ("two", 0.05)) for epoch in range(1, 5)
    ]
    assert rows[3].train_loss < rows[0].train_loss
    tried = list(csv.DictReader((folders / "pilots.csv").read_text().splitlines()))
    assert [(row["cell"], row["train_loss"] == "inf") for row in tried] == [("two", False), ("two", True)]
    assert (folders / "ideas-lenets.png").is_file()
    assert (folders / "ideas.md").read_text().startswith("# Ideas\n<!-- lenets:begin -->\n![Two rates")

    # A run that has ended is left alone; one without an export is finished, with the same result.
    done, unfinished = (folders / "runs/ideas" / name for name in ("lenets-one-1", "lenets-two-1"))
    before = (done / "best.pt").stat().st_mtime_ns
    (unfinished / "export/lenets-two-1/card.json").unlink()
    assert invoke(ideas.cli, "run", "--seeds", "1").exit_code == 0
    again = read(folders / "ideas.csv")
    assert [replace(row, seconds=0) for row in again] == [replace(row, seconds=0) for row in rows]
    assert (done / "best.pt").stat().st_mtime_ns == before

    monkeypatch.setattr(ideas_cells, "EXPERIMENTS", (replace(experiment, changes={"train.epochs": 5}),))
    result = invoke(ideas.cli, "run", "--seeds", "1")
    assert (result.exit_code, "differs in train.epochs" in result.stderr) == (1, True)


def test_face_losses_differ_in_the_loss_at_one_budget() -> None:
    cells = {(cell.loss, cell.stage): cell for cell in face_losses.cells()}
    losses, stages = face_losses.LOSSES, face_losses.STAGES
    assert len(cells) == len(face_losses.cells()) == len(stages) + len(losses) * (1 + len(stages))
    recipes = []
    for (loss, stage), cell in cells.items():
        if loss:
            assert (cells["", stage].epochs if stage else 0) + cell.epochs == face_losses.EPOCHS
            assert cell.recipe.model.init == (cells["", stage].recipe.name if stage else "")
        recipe = cell.recipe.model_dump(exclude={"loss": True, "name": True, "train": {"epochs", "lr"}})
        del recipe["model"]["init"]
        recipes.append(recipe)
    assert all(recipe == recipes[0] for recipe in recipes)


def test_the_games_of_a_collapse_differ_in_the_loss() -> None:
    recipes = [gan_collapse.recipe_of(run).model_dump() for run in gan_collapse.RUNS]
    assert [recipe["game"].pop("loss") for recipe in recipes] == ["minimax", "wasserstein"]
    for recipe in recipes:
        del recipe["name"], recipe["game"]["penalty"]
    assert recipes[0] == recipes[1]


def test_compressions_differ_in_kind_and_latent() -> None:
    cells = compression.cells()
    assert {(cell.kind, cell.latent) for cell in cells} == {(kind, latent) for kind in KINDS for latent in LATENTS}
    recipes = [cell.recipe for cell in cells]
    for cell, recipe in zip(cells, recipes, strict=True):
        assert (recipe.model.architecture, recipe.model.config["latent"]) == (cell.kind, cell.latent)
        assert (recipe.data, recipe.train, recipe.seed) == (recipes[0].data, recipes[0].train, recipes[0].seed)
        assert recipe.model.config | {"latent": 0} == recipes[0].model.config | {"latent": 0}


AUTOENCODER = """
name = "strokes"
description = "Strokes"
model = { architecture = "autoencoder", config = { widths = [4, 4], hidden = 0 } }
data = [{ name = "strokes", validation = 30 }]
preprocess = { mode = "L", size = [28, 28], mean = [0], std = [255] }
train = { epochs = 1, batch_size = 20, optimizer = "adamw", lr = 0.003, warmup_epochs = 0.5 }
card = { data = "strokes", source = "a test", license = "Apache-2.0" }
"""


def test_compressions_are_trained_measured_and_plotted(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count, seed in (("train", 90, 1), ("test", 20, 2)):
        images, labels = strokes(count, seed)
        write_parquet(folders / f"data/strokes/{split}.parquet", [png(image) for image in images], labels)
    (folders / "recipe.toml").write_text(AUTOENCODER)
    save(folders / "judge", "lenet5-relu", {"num_classes": 3}, task="classify", classes=CLASSES)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for name, path in {"RECIPE": "recipe.toml", "RESULTS": "x.csv", "PAGE": "x.md", "PICTURES": "plots"}.items():
        monkeypatch.setattr(compression, name, folders / path)
    for name, value in {"LATENTS": (4,), "SHOWN": (4,), "EPOCHS": 1}.items():
        monkeypatch.setattr(compression, name, value)
    for command in (["run", "--judge", folders / "judge"], ["report"]):
        result = invoke(compression.cli, *command)
        assert result.exit_code == 0, result.output
    rows = tables.read(compression.RESULTS)
    assert [(row["kind"], row["latent"], bool(row["elbo"])) for row in rows] == [
        ("autoencoder", "4", False),
        ("vae", "4", True),
    ]
    assert "| vae | 4 |" in compression.PAGE.read_text()
    plots = {path.name: np.asarray(Image.open(path)) for path in compression.PICTURES.iterdir()}
    assert set(plots) == {"compression-psnr.png", "compression-frechet.png", "compression-samples.png"}

    # The same figures and samples by a plain computation.
    cell = compression.Cell("vae", 4)
    network, card = cell.load()
    assert isinstance(network, VAE)
    yardstick = Yardstick.of(card, folders / "judge")
    with torch.inference_mode():
        restored = network.decode(network.posterior(yardstick.test, torch.zeros(20, 0))[0], torch.zeros(20, 0))
        sample = network.decode(latents(compression.SEED, 1, 4)[None], torch.zeros(1, 0))[0, 0]
    assert rows[-1]["psnr"] == f"{float(psnr(restored, yardstick.test).mean()):.3f}"
    assert rows[-1] == {key: str(value) for key, value in measure(cell, yardstick).items()}
    shown = plots["compression-samples.png"][60:116:2, 60:116:2].astype(int)
    assert np.abs(shown - (sample * 255).round().numpy()).max() <= 1

    # No cell is trained twice.
    times = [(cell.folder / "last.pt").stat().st_mtime_ns for cell in compression.cells()]
    assert invoke(compression.cli, "run", "--judge", folders / "judge").exit_code == 0
    assert [(cell.folder / "last.pt").stat().st_mtime_ns for cell in compression.cells()] == times


def test_fitted_latents_have_the_moments_of_the_codes() -> None:
    """With a decoder that returns its latents, one pixel each."""

    class Identity(VAE):
        def embed(self, images: Tensor, labels: Tensor) -> Tensor:
            return images.flatten(1)[:, :3]

        def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
            return latents[:, :, None, None]

    network = Identity(VAEConfig(image_size=8, latent=3, widths=(4,), hidden=0))
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])  # the last latent is not used
    codes = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) @ mixing.T + 7
    drawn = samples(network, 5000, codes[:, :, None, None]).flatten(1)
    assert (drawn.mean(dim=0) - codes.mean(dim=0)).abs().max() < 0.15
    assert (torch.cov(drawn.T) - torch.cov(codes.T)).abs().max() < 0.3
    plain = samples(network, 5000, None).flatten(1)
    assert (torch.cov(plain.T) - torch.eye(3)).abs().max() < 0.1
