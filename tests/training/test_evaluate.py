"""Measuring exported weights on the test split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv
from typer.testing import CliRunner

from models import checkpoint
from models.card import Metric, ModelCard
from tests.training.conftest import CLASSES, png, save, strokes, write_parquet
from training.evaluate import cli
from training.metrics.classification import measure_classifier

WEIGHTS = Path(__file__).parents[2] / "weights"
FRAME = ((4, 4), (4, 4), (0, 0))


@pytest.fixture
def exported(folders: Path) -> Path:
    """An untrained network with a temperature and ten views, 20 test strokes, and two old figures in its card."""
    pictures, labels = strokes(20, seed=4)
    write_parquet(folders / "data/strokes/test.parquet", [png(p) for p in pictures], labels)
    old = [Metric(name="accuracy", value=0.0, data=where) for where in ("strokes test (20)", "strokes validation")]
    card: dict[str, object] = {"name": "strokes", "classes": CLASSES, "temperature": 0.5, "tta": "ten-crop"}
    return save(folders / "weights", "lenet5-relu", {"num_classes": 3}, task="classify", metrics=old, **card)


def plain_accuracy(folder: Path, *, tta: bool) -> float:
    module, card = checkpoint.load(folder)
    right = 0
    for picture, label in zip(*strokes(20, seed=4), strict=True):
        image = card.preprocess(picture)[None]
        with torch.inference_mode():
            likely = (module(image) / card.temperature).softmax(dim=1)
            if tta:
                framed = card.preprocess.normalise(torch.from_numpy(np.pad(card.preprocess.pixels(picture), FRAME)))
                crops = torch.stack(list(tv.ten_crop(framed, [32, 32])))
                likely = (module(crops) / card.temperature).softmax(dim=1).sum(dim=0, keepdim=True)
        right += int(likely.argmax()) == label
    return right / 20


def test_figures_are_those_of_a_plain_loop(exported: Path) -> None:
    _, metrics = measure_classifier(exported, "strokes")
    figures = {metric.name: metric.value for metric in metrics}
    assert figures.keys() == {f"{name}{tail}" for name in ("accuracy", "nll", "ece") for tail in ("", "_tta")}
    assert figures["accuracy"] == pytest.approx(plain_accuracy(exported, tta=False))
    assert figures["accuracy_tta"] == pytest.approx(plain_accuracy(exported, tta=True))


def test_write_replaces_only_the_same_figure(exported: Path) -> None:
    before, weights = checkpoint.read_card(exported), (exported / checkpoint.WEIGHTS_FILE).read_bytes()
    arguments = ["classify", str(exported), "--data", "strokes"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert checkpoint.read_card(exported) == before
    assert CliRunner().invoke(cli, [*arguments, "--write"]).output == shown.output
    after = checkpoint.read_card(exported)
    assert [m.data for m in after.metrics if m.name == "accuracy"] == ["strokes validation", "strokes test (20)"]
    assert after.metrics[0] == before.metrics[1]
    assert after.model_copy(update={"metrics": ()}) == before.model_copy(update={"metrics": ()})
    assert (exported / checkpoint.WEIGHTS_FILE).read_bytes() == weights


def test_other_classes_and_folders_without_a_model_are_refused(exported: Path, folders: Path) -> None:
    write_parquet(folders / "data/ants/test.parquet", [png(strokes(1)[0][0])], [0], ("red", "black", "wood"))
    for folder, message in ((exported, "error: ants has the classes"), (folders, "card.json")):
        result = CliRunner().invoke(cli, ["classify", str(folder), "--data", "ants"])
        assert (result.exit_code, message in result.output) == (1, True)


@pytest.mark.data
def test_shipped_lenet_agrees_with_its_card(
    datasets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VESTIBULE_DATASETS", str(datasets("mnist").parent))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path))
    card: ModelCard
    card, metrics = measure_classifier(WEIGHTS / "lenet5-mnist", "mnist")
    result = {metric.name: metric.value for metric in metrics}
    stored = [metric for metric in card.metrics if metric.data == "mnist test (10,000)"]
    lines = {metric.name: metric.value for metric in stored if metric.name in result}
    assert result == pytest.approx(lines, abs=5e-4)
    assert result["accuracy"] >= 0.990
