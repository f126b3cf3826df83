"""The command that calibrates an embedder, against a plain loop over all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from models import checkpoint, matching_fit
from models.card import Metric
from models.passages import MAX_FRAMES
from tests.app.embedder import save_embedder
from tests.training.conftest import write_identities
from training import calibrate
from training.datasets import images as data
from training.datasets import passages
from training.datasets.faces import rows_of
from training.evaluation.embedded_faces import FaceEmbedder
from training.metrics import passages as passage_metrics
from training.recipe.config import CameraSection


@pytest.fixture
def people(folders: Path) -> Path:
    """The folder of an untrained embedder, and 120 people of one source with five faces each."""
    random = np.random.default_rng(0)
    rows = []
    for person in range(120):
        base = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        for _ in range(5):
            face = np.clip(base.repeat(8, axis=0).repeat(8, axis=1) + random.normal(0, 20, (32, 32, 3)), 0, 255)
            rows.append((Image.fromarray(face.astype(np.uint8)), f"made:{person}"))
    write_identities(folders / "data/people/train.parquet", rows)
    metrics = [Metric(name="kept", value=1.0, data="elsewhere")]
    save_embedder(folders, "untrained", metrics=metrics, matching=None, passages=())
    return folders


def test_command_writes_thresholds_into_the_card(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "BURST", CameraSection())  # an untrained network recognises nobody in a blurred photo
    command = [str(people / "untrained"), "--data", "people"]
    sha256 = checkpoint.read_card(people / "untrained").sha256
    monkeypatch.setattr(calibrate, "BURSTS", 100)  # enough for so few people
    monkeypatch.setattr(passage_metrics, "PHOTO_PASSAGES", 500)
    for flip in ("--no-flip", "--flip"):
        result = CliRunner().invoke(calibrate.cli, [*command, flip])
        assert result.exit_code == 0, result.output
        card = checkpoint.read_card(people / "untrained")
        assert card.tta == ("flip" if flip == "--flip" else "none")
        assert [metric.name for metric in card.metrics] == ["kept", "tar@fmr=0.01", "tar@fmr=0.001", "eer"]
        assert card.sha256 == sha256
    # Nobody has ten photos: only bursts count there. More frames never have a lower threshold.
    assert len(card.passages) == MAX_FRAMES
    thresholds = [passage.threshold(0.1).similarity for passage in card.passages]
    assert thresholds == sorted(thresholds)
    assert card.passages[2].data == "people, calibrate, 3 frames"
    # The thresholds again, by a plain loop over all pairs of the identities that calibrate.
    embedder = FaceEmbedder(people / "untrained")
    images = data.load("people", "train", card.preprocess)
    rows = rows_of(images, "calibrate")
    vectors, labels = embedder.rows(images, rows), images.labels[rows]
    strangers = [vectors[i] @ vectors[j] for i in range(len(rows)) for j in range(i) if labels[i] != labels[j]]
    assert embedder.matching.impostors == len(strangers)
    threshold = embedder.matching.threshold(0.1)
    assert np.mean(np.array(strangers) >= threshold.similarity) == pytest.approx(0.1, abs=2 / len(strangers))


def test_calibration_errors_are_reported(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_fit, "MIN_IMPOSTORS", 10**6)
    for folder, options, message in (
        (people / "untrained", ["--data", "people"], "calibration needs 1000000 non-mated pairs"),
        (people / "untrained", ["--data", "nobody"], "nobody"),
        (people / "nothing", ["--data", "people"], "No such file"),
        (Path(__file__).parents[2] / "weights/lenet5-mnist", ["--data", "people"], "people has the classes"),
    ):
        result = CliRunner().invoke(calibrate.cli, [str(folder), *options])
        assert result.exit_code == 1
        assert message in result.output
    assert checkpoint.read_card(people / "untrained").matching is None
