"""Auxiliary classifiers: weighted in the loss, absent from the export."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from typer.testing import CliRunner

from models import checkpoint
from models.registry import REGISTRY, Architecture
from tests.training.conftest import sets
from training import classify
from training.core.run_folder import Run
from training.core.seeds import generator
from training.datasets import images as data
from training.datasets.batches import Batches, stratified_split
from training.recipe.config import Recipe, read_recipe


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


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """Compute the loss by its definition, with loops over images and classes."""
    total = 0.0
    for row, label in zip(logits.log_softmax(dim=1).tolist(), labels.tolist(), strict=True):
        for number, value in enumerate(row):
            total -= ((number == label) * (1 - smoothing) + smoothing / len(row)) * value
    return total / len(labels)


@pytest.mark.parametrize("weight", [0.3, 0.7])
def test_the_loss_is_the_heads_and_the_weighted_others(workshop: Path, settings: list[str], weight: float) -> None:
    chosen = [] if weight == 0.3 else [f"train.auxiliary_weight={weight}"]  # 0.3 is the default
    recipe = read_recipe(Recipe, workshop / "recipe.toml", [*settings, *chosen])
    images = data.load("strokes", "train", recipe.preprocess)
    task = classify.ClassificationTask(recipe, images, Accelerator(cpu=True))
    network = deepcopy(task.learners["classifier"].model)
    result = task.step(0, 0, generator(0))
    train, _ = stratified_split(images.labels, recipe.data.validation, recipe.seed)
    rows = train[Batches(len(train), recipe.train.batch_size, recipe.seed)(0, 0)]
    labels = torch.from_numpy(images.labels[rows])
    with torch.no_grad():
        logits = network(recipe.preprocess.normalise(torch.from_numpy(images.images[rows])), auxiliary=True)
    main, *rest = (cross_entropy(head, labels, 0.1) for head in logits)
    assert len(rest) == 2
    assert float(result["loss"]) == pytest.approx(main + weight * sum(rest), rel=1e-5)
    assert float(result["accuracy"]) == pytest.approx(float((logits[0].argmax(dim=1) == labels).double().mean()))


def test_what_is_served_has_no_auxiliary_classifiers(workshop: Path, settings: list[str]) -> None:
    options = sets(*settings)
    result = CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *options])
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


def test_a_recipe_may_leave_them_out(workshop: Path, settings: list[str]) -> None:
    options = sets(*settings)
    options += ["--set", "model.config={auxiliary=false}", "--set", "train.epochs=2"]
    result = CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *options])
    assert result.exit_code == 0, result.output
    assert checkpoint.read_card(workshop / "runs/strokes/export/strokes").config["auxiliary"] is False
