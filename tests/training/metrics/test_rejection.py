"""Calibration of a classifier's rejection, and its figures against an independent library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_ood.metrics import OODMetrics
from typer.testing import CliRunner

from models import checkpoint
from models.rejection import energies
from tests.training.conftest import CLASSES, png, save, strokes, write_parquet
from training import calibrate, evaluate
from training.datasets.images import ImageSet, load
from training.metrics.rejection import held_out_rows, scores, separation

TRAINED = {"epochs": 1, "best_epoch": 1, "wall_time_s": 1.0, "hardware": "none", "versions": {}, "seed": 3}


@pytest.fixture
def untrained(folders: Path) -> Path:
    """A network for strokes, 1,200 images to calibrate it, 40 to test it, and 30 foreign images of noise."""
    for split, count in (("train", 1200), ("test", 40)):
        pictures, labels = strokes(count, seed=count)
        write_parquet(folders / f"data/strokes/{split}.parquet", [png(picture) for picture in pictures], labels)
    pictures, _ = strokes(30, seed=9)
    noise = [picture.effect_spread(20) for picture in pictures]
    write_parquet(folders / "data/noise/test.parquet", [png(picture) for picture in noise], [0] * 30)
    return save(folders / "weights", "lenet5-relu", {"num_classes": 3}, task="classify", name="net", classes=CLASSES)


def test_commands_calibrate_and_measure(untrained: Path) -> None:
    measured = ["rejection", str(untrained), "--data", "strokes", "--foreign", "noise"]
    early = CliRunner().invoke(evaluate.cli, measured)
    assert (early.exit_code, "python -m training.calibrate" in early.output) == (1, True)
    before = checkpoint.read_card(untrained)
    result = CliRunner().invoke(calibrate.cli, [str(untrained), "--data", "strokes"])
    assert result.exit_code == 0, result.output
    card = checkpoint.read_card(untrained)
    assert card.rejection is not None
    assert card.model_copy(update={"rejection": None}) == before
    assert card.rejection.data == "strokes train (1,200 not trained on)"
    # The threshold again, by a plain loop over the images.
    module, images = checkpoint.load(untrained)[0], load("strokes", "train", card.preprocess)
    with torch.inference_mode():
        rows = [module(card.preprocess.normalise(torch.from_numpy(image.copy()))[None])[0] for image in images.images]
    higher = energies(torch.stack(rows).numpy()) > card.rejection.threshold(0.1)
    assert higher.mean() == pytest.approx(0.1, abs=0.001)
    shown = CliRunner().invoke(evaluate.cli, [*measured, "--write"])
    assert shown.exit_code == 0, shown.output
    figures = {metric.name: metric.data for metric in checkpoint.read_card(untrained).metrics}
    assert figures == {
        "accepted@reject=0.05": "strokes test (40)",
        "auroc": "strokes test (40) against noise test (30)",
        "auroc_softmax": "strokes test (40) against noise test (30)",
    }


def test_calibration_uses_images_on_which_the_model_was_not_trained(untrained: Path) -> None:
    card, images = checkpoint.read_card(untrained), load("strokes", "train", checkpoint.read_card(untrained).preprocess)
    assert len(held_out_rows(card, "strokes", images)) == 1200
    recipe = {"seed": 3, "data": {"name": "strokes", "validation": 300}}
    trained = card.model_validate(card.model_dump() | {"training": TRAINED | {"recipe": recipe}})
    rows = held_out_rows(trained, "strokes", images)
    assert len(rows) == 300
    assert np.bincount(images.labels[rows]).tolist() == [100, 100, 100]
    assert len(held_out_rows(trained, "elsewhere", images)) == 1200


def test_scores_separate_as_an_independent_library_says() -> None:
    random = np.random.default_rng(0)
    own, foreign = random.normal(0, 3, (300, 10)), random.normal(0, 2, (200, 10))
    for name in ("auroc", "auroc_softmax"):
        judge, sides = OODMetrics(), (scores(own, 1.0)[name], scores(foreign, 1.0)[name])
        for side, label in zip(sides, (1, -1), strict=True):
            judge.update(torch.from_numpy(side), torch.full((len(side),), label))
        assert separation(*sides) == pytest.approx(judge.compute()["AUROC"], abs=1e-6)
    likely = torch.from_numpy(own).softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(scores(own, 1.0)["auroc_softmax"], 1 - likely.numpy(), atol=1e-12)


def test_left_out_classes_are_numbered_anew() -> None:
    from benchmarks.experiments.left_out_classes import without

    images = ImageSet(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.array([0, 1, 2, 3, 1, 3]), tuple("abcd"))
    kept = without(images, [0, 2])
    assert (kept.images.ravel().tolist(), kept.labels.tolist(), kept.classes) == (
        [1, 3, 4, 5],
        [0, 1, 0, 1],
        ("b", "d"),
    )
