"""Recorded networks against torch's own, as far as that goes without a GPU, and on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import cuda_graph_runtime, runtime_selection
from models.card import Tolerance
from models.cuda_graph_runtime import GraphRuntime, Precision
from models.preprocess import Preprocess
from models.registry import build
from models.runtime import TorchRuntime
from models.runtime_selection import Choice

CPU = torch.device("cpu")
GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.0,), std=(78.0,))
EXAMPLES = Path(__file__).parents[2] / "examples"


class Watcher(nn.Module):
    """Notes how it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.seen: list[tuple[int, bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.layer(x)
        self.seen.append((len(x), x.is_contiguous(memory_format=torch.channels_last), answers.dtype))
        return answers.mean(dim=(2, 3))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_it_answers_what_torch_answers(precision: Precision) -> None:
    torch.manual_seed(0)
    module = build("resnet20", {}).eval()
    ready = GraphRuntime(module, (3, 32, 32), precision, CPU)
    assert ready.name == f"torch-cpu-graph-{precision}"
    assert ready.size == TorchRuntime(module, CPU).size
    for count in (1, 3, 37):
        images = torch.randn(count, 3, 32, 32)
        with torch.inference_mode():
            expected = module(images)
        outputs = ready(images)
        assert (outputs.shape, outputs.dtype) == (expected.shape, torch.float32)
        allowed = 1e-4 if precision == "f32" else 0.05
        assert float((outputs - expected).abs().max()) <= allowed * float(expected.abs().max())


def test_batches_have_few_sizes_and_their_channels_last() -> None:
    watcher = Watcher()
    ready = GraphRuntime(watcher, (3, 8, 8), "bf16", CPU)
    ready(torch.ones(45, 3, 8, 8))
    copied = ready._module
    assert isinstance(copied, Watcher)
    assert [size for size, _, _ in copied.seen] == [32, 16]
    assert {(last, dtype) for _, last, dtype in copied.seen} == {(True, torch.bfloat16)}
    assert watcher.seen == []  # the network itself is left as it is
    with pytest.raises(ValueError, match=r"shape \[3, 8, 8\], got \[3, 9, 9\]"):
        ready(torch.ones(1, 3, 9, 9))


def test_precisions_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert cuda_graph_runtime.precisions(torch.device("cuda")) == ("f32", "f16")
    assert cuda_graph_runtime.precisions(CPU) == ("f32", "bf16", "f16")


def test_on_a_gpu_they_are_what_is_chosen_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_selection, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    module = build("lenet5-relu", {})
    question = Choice(module, GREY, GREY.shape, "logits", Tolerance(), "weights", tmp_path)
    assert question.is_open
    assert set(question.candidates()) == {f"torch-cuda-graph-{p}" for p in cuda_graph_runtime.precisions(CPU)}
    assert not Choice(module, GREY, GREY.shape, "logits", Tolerance(), "weights", tmp_path, "openvino-f32").is_open
    assert not Choice(module, GREY, GREY.shape, "maps", Tolerance(), "weights", tmp_path).candidates()  # of any size


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet-lite0"])
def test_recorded_on_a_gpu(name: str, precision: Precision) -> None:
    torch.manual_seed(0)
    module = build(name, {}).eval()
    ready = GraphRuntime(module, (3, 96, 96), precision, torch.device("cuda"))
    for count in (1, 5, 40, 1):  # the last by what was recorded for the first
        images = torch.randn(count, 3, 96, 96)
        with torch.inference_mode():
            expected = module(images)
        outputs = ready(images)
        first = outputs.clone()
        ready(torch.zeros(count, 3, 96, 96))
        assert torch.equal(outputs, first)
        allowed = 1e-2 if precision == "f32" else 0.1
        assert float((outputs - expected).abs().max()) <= allowed * float(expected.abs().max())


@pytest.mark.gpu
def test_the_choice_on_a_gpu_agrees_with_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {})
    reference = TorchRuntime(module, torch.device("cuda"))
    question = Choice(module, GREY, GREY.shape, "logits", Tolerance(), "weights", tmp_path)
    ready, verdict = question.made(reference, EXAMPLES)
    assert verdict is not None
    assert "torch-cuda-graph-f32" in verdict.seconds
    assert ready.name == verdict.fastest
    again, kept = question.made(reference, EXAMPLES)
    assert (again.name, kept) == (ready.name, verdict)
