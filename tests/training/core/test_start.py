"""Training from pretrained features: copied, frozen, or refused if unsuitable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from models import checkpoint
from models.card import ModelCard
from models.preprocess import Preprocess
from models.registry import build
from tests.training.conftest import CLASSES, GREY, sets
from training import classify
from training.core.export import begin
from training.core.run_folder import Run
from training.recipe.config import Recipe, read_recipe

# With batch norm, whose counts are no parameters, in a form of which the recipe says nothing.
TINY = {"depths": [1, 1], "widths": [4, 8], "in_channels": 1, "num_classes": 4, "image_size": 32}


def begun(folder: Path, architecture: str = "resnet20", preprocess: Preprocess = GREY) -> ModelCard:
    """Save a network with random weights and statistics."""
    torch.manual_seed(11)
    module = build(architecture, TINY)
    for name, buffer in module.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.uniform_(-0.5, 0.5)
    return checkpoint.save(
        folder,
        module,
        name="elder",
        description="d",
        task="classify",
        architecture=architecture,
        config=TINY,
        preprocess=preprocess,
        classes=("a", "b", "c", "d"),
        data="other strokes",
        source="a test",
        license="CC0",
    )


def switches(workshop: Path, *more: str) -> list[str]:
    start = [f"model.start={workshop / 'elder'}", "model.architecture=resnet20", "model.config={}"]
    return [*start, "train.epochs=2", "train.checkpoint_steps=0", "train.ema=0.5", "train.lr=0.05", *more]


def train(workshop: Path, *more: str) -> Result:
    return CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *sets(*switches(workshop, *more))])


def recipe_of(workshop: Path, *more: str) -> Recipe:
    return read_recipe(Recipe, workshop / "recipe.toml", switches(workshop, *more))


def features(module: nn.Module) -> dict[str, torch.Tensor]:
    return module.get_submodule("features").state_dict()


def test_the_features_are_the_other_one_s_and_the_head_is_new(workshop: Path) -> None:
    begun(workshop / "elder")
    elder, _ = checkpoint.load(workshop / "elder")
    task, _ = begin(classify.setup, recipe_of(workshop))
    network = build("resnet20", TINY | {"num_classes": 3})
    network.load_state_dict(task.learners["classifier"].network.state_dict())  # the shapes are the card's
    pictures = GREY.normalise(torch.from_numpy(task.images.images[:5].copy()))
    with torch.inference_mode():
        expected = elder.get_submodule("features")(pictures)
        assert expected.any()
        assert torch.equal(network.eval().get_submodule("features")(pictures), expected)
        assert torch.equal(network(pictures), torch.zeros(5, 3))  # no class is likelier before it has learnt


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_features_stay_bit_for_bit_and_others_move(workshop: Path, freeze: bool) -> None:
    card = begun(workshop / "elder")
    elder, _ = checkpoint.load(workshop / "elder")
    result = train(workshop, f"model.freeze={str(freeze).lower()}")
    assert result.exit_code == 0, result.output
    created, lines = checkpoint.load(workshop / "runs/strokes/export/strokes")
    kept = {name: torch.equal(value, features(elder)[name]) for name, value in features(created).items()}
    assert all(kept.values()) if freeze else not all(kept.values())
    assert any("running_mean" in name for name in kept)
    last = Run(workshop / "runs/strokes").load_last(1)["learners"]["classifier"]["model"]
    assert freeze == all(torch.equal(last[f"features.{name}"], value) for name, value in features(elder).items())
    assert created.state_dict()["head.1.weight"].any()

    assert lines.classes == CLASSES
    assert lines.config == lines.config | card.config | {"num_classes": 3}
    assert lines.data == f"strokes; started from elder {card.version}, trained on: other strokes"
    assert lines.license == "Apache-2.0; of elder, which it started from: CC0"
    assert lines.training is not None
    assert lines.training.recipe["model"]["start"] == str(workshop / "elder")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.start=nowhere"], "model.start: nowhere/card.json: No such file or directory"),
        (["model.architecture=resnet32"], "elder has the architecture resnet20, the recipe resnet32"),
        (["preprocess.mean=[0.0]"], "elder has the mean (33.3,), the recipe (0.0,)"),
        (["preprocess.std=[1.0]"], "elder has the std (78.6,), the recipe (1.0,)"),
        (
            ["preprocess.mode=RGB", "preprocess.mean=[1.0,1.0,1.0]", "preprocess.std=[1.0,1.0,1.0]"],
            "elder has the mode L, the recipe RGB",
        ),
        (["model.config={widths=[4, 9]}"], "model.config asks for other features than elder has: Error(s) in"),
        (["model.config={depths=[1, 2]}"], "Missing key(s)"),
        (["train.whiten=true"], "exclude each other"),
        (["model.start=", "model.freeze=true"], "start is not set"),
    ],
)
def test_unsuitable_models_are_refused(workshop: Path, more: list[str], message: str) -> None:
    begun(workshop / "elder")
    result = train(workshop, *more)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


def test_only_a_classifier_s_features_are_taken(workshop: Path) -> None:
    folder = Path(__file__).parents[3] / "weights/ae-mnist"
    result = train(workshop, f"model.start={folder}")
    assert "ae-mnist is not a classifier but a network to reconstruct" in result.output


def test_image_size_may_differ(workshop: Path) -> None:
    begun(workshop / "elder", preprocess=GREY.model_copy(update={"size": (40, 40), "pad": 0}))
    task, _ = begin(classify.setup, recipe_of(workshop))
    assert task.pretrained is not None
    assert task.images.images.shape[1:] == (32, 32, 1)
