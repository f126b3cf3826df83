"""A module made ready to run. Every engine stands behind one interface; torch in float32 is the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Runtime(Protocol):
    """A network that only answers: float32 [N, C, H, W] on the CPU -> float32 outputs [N, ...] on the CPU."""

    @property
    def name(self) -> str:
        """Engine, device and precision, as `torch-cpu-float32`."""
        ...

    @property
    def size(self) -> int:
        """Bytes that it takes between two calls, as far as is known: of its weights, and of room held for answers."""
        ...

    def __call__(self, batch: Tensor) -> Tensor:
        """Outputs of the batch; rows in order. Safe to call from one thread at a time."""
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
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it the caller's torch computes on one thread: shared among several, rows of a batch round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def signature() -> str:
    """What the bits of an answer may depend on beside the runtime's name: torch's version, and what it computes on."""
    device = default_device()
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"torch-{torch.__version__} {processor}"


def prepare(module: nn.Module, device: torch.device | None = None) -> Runtime:
    """The runtime for `module` on `device` (None: `default_device()`)."""
    return TorchRuntime(module, device or default_device())
