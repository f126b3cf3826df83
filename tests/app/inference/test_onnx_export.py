"""Exported networks: onnxruntime computes from the file what torch computes from the weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

from app.cli.main import cli
from app.inference.onnx_export import CARD_PROPERTY
from app.inference.submodels import default_submodel
from app.settings import PROJECT
from models import checkpoint
from models.card import ModelCard
from tests.models.onnx_files import run_file

SHIPPED = sorted(path.parent.name for path in PROJECT.glob("weights/*/card.json"))
FAST = ("lenet5-mnist", "mobilefacenet-triplet", "centerface", "denoiser-mnist", "cvae-mnist", "ae-mnist")


def export(name: str, folder: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["export", name, "--output", str(folder / "net.onnx"), *options])
    return result.exit_code, result.output


def check(name: str, folder: Path) -> None:
    status, output = export(name, folder, "--onnx")
    assert status == 0, output
    module, card = checkpoint.load(PROJECT / "weights" / name)
    submodel = default_submodel(card)
    channels, *sides = submodel.example_shape(card)
    network = submodel.extract(module)
    shapes = [(channels, *sides)]
    if name in {"centerface", "denoiser-mnist", "denoiser-photo"}:
        shapes.append((channels, 96, 64))
    for count, shape in zip((1, 3), (*shapes, shapes[-1]), strict=False):
        inputs = torch.rand(count, *shape)
        with torch.inference_mode():
            expected = network(inputs)
        actual = run_file(folder / "net.onnx", inputs)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    (stored,) = [entry for entry in onnx.load(folder / "net.onnx").metadata_props if entry.key == CARD_PROPERTY]
    assert ModelCard.model_validate_json(stored.value) == card


@pytest.mark.parametrize("name", FAST)
def test_onnxruntime_computes_the_same(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SHIPPED) - set(FAST)))
def test_onnxruntime_computes_the_same_for_every_shipped_model(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def test_errors(tmp_path: Path) -> None:
    assert "pass --onnx" in export("lenet5-mnist", tmp_path)[1]
    assert "No such file" in export("nothing", tmp_path, "--onnx")[1]
    (tmp_path / "net.onnx").touch()
    assert "exists already: delete it, or choose another --output" in export("lenet5-mnist", tmp_path, "--onnx")[1]
