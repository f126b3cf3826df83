"""docs/training-your-own.md: its commands, as printed, from a folder of coloured shapes to an answer over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from models.checkpoint import read_card
from tests.fences import Shell, run_all

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training-your-own.md"
COLOURS = {"bird": "red", "cat": "green", "horse": "blue"}


def photo(path: Path, colour: str, place: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (64, 64), (200, 200 - 3 * place, 180))
    ImageDraw.Draw(image).ellipse((place, 10, place + 35, 50), fill=colour)
    image.save(path)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the start of the recipe and no state, and at home twelve photos of each of three classes."""
    for name, colour in COLOURS.items():
        for place in range(12):
            photo(tmp_path / "pictures/animals" / name / f"IMG_{place:04}.jpg", colour, place)
    photo(tmp_path / "pictures/new.jpg", "green", 20)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/efficientnet-lite0").symlink_to(ROOT / "weights/efficientnet-lite0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VESTIBULE_WEIGHTS", "weights")
    monkeypatch.setenv("VESTIBULE_STATE", "state")
    for name in ("DATASETS", "RUNS"):
        monkeypatch.delenv(f"VESTIBULE_{name}", raising=False)
    return tmp_path


def quickly(command: str) -> list[str]:
    """Small pictures and few epochs: what is tested is that the steps fit, not how good the model is."""
    faster = ["preprocess.size=[64, 64]", "train.epochs=4", "train.lr=0.01"]
    return [part for each in faster for part in ("--set", each)] if "training.classify" in command else []


def test_documented_commands_end_with_a_classification(home: Path) -> None:
    with Shell(quickly) as shell:
        lines = dict(run_all(PAGE, shell))
    card = read_card(home / "weights/animals")
    (answer,) = (json.loads(text) for line, text in lines.items() if "/classify?model=animals" in line)
    assert (answer["model"], answer["version"]) == ("animals", card.version)
    (result,) = answer["data"]
    assert {item["class"] for item in result["predictions"]} == set(COLOURS)
    assert result["predictions"][0]["class"] == "cat"  # the green ones
    assert sum(item["confidence"] for item in result["predictions"]) == pytest.approx(1, abs=1e-3)

    assert {metric.data for metric in card.metrics} == {"animals validation (6 cut from train)", "animals test (6)"}
    assert "started from efficientnet-lite0" in card.data
    assert "ImageNet-1k" in card.data
    assert "research and non-commercial" in card.license
    (reloaded,) = (json.loads(text) for line, text in lines.items() if line.endswith("/models/animals/reload"))
    assert reloaded["change"] == "unchanged"
