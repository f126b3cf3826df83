"""OpenVINO's outputs against torch's for any number of images, and the cache of conversions."""

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
from models.openvino_runtime import SIZES, OpenVinoAnySizeRuntime, OpenVinoRuntime, split_batch
from models.registry import build
from tests.models.helpers import assert_runtime_agrees


@given(st.integers(0, 200))
def test_split_batch_covers_all_items(count: int) -> None:
    batches = list(split_batch(count))
    assert sum(items for items, _ in batches) == count
    for items, size in batches:
        assert size in SIZES
        assert 0.75 * size <= items <= size
    assert [size for _, size in batches] == sorted((size for _, size in batches), reverse=True)


@pytest.mark.parametrize("name", ["lenet5-relu", "resnet20", "efficientnet-lite0"])
def test_outputs_are_torchs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(name, {}).eval()
    shape = (1, 32, 32) if name == "lenet5-relu" else (3, 32, 32)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    ready = OpenVinoRuntime(module, shape, "f32", "weights", tmp_path)
    assert ready.name == "openvino-cpu-f32"
    assert openvino_runtime.signature().startswith("openvino-")
    assert_runtime_agrees(ready, module, (torch.randn(count, *shape) for count in (1, 3, 7, 37, 1)))
    with pytest.raises(ValueError, match=r"expected items of the shape \[\d, 32, 32\], got \[\d, 28, 28\]"):
        ready(torch.zeros(2, shape[0], 28, 28))


@pytest.mark.parametrize(("name", "config"), [("centerface", {}), ("denoiser", {"widths": [8, 8], "blocks": 1})])
def test_maps_of_images_of_any_size_are_torchs(name: str, config: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(name, config).eval()
    ready = OpenVinoAnySizeRuntime(module, (3, 256, 256), "f32", "weights", tmp_path)
    assert ready.name == "openvino-cpu-f32"
    sizes = ((1, 64, 64), (2, 96, 32), (1, 160, 224), (1, 64, 64))
    assert_runtime_agrees(ready, module, (torch.rand(count, 3, *sides) for count, *sides in sizes))
    assert len(list(tmp_path.glob("*.xml"))) == 1


def test_size_is_weights_and_outputs(tmp_path: Path) -> None:
    """Of a large image for maps, else of each batch size."""
    module = nn.Conv2d(1, 4, 3, bias=False)  # [1, 8, 8] -> [4, 6, 6]
    maps = OpenVinoAnySizeRuntime(module, (1, 10, 12), "f32", "weights", tmp_path)
    assert maps.size == 4 * (4 * 9 + 4 * 8 * 10)
    full, half = (OpenVinoRuntime(module, (1, 8, 8), p, "weights", tmp_path).size for p in ("f32", "bf16"))
    assert full == 4 * (4 * 9 * len(SIZES) + 4 * 6 * 6 * sum(SIZES)) == 2 * half


def test_conversion_is_cached_by_its_key(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = build("lenet5-relu", {}), build("lenet5-relu", {})
    images = torch.randn(2, 1, 32, 32)
    expected = OpenVinoRuntime(first, (1, 32, 32), "f32", "first", tmp_path)(images)
    assert len(list(tmp_path.glob("*.xml"))) == 1
    cached = OpenVinoRuntime(second, (1, 32, 32), "f32", "first", tmp_path)(images)  # the key identifies the network
    assert torch.equal(cached, expected)
    other = OpenVinoRuntime(second, (1, 32, 32), "f32", "second", tmp_path)(images)
    assert not torch.equal(other, expected)
    assert len(list(tmp_path.glob("*.xml"))) == 2


def test_telemetry_is_replaced_by_a_stub() -> None:
    """In a separate process, because the import would send an event."""
    code = (
        "from models import openvino_runtime; openvino_runtime.signature(); "
        "from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_compilation_waits_for_the_lock(tmp_path: Path) -> None:
    done = threading.Event()

    def compile_it() -> None:
        OpenVinoRuntime(nn.Linear(4, 2), (4,), "f32", key="a", folder=tmp_path)
        done.set()

    thread = threading.Thread(target=compile_it)
    with FileLock(tmp_path / "compiling.lock"):  # held as by another process
        thread.start()
        assert not done.wait(1)
    thread.join(60)
    assert done.is_set()


def test_lock_timeout_compiles_without_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "LOCK_TIMEOUT_S", 0.1)
    with FileLock(tmp_path / "compiling.lock"):
        ready = OpenVinoRuntime(nn.Linear(4, 2), (4,), "f32", key="a", folder=tmp_path)
    assert ready(torch.zeros(3, 4)).shape == (3, 2)
    assert not list(tmp_path.glob("*.blob"))
