"""The training script of classifiers, from recipe to export; killed runs; two processes; auxiliary classifiers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from models import checkpoint
from models.registry import REGISTRY, Architecture
from models.tta import VIEWS, Tta
from tests.training.conftest import CLASSES, TWO_PROCESSES, assert_error, png, sets, strokes, write_parquet
from training import classify
from training.core.export import begin
from training.core.run_folder import Run
from training.core.seeds import generator
from training.datasets import images as data
from training.datasets.batches import Batches, stratified_split
from training.recipe.config import Recipe, read_recipe

ROOT = Path(__file__).parents[2]


def invoke(workshop: Path, *options: str) -> Result:
    return CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *options])


def test_classifier_is_trained_and_exported(workshop: Path) -> None:
    result = invoke(workshop)
    assert result.exit_code == 0, result.output
    run = workshop / "runs/strokes"
    module, card = checkpoint.load(run / "export/strokes")
    assert (card.name, card.classes, card.task) == ("strokes", CLASSES, "classify")
    assert (card.config["num_classes"], card.config["in_channels"], card.config["dropout"]) == (3, 1, 0.1)
    recipe = read_recipe(Recipe, workshop / "recipe.toml")
    assert card.preprocess == recipe.preprocess
    assert card.training is not None
    assert card.training.recipe == recipe.model_dump(mode="json")
    best = Run(run).load_best()
    assert (card.training.best_epoch, card.training.epochs, card.training.processes) == (best["epoch"], 4, 1)
    assert card.training.wall_time_s > 0

    # The figures again, by a plain loop over the split that was held out.
    images = data.load("strokes", "train", card.preprocess)
    _, rows = stratified_split(images.labels, 30, seed=3)
    right, surprise = 0, 0.0
    for row in rows:
        with torch.inference_mode():
            logits = module(card.preprocess.normalise(torch.from_numpy(images.images[row].copy()))[None])[0]
        likely = (logits / card.temperature).softmax(dim=0)
        right += int(likely.argmax()) == images.labels[row]
        surprise -= float(likely[images.labels[row]].log()) / 30
    figures = {metric.name: metric.value for metric in card.metrics if "validation" in metric.data}
    assert len(card.metrics) == len(figures)
    assert figures["accuracy"] == pytest.approx(right / 30)
    assert figures["nll"] == pytest.approx(surprise, abs=1e-5)
    assert right > 20  # it has learnt something

    # What is exported is the average of the best epoch, and the history says so.
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in best["networks"]["classifier"].items())
    history = json.loads((run / "history.json").read_text())
    assert len(history) == 4
    assert history[best["epoch"] - 1]["validation/accuracy"] == max(row["validation/accuracy"] for row in history)
    # `workshop` left a test file that nobody can read; it is still what it was.
    assert (workshop / "data/strokes/test.parquet").read_bytes().startswith(b"not parquet")


def test_a_large_validation_split_calibrates_the_rejection(workshop: Path) -> None:
    pictures, labels = strokes(1100, seed=5)
    write_parquet(workshop / "data/strokes/train.parquet", [png(picture) for picture in pictures], labels)
    result = invoke(workshop, *sets("data.validation=1000", "train.epochs=2"))
    assert result.exit_code == 0, result.output
    module, card = checkpoint.load(workshop / "runs/strokes/export/strokes")
    images = data.load("strokes", "train", card.preprocess)
    _, rows = stratified_split(images.labels, 1000, seed=3)
    with torch.inference_mode():
        energies = -module(card.preprocess.normalise(torch.from_numpy(images.images[rows]))).logsumexp(dim=1)
    assert card.rejection is not None
    assert (energies > card.rejection.threshold(0.05)).sum() == 50
    assert card.rejection.data == "strokes validation (1,000 cut from train)"


def test_all_settings_of_the_recipe_work(workshop: Path) -> None:
    switches = ["augment={crop=2, flip=true, mixup=0.3, cutmix=1, cutout=8, colour_pca=0.1, rand_augment=[2, 9]}"]
    switches += ["train={epochs=2, batch_size=10, lr=0.002, nesterov=true, precision='bf16', channels_last=true}"]
    switches += ["train.whiten=true", "train.clip_norm=1", "train.label_smoothing=0.1"]
    result = invoke(workshop, *sets(*switches, "model={architecture='lenet5', config={output='linear'}}"))
    assert result.exit_code == 0, result.output
    assert checkpoint.read_card(workshop / "runs/strokes/export/strokes").architecture == "lenet5"


def test_training_images_are_limited(workshop: Path) -> None:
    task, _ = begin(classify.setup, read_recipe(Recipe, workshop / "recipe.toml", ["data.train=60"]))
    every, _ = begin(classify.setup, read_recipe(Recipe, workshop / "recipe.toml"), "all")
    assert task.steps_per_epoch == 60 // 10 < every.steps_per_epoch
    assert torch.equal(task.held_out_labels, every.held_out_labels)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [((1, 2, 2, 2), "none"), ((1, 0, 2, 2), "flip"), ((1, 1, 0, 1), "six-view"), ((1, 1, 1, 0), "ten-crop")],
)
def test_best_views_are_exported(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, noise: tuple[float, float, float, float], expected: str
) -> None:
    # How much noise is in the picture, in its mirror image, in each of four shifted views, and of the eight corners.
    def logits(task: classify.ClassificationTask, network: object, tta: Tta = "none") -> Tensor:
        right = torch.nn.functional.one_hot(task.held_out_labels, 3).float() * 3
        other = torch.randn(right.shape, generator=torch.Generator().manual_seed(1))
        more = noise[2] if tta == "six-view" else noise[3]
        factors = torch.tensor([noise[0], noise[1], *[more] * 8])[: VIEWS[tta]]
        return right + factors[:, None, None] * other

    monkeypatch.setattr(classify.ClassificationTask, "held_out_logits", logits)
    assert invoke(workshop, "--set", "train.epochs=2").exit_code == 0
    card = checkpoint.read_card(workshop / "runs/strokes/export/strokes")
    assert card.tta == expected
    tails = ("",) if expected == "none" else ("", "_tta")
    assert {metric.name for metric in card.metrics} == {
        f"{n}{tail}" for n in ("accuracy", "nll", "ece") for tail in tails
    }


def test_views_that_lose_accuracy_are_not_exported(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nine pictures of ten are right by a little in the picture, wrong by a little more in the other views; the tenth is
    # very wrong in the picture alone, so that the other views lessen the loss.
    def logits(task: classify.ClassificationTask, network: object, tta: Tta = "none") -> Tensor:
        sure = torch.nn.functional.one_hot(task.held_out_labels, 3).float()
        little = torch.where(torch.arange(30) % 10 == 9, -4.0, 0.1)[:, None]
        rest = torch.where(torch.arange(30) % 10 == 9, 0.0, -0.11)[:, None]
        return torch.stack([little * sure, *[rest * sure] * 9])[: VIEWS[tta]]

    monkeypatch.setattr(classify.ClassificationTask, "held_out_logits", logits)
    monkeypatch.setattr(classify, "fit_temperature", lambda logits, labels: 1.0)
    assert invoke(workshop, "--set", "train.epochs=2").exit_code == 0
    card = checkpoint.read_card(workshop / "runs/strokes/export/strokes")
    assert card.tta == "none"
    figures = {metric.name: metric.value for metric in card.metrics}
    assert figures.keys() == {"accuracy", "nll", "ece"}
    assert figures["accuracy"] == 0.9
    assert figures["nll"] > math.log(3)  # of views that know nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.speed=1"], "unknown key train.speed"),
        (["--set", "data.name=ants"], "no train*.parquet"),
        (["--set", "train.batch_size=101"], "a batch of 101 from 100 training images"),
        (["--set", "data.validation=130"], "cannot cut 130 validation images from 130"),
        (["--set", "train.lr=1e30", "--set", "train.optimizer=sgd"], "the loss is nan"),
        (["--resume"], "there is no run to resume"),
    ],
)
def test_errors_are_one_line(workshop: Path, options: list[str], message: str) -> None:
    assert_error(invoke(workshop, *options), message)


def test_existing_run_is_overwritten_only_on_request_and_after_the_set_up(workshop: Path) -> None:
    once = ["--set", "train.epochs=2"]
    assert invoke(workshop, *once).exit_code == 0
    assert_error(invoke(workshop, *once), "already holds a run")
    assert invoke(workshop, *once, "--resume").exit_code == 0  # nothing left to do but the export
    assert_error(invoke(workshop, "--overwrite", "--set", "train.batch_size=101"), "a batch of 101")
    assert (workshop / "runs/strokes/export").is_dir()
    assert invoke(workshop, *once, "--overwrite").exit_code == 0


def command(workshop: Path, run: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "training.classify", str(workshop / "recipe.toml"), "--run", run, *options]


def test_killed_run_ends_with_the_same_weights(workshop: Path) -> None:
    longer = ["--set", "train.epochs=12", "--set", "train.checkpoint_steps=1"]
    assert invoke(workshop, "--run", "unbroken", *longer).exit_code == 0
    broken, options, stood_at = Run(workshop / "runs/broken"), longer, []
    for target in (15, 55):  # ten steps an epoch
        process = subprocess.Popen(command(workshop, "broken", *options), cwd=ROOT)
        while not _stands_at(broken, target):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        stood_at.append(broken.load_last(1)["progress"].step)
        assert not (broken.folder / "export").exists()
        options = [*longer, "--resume"]
    assert all(15 <= step < 120 for step in stood_at)
    subprocess.run(command(workshop, "broken", *options), cwd=ROOT, check=True)
    cards = [checkpoint.read_card(workshop / f"runs/{run}/export/strokes") for run in ("broken", "unbroken")]
    assert cards[0].sha256 == cards[1].sha256


def _stands_at(run: Run, step: int) -> bool:
    return (run.folder / "last.pt").exists() and run.load_last(1)["progress"].step >= step


def test_two_processes_agree_with_one(workshop: Path) -> None:
    # Without what each process draws for itself; what is left of a difference is the order of sums.
    options = sets("augment={}", "model.config={}", "train.epochs=2")
    python, *arguments = command(workshop, "two", *options)
    # accelerate's --cpu would start one process (see training.classify).
    subprocess.run(
        [python, *TWO_PROCESSES, *arguments], cwd=ROOT, check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"}
    )
    assert invoke(workshop, "--run", "one", *options).exit_code == 0
    folders = [workshop / "runs" / run for run in ("one", "two")]
    models = [checkpoint.load(folder / "export/strokes") for folder in folders]
    assert [card.training.processes for _, card in models if card.training] == [1, 2]
    histories = [json.loads((folder / "history.json").read_text()) for folder in folders]
    for alone, shared in zip(*histories, strict=True):
        assert shared == pytest.approx(alone, rel=1e-3)
    first, second = (network.state_dict() for network, _ in models)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_on_a_gpu_learns_and_resumes(workshop: Path, precision: str) -> None:
    options = ["--set", f"train.precision={precision}", "--set", "train.channels_last=true", "--set", "train.epochs=8"]
    result = invoke(workshop, *options)
    assert result.exit_code == 0, result.output
    card = checkpoint.read_card(workshop / "runs/strokes/export/strokes")
    assert card.training is not None
    assert card.training.hardware == torch.cuda.get_device_name()
    assert next(metric.value for metric in card.metrics if metric.name == "accuracy") > 0.8
    assert invoke(workshop, *options, "--resume").exit_code == 0


def test_alternating_flip_shows_every_image_both_ways(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = begin(classify.setup, read_recipe(Recipe, workshop / "recipe.toml", ["augment={flip='alternating'}"]))
    seen: list[Tensor] = []

    def watch(images: Tensor, *_: object) -> Tensor:
        seen.append(images.clone())
        return images

    monkeypatch.setattr(classify, "augment", watch)
    shown: list[dict[int, Tensor]] = []
    for epoch in range(3):
        seen.clear()
        for index in range(task.steps_per_epoch):
            task.step(epoch, index, torch.Generator())
        rows = [int(row) for index in range(task.steps_per_epoch) for row in task._rows[task._batches(epoch, index)]]
        shown.append(dict(zip(rows, torch.cat(seen), strict=True)))
    originals = torch.from_numpy(np.array(task.images.images)).movedim(-1, 1).float()
    for row, image in shown[0].items():
        assert torch.equal(image, originals[row].flip(-1)) != torch.equal(image, originals[row])
        assert torch.equal(shown[1][row], image.flip(-1))
        assert torch.equal(shown[2][row], image)


def test_freeze_whitening_keeps_the_filters(workshop: Path) -> None:
    settings = ["train.whiten=true", "train.freeze_whitening=true"]
    task, _ = begin(classify.setup, read_recipe(Recipe, workshop / "recipe.toml", settings))
    layer = next(module for module in task.learners["classifier"].network.modules() if isinstance(module, nn.Conv2d))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert invoke(workshop, *sets(*settings), "--overwrite").exit_code == 0
    after = Run(workshop / "runs/strokes").load_last(1)["learners"]["classifier"]["model"].values()
    kept = {name: any(torch.equal(value, weight) for value in after) for name, weight in before.items()}
    assert kept == {"weight": True, "bias": False}


def test_settings_of_the_fast_recipe_learn(workshop: Path) -> None:
    settings = [
        *("train.optimizer=muon", "train.filter_lr=0.05", "train.lr=0.02", "train.bias_lr=0.05", "train.nesterov=true"),
        *("train.schedule=linear", "train.identity=true", "train.norm_momentum=0.4", "train.freeze_gains=true"),
        *("train.whiten=true", "train.freeze_whitening=true", "train.weight_decay=0.1"),
        "model={architecture='vgg11-bn', config={stem=[4, 3], stages=[[8, 8]], hidden=[], pool_size=1, halve='first'}}",
        "augment={flip='alternating', crop=2, crop_fill='reflect'}",
    ]
    assert invoke(workshop, *sets(*settings)).exit_code == 0
    history = json.loads((workshop / "runs/strokes/history.json").read_text())
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert history[-1]["validation/accuracy"] > 0.6


@dataclass(frozen=True)
class Config:
    num_classes: int = 10
    in_channels: int = 1
    image_size: int = 32
    auxiliary: bool = True


class Network(nn.Module):
    """A network with auxiliary outputs, as Inception, of three linear layers."""

    def __init__(self, config: Config):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(config.in_channels * config.image_size**2, 8), nn.Tanh())
        self.head = nn.Linear(8, config.num_classes)
        heads = [nn.Linear(8, config.num_classes) for _ in range(2 if config.auxiliary else 0)]
        self.auxiliary = nn.ModuleList(heads)

    def forward(self, images: Tensor, *, auxiliary: bool = False) -> Tensor | tuple[Tensor, ...]:
        features = self.features(images)
        logits: Tensor = self.head(features)
        return (logits, *(head(features) for head in self.auxiliary)) if auxiliary else logits


@pytest.fixture
def settings(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Changes to the workshop's recipe, with the network in the registry."""
    monkeypatch.setitem(REGISTRY, "two-heads", Architecture(Config(), Network, "classify"))
    return ["model.architecture=two-heads", "model.config={}", "augment={}", "train.label_smoothing=0.1"]


@pytest.mark.parametrize(
    ("changes", "weight", "count"),
    [
        ([], 0.3, 2),
        (["train.auxiliary_weight=0.7"], 0.7, 2),
        (["model.config={auxiliary=false}"], 0.3, 0),
    ],
)
def test_the_loss_is_the_heads_and_the_weighted_others(
    workshop: Path, settings: list[str], changes: list[str], weight: float, count: int
) -> None:
    recipe = read_recipe(Recipe, workshop / "recipe.toml", [*settings, *changes])
    images = data.load("strokes", "train", recipe.preprocess)
    task = classify.ClassificationTask(recipe, images, Accelerator(cpu=True))
    network = deepcopy(task.learners["classifier"].model)
    result = task.step(0, 0, generator(0))
    train, _ = stratified_split(images.labels, recipe.data.validation, recipe.seed)
    rows = train[Batches(len(train), recipe.train.batch_size, recipe.seed)(0, 0)]
    labels = torch.from_numpy(images.labels[rows])
    with torch.no_grad():
        logits = network(recipe.preprocess.normalise(torch.from_numpy(images.images[rows])), auxiliary=True)
    main, *rest = (float(F.cross_entropy(head, labels, label_smoothing=0.1)) for head in logits)
    assert len(rest) == count
    assert float(result["loss"]) == pytest.approx(main + weight * sum(rest), rel=1e-5)
    assert float(result["accuracy"]) == pytest.approx(float((logits[0].argmax(dim=1) == labels).double().mean()))


def test_exported_network_has_no_auxiliary_classifiers(workshop: Path, settings: list[str]) -> None:
    result = CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *sets(*settings)])
    assert result.exit_code == 0, result.output
    run = workshop / "runs/strokes"
    module, card = checkpoint.load(run / "export/strokes")
    assert card.config == {"num_classes": 3, "in_channels": 1, "image_size": 32, "auxiliary": False}
    assert card.parameters == 8 * (32 * 32 + 1) + 3 * (8 + 1)
    exported = safetensors.torch.load_file(run / "export/strokes/model.safetensors")
    assert exported.keys() == {"features.1.weight", "features.1.bias", "head.weight", "head.bias"}
    trained = Run(run).load_best()["networks"]["classifier"]
    assert "auxiliary.1.weight" in trained
    assert all(torch.equal(value, trained[name]) for name, value in module.state_dict().items())
    assert {m.name: m.value for m in card.metrics}["accuracy"] > 0.6
