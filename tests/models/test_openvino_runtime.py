"""OpenVINO's answers against torch's, whatever the number of pictures, and what is kept of a conversion."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import openvino_runtime
from models.openvino_runtime import SIZES, AnySizeRuntime, OpenVinoRuntime, pieces, precisions, signature
from models.registry import build


@given(st.integers(0, 200))
def test_pieces_are_all_there_is(count: int) -> None:
    found = list(pieces(count))
    assert sum(items for items, _ in found) == count
    for items, size in found:
        assert size in SIZES
        assert 0.75 * size <= items <= size
    assert [size for _, size in found] == sorted((size for _, size in found), reverse=True)


@pytest.mark.parametrize("name", ["lenet5-relu", "resnet20", "efficientnet-lite0"])
def test_its_answers_are_torchs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(name, {}).eval()
    shape = (1, 32, 32) if name == "lenet5-relu" else (3, 32, 32)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    ready = OpenVinoRuntime(module, shape, "f32", "weights", tmp_path)
    assert ready.name == "openvino-cpu-f32"
    for count in (1, 3, 7, 37):
        images = torch.randn(count, *shape)
        with torch.inference_mode():
            expected = module(images)
        outputs = ready(images)
        assert outputs.shape == expected.shape
        assert float((outputs - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "config"), [("centerface", {}), ("denoiser", {"widths": [8, 8], "blocks": 1})])
def test_maps_of_pictures_of_any_size_are_torchs(name: str, config: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(name, config).eval()
    ready = AnySizeRuntime(module, (3, 256, 256), "f32", "weights", tmp_path)
    assert ready.name == "openvino-cpu-f32"
    before = None
    for count, height, width in ((1, 64, 64), (2, 96, 32), (1, 160, 224), (1, 64, 64)):
        images = torch.rand(count, 3, height, width)
        with torch.inference_mode():
            expected = module(images)
        outputs = ready(images)
        assert outputs.shape == expected.shape
        assert float((outputs - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
        if before is not None:
            assert torch.equal(*before)  # what was answered outlives the next
        before = outputs, outputs.clone()
    assert len(list(tmp_path.glob("*.xml"))) == 1


def test_what_maps_take_is_weights_and_room_for_a_large_picture(tmp_path: Path) -> None:
    module = nn.Conv2d(1, 4, 3, bias=False)
    ready = AnySizeRuntime(module, (1, 10, 12), "f32", "weights", tmp_path)
    assert ready.size == 4 * (4 * 9 + 4 * 8 * 10)


def test_what_it_takes_is_weights_and_room_for_each_size(tmp_path: Path) -> None:
    module = nn.Conv2d(1, 4, 3, bias=False)  # [1, 8, 8] -> [4, 6, 6]
    weights, answer = 4 * 9, 4 * 6 * 6
    rows = sum(SIZES)
    full, half = (OpenVinoRuntime(module, (1, 8, 8), p, "weights", tmp_path).size for p in ("f32", "bf16"))
    assert full == 4 * (weights * len(SIZES) + answer * rows) == 2 * half


def test_an_answer_outlives_the_next(tmp_path: Path) -> None:
    ready = OpenVinoRuntime(build("lenet5-relu", {}), (1, 32, 32), "f32", "weights", tmp_path)
    first = ready(torch.ones(1, 1, 32, 32))
    kept = first.clone()
    ready(torch.zeros(1, 1, 32, 32))
    assert torch.equal(first, kept)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    ready = OpenVinoRuntime(build("lenet5-relu", {}), (1, 32, 32), "f32", "weights", tmp_path)
    with pytest.raises(ValueError, match=r"expected items of the shape \[1, 32, 32\], got \[1, 28, 28\]"):
        ready(torch.zeros(2, 1, 28, 28))


def test_a_conversion_is_kept_and_found_by_its_key(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = build("lenet5-relu", {}), build("lenet5-relu", {})
    images = torch.randn(2, 1, 32, 32)
    one = OpenVinoRuntime(first, (1, 32, 32), "f32", "first", tmp_path)(images)
    assert len(list(tmp_path.glob("*.xml"))) == 1
    again = OpenVinoRuntime(second, (1, 32, 32), "f32", "first", tmp_path)(images)  # who says it is the first gets it
    assert torch.equal(again, one)
    other = OpenVinoRuntime(second, (1, 32, 32), "f32", "second", tmp_path)(images)
    assert not torch.equal(other, one)
    assert len(list(tmp_path.glob("*.xml"))) == 2


def test_it_names_versions_and_processor() -> None:
    assert signature().startswith("openvino-")
    assert "f32" in precisions()


def test_openvino_tells_nobody_that_it_is_used() -> None:
    """In a process of its own: its import would send an event."""
    code = (
        "from models import openvino_runtime; openvino_runtime.signature(); "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_processes_compile_one_after_the_other(tmp_path: Path) -> None:
    done = threading.Event()

    def compile_it() -> None:
        OpenVinoRuntime(nn.Linear(4, 2), (4,), "f32", key="a", folder=tmp_path)
        done.set()

    thread = threading.Thread(target=compile_it)
    with FileLock(tmp_path / "compiling.lock"):  # as another process would
        thread.start()
        assert not done.wait(1)
    thread.join(60)
    assert done.is_set()


def test_who_has_the_lock_and_does_not_go_on_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "PATIENCE_S", 0.1)
    with FileLock(tmp_path / "compiling.lock"):
        ready = OpenVinoRuntime(nn.Linear(4, 2), (4,), "f32", key="a", folder=tmp_path)
    assert ready(torch.zeros(3, 4)).shape == (3, 2)
    assert not list(tmp_path.glob("*.blob"))
