"""The reference runtime against the module that it runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.registry import build
from models.runtime import TorchRuntime, default_device, prepare

CPU = torch.device("cpu")


class Watcher(nn.Module):
    """Returns half precision and records the modes in which it was called."""

    def forward(self, x: Tensor) -> Tensor:
        self.modes = (self.training, torch.is_inference_mode_enabled())
        return x.flatten(1).half()


def test_outputs_are_the_modules_with_rows_in_order() -> None:
    torch.manual_seed(0)
    module = build("lenet5-relu", {"dropout": 0.5})  # dropout changes outputs in train mode
    images = torch.randn(5, 1, 32, 32)
    ready = prepare(module, CPU)
    outputs = ready(images)
    with torch.no_grad():
        assert torch.equal(outputs, module.eval()(images))
    for row, image in zip(outputs, images, strict=True):
        # Other batch sizes use other kernels, which round differently.
        torch.testing.assert_close(ready(image[None])[0], row, rtol=1e-5, atol=1e-5)
    assert ready.name == "torch-cpu-float32"


def test_inference_mode_and_float32_outputs() -> None:
    watcher = Watcher()
    outputs = TorchRuntime(watcher, CPU)(torch.ones(2, 1, 2, 2, requires_grad=True))
    assert watcher.modes == (False, True)
    assert (outputs.dtype, outputs.device, outputs.requires_grad) == (torch.float32, CPU, False)


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_default_device(available: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device() == torch.device(device)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["efficientnet-b0", "resnet18", "vgg11-bn", "densenet121", "inception-v3", "centerface"]
)
def test_outputs_on_a_gpu_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    overrides = {"auxiliary": False} if name == "inception-v3" else {}
    module = build(name, overrides).eval()
    images = torch.randn(4, 3, 96, 96)
    expected = prepare(module, CPU)(images)
    ready = prepare(module, torch.device("cuda"))
    assert ready.name == "torch-cuda-float32"
    outputs = ready(images)
    assert outputs.device == CPU
    # cuDNN's convolutions use TF32 with 10 bits of mantissa by default.
    assert float((outputs - expected).abs().max()) <= 1e-2 * float(expected.abs().max())
