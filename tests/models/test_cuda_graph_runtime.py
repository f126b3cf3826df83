"""CUDA graphs against eager torch; without a GPU, the same computation without recording."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import cuda_graph_runtime, runtime_selection
from models.card import Tolerance
from models.cuda_graph_runtime import CudaGraphRuntime, Precision
from models.preprocess import Preprocess
from models.registry import build
from models.runtime import TorchRuntime
from models.runtime_selection import RuntimeSelector
from tests.models.helpers import assert_runtime_agrees

CPU = torch.device("cpu")
GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))
EXAMPLES = Path(__file__).parents[2] / "examples"


class Watcher(nn.Module):
    """Records size, memory format and precision of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.calls: list[tuple[int, bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)
        self.calls.append((len(x), x.is_contiguous(memory_format=torch.channels_last), outputs.dtype))
        return outputs.mean(dim=(2, 3))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_outputs_are_torchs(precision: Precision) -> None:
    torch.manual_seed(0)
    module = build("resnet20", {}).eval()
    ready = CudaGraphRuntime(module, (3, 32, 32), precision, CPU)
    assert ready.name == f"torch-cpu-graph-{precision}"
    assert ready.size == TorchRuntime(module, CPU).size
    batches = (torch.randn(count, 3, 32, 32) for count in (1, 3, 37))
    assert_runtime_agrees(ready, module, batches, tolerance=1e-4 if precision == "f32" else 0.05)


def test_batches_are_padded_and_channels_last() -> None:
    watcher = Watcher()
    ready = CudaGraphRuntime(watcher, (3, 8, 8), "bf16", CPU)
    ready(torch.ones(45, 3, 8, 8))
    copied = ready._module
    assert isinstance(copied, Watcher)
    assert [size for size, _, _ in copied.calls] == [32, 16]
    assert {(last, dtype) for _, last, dtype in copied.calls} == {(True, torch.bfloat16)}
    assert watcher.calls == []  # the original network is not used
    with pytest.raises(ValueError, match=r"shape \[3, 8, 8\], got \[3, 9, 9\]"):
        ready(torch.ones(1, 3, 9, 9))


def test_precisions_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert cuda_graph_runtime.precisions(torch.device("cuda")) == ("f32", "f16")
    assert cuda_graph_runtime.precisions(CPU) == ("f32", "bf16", "f16")


def test_candidates_on_a_gpu_are_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_selection, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    module = build("lenet5-relu", {})
    selector = RuntimeSelector(module, GREY, GREY.shape, "logits", Tolerance(), "weights", tmp_path)
    assert selector.has_alternatives
    assert set(selector.candidates()) == {f"torch-cuda-graph-{p}" for p in cuda_graph_runtime.precisions(CPU)}
    assert not replace(selector, requested="openvino-f32").has_alternatives
    assert not replace(selector, kind="maps").candidates()  # images of any size


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0"])
def test_graph_on_a_gpu_has_torchs_outputs(name: str, precision: Precision) -> None:
    torch.manual_seed(0)
    module = build(name, {}).eval()
    ready = CudaGraphRuntime(module, (3, 96, 96), precision, torch.device("cuda"))
    # Calls of one size share a graph and its memory.
    batches = (torch.randn(count, 3, 96, 96) for count in (1, 1, 5, 40, 40, 1))
    assert_runtime_agrees(ready, module, batches, tolerance=1e-2 if precision == "f32" else 0.1)


@pytest.mark.gpu
def test_selection_on_a_gpu_agrees_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {})
    reference = TorchRuntime(module, torch.device("cuda"))
    selector = RuntimeSelector(module, GREY, GREY.shape, "logits", Tolerance(), "weights", tmp_path)
    ready, comparison = selector.select(reference, EXAMPLES)
    assert comparison is not None
    assert "torch-cuda-graph-f32" in comparison.seconds
    assert ready.name == comparison.fastest
    again, stored = selector.select(reference, EXAMPLES)
    assert (again.name, stored) == (ready.name, comparison)
