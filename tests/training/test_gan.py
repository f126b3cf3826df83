"""The training script of adversarial networks: alternating steps, export, resumed and collapsed runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from models import checkpoint
from models.gan import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from models.generative import latents
from models.preprocess import Preprocess
from models.registry import build, configure
from tests.training.conftest import (
    CLASSES,
    assert_error,
    check_resumed,
    png,
    save_network,
    sets,
    strokes,
    write_parquet,
)
from training import gan
from training.core.errors import RecipeError
from training.core.export import begin
from training.core.run_folder import Run
from training.core.seeds import generator
from training.losses import adversarial
from training.metrics.contact_sheet import sheet
from training.recipe.config import read_recipe
from training.recipe.gan_config import GanRecipe

ROOT = Path(__file__).parents[2]

RECIPE = f"""
name = "stroke-maker"
description = "Draws strokes"
seed = 3
model = {{ architecture = "gan", conditional = true, config = {{ latent = 8, widths = [16, 8] }} }}
discriminator = {{ widths = [8, 16] }}
data = {{ name = "strokes", validation = 100 }}
preprocess = {{ mode = "L", size = [28, 28], mean = [127.5], std = [127.5] }}
game = {{ loss = "non-saturating" }}
watch = {{ extractor = "{ROOT / "weights/lenet5-mnist"}", samples = 100, modes = 5, grace = 99 }}
train = {{ epochs = 2, batch_size = 10, optimizer = "adamw", lr = 0.002, momentum = 0.5, \
    schedule = "constant", ema = 0.9, checkpoint_steps = 1 }}
card = {{ data = "strokes", source = "a test", license = "Apache-2.0" }}
"""
WASSERSTEIN = ["model.architecture=wgan", "model.conditional=false", "discriminator.norm=none"]
WASSERSTEIN += ["game.loss=wasserstein", "game.turns=2"]
SPECTRAL = ["discriminator.norm=none", "discriminator.spectral=true", "game.loss=hinge"]
PENALTY = [*WASSERSTEIN, "game.penalty=10"]
PROJECTED = ["model.architecture=fastgan", "model.conditional=false", "model.config.widths=[8, 8]", "game.loss=hinge"]
PROJECTED += [f"features={{ folder = '{ROOT / 'weights/judge-mnist'}', taps = [0, 3], side = 28 }}"]
PROJECTED += ["game.augment=['colour', 'translation', 'cutout']", "discriminator.projection=4"]


# Random filters, the singular vectors of a single row, and the last biases, on which the hinge loss does not depend as
# long as all scores are in -1..1.
PROJECTIONS = {"across_channels_0", "across_channels_1", "across_scales_1"}
PROJECTIONS |= {f"heads.{head}.{name}" for head in ("0.6", "1.2") for name in ("parametrizations.weight.0._u", "bias")}


@pytest.fixture
def makers(workshop: Path) -> Path:
    """`workshop` with more strokes, so that a hundred of them can be looked at, and this recipe."""
    pictures, labels = strokes(160)
    write_parquet(workshop / "data/strokes/train.parquet", [png(picture) for picture in pictures], labels)
    (workshop / "recipe.toml").write_text(RECIPE)
    return workshop


def invoke(makers: Path, *options: str) -> Result:
    return CliRunner().invoke(gan.cli, [str(makers / "recipe.toml"), *options])


def adversaries(makers: Path, *changes: str) -> gan.AdversarialTask:
    recipe = read_recipe(GanRecipe, makers / "recipe.toml", changes)
    return begin(gan.setup, recipe, overwrite=True)[0]


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        pytest.param([], set(), id="batch norm"),
        # The left singular vector of a single row is 1.
        pytest.param(SPECTRAL, {"head.parametrizations.weight.0._u"}, id="spectral norm"),
        # A critic's scores of real and generated pictures rise alike with its last bias.
        pytest.param(PENALTY, {"head.bias"}, id="penalty"),
        pytest.param(PROJECTED, PROJECTIONS, id="projected"),
    ],
)
def test_each_step_changes_one_network_only(makers: Path, changes: list[str], still: set[str]) -> None:
    task = adversaries(makers, *changes)
    players = {name: learner.model for name, learner in task.learners.items()}
    task.step(0, 0, generator(1))  # every optimizer has something in it now
    before = {name: state(player) for name, player in players.items()}
    task._generate(1, generator(2))
    assert moved(before["discriminator"], players["discriminator"]) == set()
    assert moved(before["generator"], players["generator"]) == before["generator"].keys()

    before = {name: state(player) for name, player in players.items()}
    task._discriminate(0, 1, generator(3))
    assert moved(before["generator"], players["generator"]) == set()
    assert moved(before["discriminator"], players["discriminator"]) == before["discriminator"].keys() - still
    for player in players.values():
        assert player.training
        assert all(parameter.requires_grad for parameter in player.parameters())


def test_frozen_module_computes_as_in_training() -> None:
    torch.manual_seed(0)
    pictures = torch.randn(6, 1, 28, 28, requires_grad=True)
    labels = torch.zeros(6, 0)
    plain = Discriminator(DiscriminatorConfig(widths=(8, 16)))
    before = state(plain)
    with pytest.raises(KeyboardInterrupt), gan.frozen(plain):  # noqa: PT012
        inside = plain(pictures, labels)
        (gradient,) = torch.autograd.grad(inside.sum(), pictures)
        raise KeyboardInterrupt  # the module is restored all the same
    assert moved(before, plain) == set()
    assert gradient.any()
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert torch.equal(plain(pictures, labels), inside)  # not what `eval` would answer
    assert any("running_mean" in name for name in moved(before, plain))


def test_an_anchored_generator_first_copies_and_then_also_deceives(makers: Path) -> None:
    config = asdict(configure("vae", {"in_channels": 1, "image_size": 28, "latent": 8, "widths": [4, 8], "hidden": 8}))
    preprocess = Preprocess(mode="L", size=(28, 28), mean=(0.0,), std=(255.0,))
    folder = makers / "runs/drawer/export/drawer"
    save_network(folder, build("vae", config), "vae", config, task="generate", preprocess=preprocess)
    changes = ["model.conditional=false", "anchor={ model = 'drawer', side = 7, copy_steps = 30 }"]
    task = adversaries(makers, *changes, "train.ema=0")
    copied = [task._generate(step, generator(step)) for step in range(30)]
    assert all("generator_loss" not in figures for figures in copied)
    assert copied[-1]["anchor_loss"] < copied[0]["anchor_loss"] / 2
    deceived = task._generate(30, generator(30))
    assert deceived["anchor_loss"] < copied[-1]["anchor_loss"]  # of 7x7 pixels, not of all
    assert deceived["generator_loss"] > 0


@pytest.mark.parametrize("loss", ["minimax", "non-saturating", "hinge", "wasserstein"])
def test_step_agrees_with_a_loop(makers: Path, loss: adversarial.Adversarial) -> None:
    changes = ["discriminator.norm=none", "game.turns=2", "train.ema=0", f"game.loss={loss}", "game.rate=0.5"]
    task = adversaries(makers, *changes, "game.penalty=10", "game.penalty_every=2")
    torch.manual_seed(0)
    g, d = Generator(task.config), Discriminator(task.recipe.configs(3)[1])
    g.load_state_dict(task.learners["generator"].model.state_dict())
    d.load_state_dict(task.learners["discriminator"].model.state_dict())
    task.step(0, 0, generator(5))

    draw = generator(5)
    adam = {
        network: torch.optim.AdamW(network.parameters(), lr, betas=(0.5, 0.999), weight_decay=0)
        for network, lr in ((g, 0.002), (d, 0.001))
    }
    for turn in range(2):
        real, numbers = task.images.batch(0, turn, task.recipe.augment, draw)
        labels = torch.nn.functional.one_hot(torch.from_numpy(numbers), 3).float()
        fake = g(torch.randn(10, 8, generator=draw), labels).detach()
        value = adversarial.discriminator_loss(loss, d(real, labels), d(fake, labels))
        if turn == 0:
            shares = torch.rand(10, generator=draw)[:, None, None, None]
            points = (shares * real + (1 - shares) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(d(points, labels).sum(), points, create_graph=True)
            value = value + 2 * 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()
        adam[d].zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam[d].step()
    labels = torch.nn.functional.one_hot(torch.randint(3, (10,), generator=draw), 3).float()
    value = adversarial.generator_loss(loss, d(g(torch.randn(10, 8, generator=draw), labels), labels))
    adam[g].zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    adam[g].step()
    for name, mine in (("generator", g), ("discriminator", d)):
        reference = task.learners[name].model.state_dict()
        for key, weight in mine.state_dict().items():
            if "running" not in key and "num_batches" not in key:  # these move in the generator's turn only
                torch.testing.assert_close(reference[key], weight, rtol=1e-4, atol=2e-5)


def test_clipped_weights_stay_within_the_limit(makers: Path) -> None:
    task = adversaries(makers, *WASSERSTEIN, "game.clip=0.01")
    task.step(0, 0, generator(1))
    limit = max(value.abs().max().item() for value in task.learners["discriminator"].model.parameters())
    assert limit == pytest.approx(0.01)


def test_recomputed_statistics_are_those_of_the_weights() -> None:
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(latent=8, widths=(16, 8)))
    for _ in range(5):
        network(torch.randn(16, 8) * 3, torch.zeros(16, 0))  # statistics of something else
    batches = [(torch.randn(200, 8), torch.zeros(200, 0)) for _ in range(10)]
    gan.recompute_norms(network, iter(batches))
    norm = network.get_submodule("norms.0.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum == 0.1
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        maps = [network.seed(noise) for noise, _ in batches]
    torch.testing.assert_close(norm.running_mean, torch.cat(maps).mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    means = torch.stack([part.var(dim=(0, 2, 3)) for part in maps]).mean(dim=0)
    torch.testing.assert_close(norm.running_var, means, rtol=1e-4, atol=1e-5)
    # So the pictures are those of training, where each batch has statistics of its own.
    with torch.no_grad():
        training, serving = network(*batches[0]), network.eval()(*batches[0])
    torch.testing.assert_close(serving, training, rtol=0, atol=0.02)


def test_generator_is_trained_and_exported(makers: Path) -> None:
    result = invoke(makers)
    assert result.exit_code == 0, result.output
    run = makers / "runs/stroke-maker"
    network, card = checkpoint.load(run / "export/stroke-maker")
    assert (card.task, card.architecture, card.classes) == ("generate", "gan", CLASSES)
    assert (card.config["num_classes"], card.config["image_size"]) == (3, 28)
    assert card.training is not None
    assert card.training.recipe == read_recipe(GanRecipe, makers / "recipe.toml").model_dump(
        mode="json", exclude_none=True
    )
    best = Run(run).load_best()
    assert best["networks"].keys() == {"generator", "discriminator"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in best["networks"]["generator"].items())
    history = json.loads((run / "history.json").read_text())
    assert best["epoch"] == min(history, key=lambda row: row["validation/frechet"])["epoch"]
    figures = {metric.name: metric.value for metric in card.metrics}
    assert figures.keys() == {"frechet", "precision", "recall", "modes", "diversity", "classes", "asked"}
    assert {metric.data for metric in card.metrics} == {"100 samples, strokes validation, lenet5-mnist features"}
    for name, value in figures.items():
        assert history[best["epoch"] - 1][f"validation/{name}"] == pytest.approx(value, rel=1e-6)
    seen = {name.partition("/")[2] for name in history[0]}
    assert seen >= {"accuracy", "lead", "slope", "steepest", "generator_gradient", "discriminator_gradient"}

    # The album's last sheet, drawn again one by one from the seed.
    pictures = [network(latents(3, index, 8)[None], torch.eye(3)[index % 3][None]).detach()[0] for index in range(100)]
    expected = np.stack([((p.numpy() * 127.5 + 127.5).round().clip(0, 255)).astype(np.uint8) for p in pictures])
    shown = np.asarray(Image.open(run / f"samples/epoch-{best['epoch']:03d}.png"), dtype=int)
    (makers / "again.png").write_bytes(sheet(np.moveaxis(expected, 1, -1), 10, 2))
    assert np.abs(shown - np.asarray(Image.open(makers / "again.png"), dtype=int)).max() <= 1


def test_a_critic_is_measured(makers: Path) -> None:
    assert invoke(makers, *sets(*[*PENALTY, "train.precision=bf16", "train.channels_last=true"])).exit_code == 0
    run = makers / "runs/stroke-maker"
    history = json.loads((run / "history.json").read_text())
    assert len(history) == 2
    for row in history:
        assert 0 < row["validation/slope"] <= row["validation/steepest"]
        assert row.keys() >= {"train/earth_mover", "validation/earth_mover"}
        assert "train/accuracy" not in row
    card = checkpoint.read_card(run / "export/stroke-maker")
    assert card.classes == ()
    assert "asked" not in {metric.name for metric in card.metrics}


def test_a_projected_gan_is_trained_and_exported(makers: Path) -> None:
    changes = [*PROJECTED, "watch.sheet_steps=5", "train.precision=bf16", "train.channels_last=true"]
    assert invoke(makers, *sets(*changes)).exit_code == 0
    run = makers / "runs/stroke-maker"
    steps = json.loads((run / "history.json").read_text())
    assert all(0 <= row["validation/accuracy"] <= 1 and "validation/slope" not in row for row in steps)
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["epoch-001.png", "epoch-002.png", "step-000005.png", "step-000010.png"]
    assert checkpoint.read_card(run / "export/stroke-maker").architecture == "fastgan"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [SPECTRAL, PROJECTED])
def test_the_generator_learns_strokes(makers: Path, changes: list[str]) -> None:
    options = sets(*changes, "train.epochs=60", "train.checkpoint_steps=0", "train.ema=0.95")
    assert invoke(makers, *options).exit_code == 0
    history = json.loads((makers / "runs/stroke-maker/history.json").read_text())
    best = min(row["validation/frechet"] for row in history)
    assert best < 0.5 * history[0]["validation/frechet"]


@pytest.mark.parametrize("changes", [[*PENALTY, "game.penalty_every=3"], PROJECTED])
def test_interrupted_run_ends_with_the_same_weights(makers: Path, changes: list[str]) -> None:
    options = sets(*changes, "train.checkpoint_steps=2", "watch.sheet_steps=2")  # of three steps an epoch
    check_resumed(partial(invoke, makers, *options), gan.AdversarialTask, 5, "_generate")


def test_collapsed_run_is_stopped(makers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = gan.AdversarialTask.samples

    def one_picture(task: gan.AdversarialTask, network: nn.Module, count: int) -> Any:
        brighter = (np.arange(count) % 2 * (task._epoch > 1)).astype(np.uint8)
        return np.repeat(drawn(task, network, 1), count, axis=0) + brighter[:, None, None, None]

    monkeypatch.setattr(gan.AdversarialTask, "samples", one_picture)
    result = invoke(makers, *sets("watch.grace=1", "train.epochs=5"))
    assert_error(result, "error: the generator has collapsed in epoch 2: ")
    assert "of 5 kinds of images are drawn" in result.output
    run = makers / "runs/stroke-maker"
    assert len(json.loads((run / "history.json").read_text())) == 1  # stopped early
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.architecture=vae"], "vae is not an adversarial generator"),
        (["preprocess.mean=[0]"], "mean 127.5, std 127.5"),
        (["watch.samples=101"], "101 samples need as many validation images, not 100"),
        (["game.loss=wasserstein", "discriminator.norm=none"], "needs a penalty, a clip or spectral"),
        (["game.loss=wasserstein", "game.clip=0.1"], "depends on the whole batch"),
        (["game.penalty=10"], "depends on the whole batch"),
        (["model.config.widths=[8, 8, 8]"], "28 pixels cannot be halved 3 times"),
        ([*PROJECTED, "model.conditional=true"], "takes no labels"),
        ([*PROJECTED, f"watch.extractor={ROOT / 'weights/judge-mnist'}"], "must not be the network whose features"),
        ([*PENALTY, "game.augment=['colour']"], "no game.augment"),
        (["anchor={ model = 'lenet5-mnist' }"], "lenet5-mnist is a network to classify, not to generate"),
        (["watch.extractor=nowhere"], "nowhere/card.json: No such file"),
    ],
)
def test_errors_are_one_line(makers: Path, changes: list[str], message: str) -> None:
    assert_error(invoke(makers, *sets(*changes)), message)


def test_several_processes_are_refused(makers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(RecipeError, match="in one process, not in 2"):
        adversaries(makers)


@pytest.mark.parametrize("name", ["gan-mnist", "wgan-mnist"])
def test_shipped_recipes_make_valid_networks(name: str) -> None:
    recipe = read_recipe(GanRecipe, ROOT / f"training/recipes/{name}.toml")
    assert recipe.name == name
    config, other = recipe.configs(10)
    labels = torch.zeros(2, config.num_classes)
    pictures = Generator(config)(torch.randn(2, config.latent), labels)
    assert Discriminator(other)(pictures, labels).shape == (2,)
    assert (ROOT / recipe.watch.extractor / "card.json").is_file()
