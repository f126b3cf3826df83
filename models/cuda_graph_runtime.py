"""A network on a GPU: its kernels recorded for a few sizes of batch, channels last, at a precision of one's choice.

A recorded sequence of kernels (CUDA graph) is launched at once, where eager torch launches one after the other, which
for small batches takes longer than to run them. Without CUDA the same is computed unrecorded, so that it can be tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from models.openvino_runtime import in_pieces

Precision = Literal["f32", "bf16", "f16"]

_DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Before a recording: what kernels choose and allocate at their first calls must not be recorded.
_WARM_UP = 3


class GraphRuntime:
    """A copy of a network, each size of batch recorded when it is asked for first; see `Runtime`.

    `shape` is that of an item, [C, H, W].
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], precision: Precision, device: torch.device):
        self.name = f"torch-{device.type}-graph-{precision}"
        self._device, self._shape, self._dtype = device, shape, _DTYPES[precision]
        self._module = copy.deepcopy(module).eval().to(device)
        self._module.to(memory_format=torch.channels_last)
        self.size = sum(value.nbytes for value in self._module.state_dict().values())
        self._recorded: dict[int, Callable[[Tensor], Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`.

        Raises:
            ValueError: items of another shape.
        """
        return in_pieces(batch, self._shape, lambda rows: self._of_size(len(rows))(rows))

    def _of_size(self, size: int) -> Callable[[Tensor], Tensor]:
        if size not in self._recorded:
            self._recorded[size] = self._record(size) if self._device.type == "cuda" else self._unrecorded
        return self._recorded[size]

    def _unrecorded(self, rows: Tensor) -> Tensor:
        return self._computed(rows.to(self._device, memory_format=torch.channels_last))

    def _computed(self, rows: Tensor) -> Tensor:
        lower = self._dtype != torch.float32
        # Without autocast's cache of weights: it would not outlive the recording.
        with torch.autocast(self._device.type, self._dtype, enabled=lower, cache_enabled=False):
            answers: Tensor = self._module(rows)
        return answers

    def _record(self, size: int) -> Callable[[Tensor], Tensor]:
        """The network on batches of just this size."""
        rows = torch.zeros(size, *self._shape, device=self._device).contiguous(memory_format=torch.channels_last)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._computed(rows)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may load models meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            answers = self._computed(rows)
        self.size += rows.nbytes + answers.nbytes

        def replay(given: Tensor) -> Tensor:
            rows.copy_(given)
            graph.replay()
            return answers

        return replay


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Those that the device has instructions for."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ("f32", "f16")
    return ("f32", "bf16", "f16")
