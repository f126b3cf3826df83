"""The interface of runtimes, which run a network on an engine, and the reference: torch in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Runtime(Protocol):
    """Runs a network for inference: float32 [N, C, H, W] on the CPU -> float32 outputs [N, ...] on the CPU."""

    @property
    def name(self) -> str:
        """Engine, device and precision, such as `torch-cpu-float32`."""
        ...

    @property
    def size(self) -> int:
        """Approximate memory in bytes between two calls: of the weights, and of buffers for outputs."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """The outputs of the batch, rows in order. Call from one thread at a time."""
        ...


class TorchRuntime:
    """Eager torch in float32 on one device."""

    def __init__(self, module: nn.Module, device: torch.device):
        self._device = device
        self._module = module.eval().to(device)
        self.name = f"torch-{device.type}-float32"
        self.size = sum(value.nbytes for value in self._module.state_dict().values())

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`."""
        outputs: Tensor = self._module(batch.to(self._device))
        return outputs.float().cpu()


def default_device() -> torch.device:
    """CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread for the calling thread; with several, rows of a batch are rounded differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def signature() -> str:
    """torch's version and the processor, on which the exact bits of an output depend beside the runtime's name."""
    device = default_device()
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"torch-{torch.__version__} {processor}"


def prepare(module: nn.Module, device: torch.device | None = None) -> Runtime:
    """The reference runtime for `module` on `device` (None: `default_device()`)."""
    return TorchRuntime(module, device or default_device())
