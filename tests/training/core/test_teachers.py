"""A classifier that is taught by others: the loss, the teachers' logits, what the student learns, and refusals."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from scipy.special import log_softmax, softmax  # type: ignore[import-untyped]
from torch import Tensor
from typer.testing import CliRunner, Result

from models import checkpoint
from models.registry import build, configure
from models.runtime import TorchRuntime
from tests.training.conftest import CLASSES, GREY, assert_error, save, save_network, sets
from training import classify
from training.core.run_folder import Run
from training.core.teachers import Teachers
from training.datasets import images as data
from training.losses.soft_targets import logit_distillation
from training.metrics.classification import predict
from training.recipe.config import Recipe, read_recipe

SHIPPED = Path(__file__).parents[3] / "weights"
LENET = {"num_classes": 3}


@pytest.fixture
def workshop(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(workshop / "weights"))
    return workshop


def train(workshop: Path, *more: str) -> Result:
    options = sets("teacher.models=['master']", *more)
    return CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *options])


def teachers(workshop: Path, *more: str) -> Teachers:
    recipe = read_recipe(Recipe, workshop / "recipe.toml", ["teacher.models=['master']", *more])
    return Teachers(recipe, CLASSES, Accelerator(cpu=True))


def assert_about(actual: Tensor, expected: Tensor) -> None:
    """Teachers run in bf16 where the processor has it."""
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.01)


def pixels() -> Tensor:
    """Seven images of the data set, float [7, 1, 32, 32] in 0..255."""
    return torch.from_numpy(data.load("strokes", "train", GREY).images[:7].copy()).movedim(-1, 1).float()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loss_is_the_divergence_of_the_softened_probabilities(temperature: float) -> None:
    numbers = np.random.default_rng(0)
    student, taught = numbers.normal(size=(2, 5, 3)) * 4
    expected, actual = softmax(taught / temperature, axis=1), log_softmax(student / temperature, axis=1)
    divergence = (expected * (np.log(expected) - actual)).sum(axis=1).mean()
    loss = logit_distillation(torch.from_numpy(student), torch.from_numpy(taught), temperature)
    assert loss.item() == pytest.approx(temperature**2 * divergence)
    same = torch.from_numpy(taught)
    assert logit_distillation(same, same + 7, temperature).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_weight_is_the_share_of_the_teacher(workshop: Path, weight: float) -> None:
    save(workshop / "weights/master", "lenet5-relu", LENET, task="classify", classes=CLASSES)
    student, taught = torch.randn(2, 5, 3)
    expected = weight * logit_distillation(student, taught, 4.0) + (1 - weight) * 8
    torch.testing.assert_close(
        teachers(workshop, f"teacher.weight={weight}").loss(student, taught, torch.tensor(8.0)), expected
    )


def test_logits_are_the_mean_of_the_calibrated_ones_of_the_served_models(workshop: Path) -> None:
    images, expected = data.load("strokes", "train", GREY), torch.zeros(7, 3)
    for name, temperature in (("master", 2.0), ("other", 0.5)):
        torch.manual_seed(len(name))
        config = asdict(configure("lenet5-relu", LENET))
        network = build("lenet5-relu", config).eval()
        folder = workshop / "weights" / name
        options = {"task": "classify", "classes": CLASSES, "temperature": temperature}
        save_network(folder, network, "lenet5-relu", config, **options)
        logits = predict(TorchRuntime(network, torch.device("cpu")), images, np.arange(7), GREY)[0]
        expected += logits / temperature / 2
    computed = teachers(workshop, "teacher.models=['master','other']").logits(pixels())
    assert_about(computed, expected)


def test_images_are_resized_to_the_teachers_size(workshop: Path) -> None:
    large = GREY.model_copy(update={"size": (64, 64), "pad": 0})
    config = asdict(configure("resnet20", {"depths": [1], "widths": [4], "in_channels": 1, "num_classes": 3}))
    network = build("resnet20", config).eval()
    options = {"task": "classify", "classes": CLASSES, "preprocess": large}
    save_network(workshop / "weights/master", network, "resnet20", config, **options)
    grey = torch.full((2, 1, 32, 32), 90.0)
    with torch.inference_mode():
        expected = network(large.normalise(torch.full((2, 64, 64, 1), 90)))
    assert_about(teachers(workshop).logits(grey), expected)


def test_the_student_learns_the_teachers_classes_instead_of_the_labels(workshop: Path) -> None:
    first = CliRunner().invoke(classify.cli, [str(workshop / "recipe.toml"), *sets("train.epochs=12")])
    assert first.exit_code == 0, first.output
    network, card = checkpoint.load(workshop / "runs/strokes/export/strokes")
    last = list(network.modules())[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():  # the teacher takes each class for the next
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    save_network(
        workshop / "weights/master",
        network,
        card.architecture,
        card.config,
        task="classify",
        classes=CLASSES,
        license="CC0",
    )
    result = train(workshop, "name=student", "train.epochs=12", "teacher.weight=1.0")
    assert result.exit_code == 0, result.output

    # The exported epoch is that which agrees best with the labels: the last one has learnt most from the teacher.
    student, described = checkpoint.load(workshop / "runs/student/export/student")
    student.load_state_dict(Run(workshop / "runs/student").load_last(1)["learners"]["classifier"]["model"])
    images = data.load("strokes", "train", GREY)
    rows = np.arange(len(images.labels))
    runtime = TorchRuntime(student, torch.device("cpu"))
    chosen = predict(runtime, images, rows, described.preprocess)[0].argmax(dim=1).numpy()
    assert ((images.labels + 1) % 3 == chosen).mean() > 0.9
    version = checkpoint.read_card(workshop / "weights/master").version
    assert described.data == f"strokes; taught by master {version}, trained on: x"
    assert described.license == "Apache-2.0; of master, which taught it: CC0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["teacher.models=['nowhere']"], "nowhere/card.json: No such file or directory"),
        (["teacher.models=['ae-mnist']"], "ae-mnist is a network to reconstruct, not to classify"),
        (["teacher.models=['master', 'lenet5-mnist']"], "teacher.models: lenet5-mnist has the classes ('0', '1'"),
        (
            ["preprocess.mode=RGB", "preprocess.mean=[1.0,1.0,1.0]", "preprocess.std=[1.0,1.0,1.0]"],
            "master has the mode L, the recipe RGB",
        ),
        (["teacher.weight=0"], "teacher.weight: Input should be greater than 0"),
        (["teacher.temperature=0"], "teacher.temperature: Input should be greater than 0"),
    ],
)
def test_unsuitable_teachers_are_refused(workshop: Path, more: list[str], message: str) -> None:
    save(workshop / "weights/master", "lenet5-relu", LENET, task="classify", classes=CLASSES)
    for name in ("ae-mnist", "lenet5-mnist"):
        (workshop / "weights" / name).symlink_to(SHIPPED / name)
    assert_error(train(workshop, *more), message)
