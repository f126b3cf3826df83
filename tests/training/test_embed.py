"""The training script of embedders, on synthetic faces with a colour and a stripe."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from models import checkpoint
from models.registry import build
from tests.training.conftest import assert_error, check_resumed, sets, write_identities
from training import embed
from training.core.errors import RecipeError
from training.core.run_folder import Run
from training.datasets import images as data
from training.datasets.faces import rows_of, split_of
from training.losses.metric_learning import unit
from training.metrics.verification import Scores
from training.recipe.config import read_recipe
from training.recipe.embed_config import EmbedRecipe

RECIPE = """
name = "people"
description = "Made-up people"
seed = 5
data = { name = "people", images = 4, impostors = 1000 }
preprocess = { size = [16, 16], mean = [127.5, 127.5, 127.5], std = [127.5, 127.5, 127.5] }
augment = { flip = true, crop = 1 }
loss = { kind = "triplet", mining = "batch-hard", margin = 0.3 }
train = { epochs = 4, batch_size = 32, optimizer = "adamw", lr = 0.01, warmup_epochs = 1, checkpoint_steps = 3 }
card = { data = "people", source = "a test", license = "Apache-2.0" }

[model]
architecture = "embedder"
config.backbone = "resnet20"
config.backbone_config = { depths = [1, 1], widths = [8, 16], stem = "small-pool", shortcut = "projection" }
config.dimensions = 16
config.image_size = 16
"""


@pytest.fixture
def workshop(folders: Path) -> Path:
    """120 people of one source with five pictures each, and the recipe."""
    random = np.random.default_rng(0)
    rows = []
    for person in range(120):
        colour = random.uniform(40, 215, 3)
        stripe = int(random.integers(2, 12))
        for _ in range(5):
            pixels = colour + random.normal(0, 12, (16, 16, 3))
            pixels[stripe : stripe + 3] = 255 - colour
            rows.append((Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"made:{person}"))
    write_identities(folders / "data/people/train.parquet", rows)
    (folders / "recipe.toml").write_text(RECIPE)
    return folders


def invoke(workshop: Path, *options: str) -> Result:
    return CliRunner().invoke(embed.cli, [str(workshop / "recipe.toml"), *options])


def figures(workshop: Path, run: str = "people") -> dict[str, float]:
    card = checkpoint.read_card(workshop / f"runs/{run}/export/people")
    return {metric.name: metric.value for metric in card.metrics}


def test_embedder_is_trained_and_calibrated(workshop: Path) -> None:
    result = invoke(workshop)
    assert result.exit_code == 0, result.output
    module, card = checkpoint.load(workshop / "runs/people/export/people")
    assert (card.task, card.architecture, card.tta, card.config["dimensions"]) == ("embed", "embedder", "flip", 16)
    assert card.training is not None
    assert card.training.recipe == read_recipe(EmbedRecipe, workshop / "recipe.toml").model_dump(mode="json")

    # The figures again, by a plain loop over the pairs of people who were not trained on.
    images = data.load("people", "train", card.preprocess)
    rows = rows_of(images, "calibrate")
    assert {split_of(images.classes[label]) for label in images.labels[rows]} == {"calibrate"}
    with torch.inference_mode():
        pictures = card.preprocess.normalise(torch.from_numpy(images.images[rows]))
        vectors = unit(module(pictures) + module(pictures.flip(-1))).double().numpy()
    labels = images.labels[rows]
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    scores = Scores.of([vectors[i] @ vectors[j] for i, j in pairs], [labels[i] == labels[j] for i, j in pairs])
    results = figures(workshop)
    assert results["accuracy"] > 0.75  # it has learnt something
    # All pairs here, a thousand drawn ones there.
    assert results["tar@fmr=0.01"] == pytest.approx(scores.tar(0.01), abs=0.15)
    assert card.matching is not None
    assert scores.fmr(card.matching.threshold(0.1).similarity) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    "loss",
    [
        "{kind='margin-softmax', margin=0.2}",
        "{kind='contrastive', margin=1.0}",
        "{kind='contrastive', margin=1.0, mining='random'}",
        "{kind='contrastive', margin=0.5, metric='cosine', squared=true, mining='batch-all'}",
        "{kind='triplet', mining='random', squared=true}",
        "{kind='triplet', mining='semi-hard'}",
        "{kind='triplet', mining='batch-all', active_only=true, metric='cosine'}",
    ],
)
def test_every_loss_and_miner_trains(workshop: Path, loss: str) -> None:
    result = invoke(workshop, *sets(f"loss={loss}", "train.epochs=2"))
    assert result.exit_code == 0, result.output
    exported = checkpoint.load(workshop / "runs/people/export/people")[0].state_dict()
    assert not [name for name in exported if "proxies" in name]
    history = Run(workshop / "runs/people").load_last(1)["progress"].history
    active = [row["train/active"] for row in history]
    assert all(0 <= share <= 1 for share in active)
    assert (max(active) > 0) == ("triplet" in loss)


def test_distillation_approaches_the_teacher_and_is_continued(workshop: Path) -> None:
    count = 600
    teacher = np.random.default_rng(1).normal(size=(120, 16))[np.arange(count) // 5] + 3.0  # all faces look alike
    (workshop / "runs/teachers").mkdir(parents=True)
    np.save(workshop / "runs/teachers/wise.npy", teacher.astype(np.float16))
    result = invoke(workshop, "--set", 'loss={kind="distillation", teacher="wise"}', "--set", "train.epochs=6")
    assert result.exit_code == 0, result.output
    history = Run(workshop / "runs/people").load_last(1)["progress"].history
    assert history[-1]["train/loss"] < 0.8 * history[0]["train/loss"]
    before = checkpoint.load(workshop / "runs/people/export/people")[0].state_dict()

    loss = 'loss={kind="triplet", teacher="wise", distillation=0.5}'
    result = invoke(workshop, *sets("model.init=people", "train.epochs=2", "train.lr=1e-9", loss), "--run", "next")
    assert result.exit_code == 0, result.output
    after = checkpoint.load(workshop / "runs/next/export/people")[0].state_dict()
    for name, value in before.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.allclose(value, after[name], atol=1e-5), name


def test_run_starts_from_shipped_weights_with_frozen_blocks(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(workshop, "--set", "train.epochs=2").exit_code == 0
    shipped = workshop / "weights/elder"
    shutil.copytree(workshop / "runs/people/export/people", shipped)
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(workshop / "weights"))
    before = checkpoint.load(shipped)[0].state_dict()

    options = ["--run", "next", "--set", "model.init=elder", "--set", "model.freeze=2", "--set", "train.epochs=2"]
    result = invoke(workshop, *options)
    assert result.exit_code == 0, result.output
    after = checkpoint.load(workshop / "runs/next/export/people")[0].state_dict()
    frozen = {name for name in before if name.startswith(("features.0.", "features.1."))}
    assert frozen
    # Batch norms of frozen blocks keep their statistics, too.
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - frozen if "weight" in name)

    assert_error(invoke(workshop, "--run", "more", *options[2:4], "--set", "model.freeze=99"), "freeze is 99, and the")


def test_exported_weights_are_interpolated(workshop: Path) -> None:
    assert invoke(workshop, "--set", "train.epochs=2").exit_code == 0
    for run, share in (("whole", 1.0), ("between", 0.25)):
        options = sets("model.init=people", "train.epochs=2", f"model.trained={share}")
        assert invoke(workshop, "--run", run, *options).exit_code == 0
    folders = (workshop / f"runs/{run}/export/people" for run in ("people", "whole", "between"))
    before, whole, between = (checkpoint.load(folder)[0].state_dict() for folder in folders)
    for name, value in between.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * whole[name], rtol=1e-4, atol=1e-6)


def test_weights_are_resampled_for_larger_images() -> None:
    small = build("mobilefacenet", {"image_size": 64, "dimensions": 8}).eval()
    large = build("mobilefacenet", {"image_size": 112, "dimensions": 8}).eval()
    large.load_state_dict(embed._resampled(small.state_dict(), large.state_dict()))
    # The sum of the weights is kept: a map that is the same everywhere has one embedding, at any size.
    column = torch.randn(3, 512, 1, 1)
    with torch.inference_mode():
        ours = [net.get_submodule("head")(column.expand(-1, -1, side, side)) for net, side in ((small, 4), (large, 7))]
    torch.testing.assert_close(*ours, rtol=1e-4, atol=1e-5)


def test_a_teachers_vectors_may_come_with_the_data(workshop: Path) -> None:
    (workshop / "data/wise").mkdir()
    np.save(workshop / "data/wise/people-vectors.npy", np.random.default_rng(1).normal(size=(600, 16)))
    options = sets('loss={kind="distillation", teacher="wise"}', "train.epochs=2")
    assert invoke(workshop, *options).exit_code == 0
    np.save(workshop / "data/wise/people-vectors.npy", np.zeros((600, 7)))
    assert_error(invoke(workshop, *options, "--overwrite"), "has the shape [600, 7], expected [600, 16]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('loss={kind="distillation"}', "a teacher must be named"),
        ("model.freeze=1", "init is not set"),
        ("model.trained=0.5", "init is not set"),
        ('loss={kind="triplet", teacher="wise"}', "a teacher must be named"),
        ("train.batch_size=30", "multiple of images"),
    ],
)
def test_inconsistent_recipes_are_refused(workshop: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(EmbedRecipe, workshop / "recipe.toml", [override])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (['loss={kind="distillation", teacher="nobody"}'], "teachers/nobody.npy is missing"),
        (["model.init=nothing"], "cannot start from nothing"),
        (["model.init=people", "model.freeze=9"], "cannot start from people"),
        (["train.batch_size=4000"], "identities"),
    ],
)
def test_missing_inputs_are_named(workshop: Path, options: list[str], message: str) -> None:
    assert_error(invoke(workshop, *sets(*options)), message)


def test_resumed_run_ends_with_the_same_weights(workshop: Path) -> None:
    check_resumed(partial(invoke, workshop, *sets("loss.mining=random", "train.epochs=2")), embed.EmbeddingTask, 5)


def test_too_few_impostor_pairs_are_reported_before_training(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "MIN_IMPOSTORS", 10**6)
    assert_error(invoke(workshop), "calibration needs 1000000 non-mated pairs")
    assert not (workshop / "runs/people").exists()
