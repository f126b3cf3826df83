"""Run a network on a GPU by CUDA graphs: kernels recorded for a few batch sizes, channels last, at a given precision.

A graph launches its kernels at once. Eager torch launches them one by one, which takes longer than running them for
small batches. Without CUDA the computation is the same without recording, so that it can be tested.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from models.openvino_runtime import run_in_batches

Precision = Literal["f32", "bf16", "f16"]

_DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Calls before a recording, since kernels select algorithms and allocate memory in their first calls.
_WARM_UP = 3


class CudaGraphRuntime:
    """A `Runtime` of a copy of `module` that records a graph at the first call of each batch size.

    `shape` is that of an item, [C, H, W].
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], precision: Precision, device: torch.device):
        self.name = f"torch-{device.type}-graph-{precision}"
        self._device, self._shape, self._dtype = device, shape, _DTYPES[precision]
        self._module = copy.deepcopy(module).eval().to(device)
        self._module.to(memory_format=torch.channels_last)
        self.size = sum(value.nbytes for value in self._module.state_dict().values())
        self._graphs: dict[int, Callable[[Tensor], Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`.

        Raises:
            ValueError: if items have another shape.
        """
        return run_in_batches(batch, self._shape, lambda rows: self._of_size(len(rows))(rows))

    def _of_size(self, size: int) -> Callable[[Tensor], Tensor]:
        if size not in self._graphs:
            self._graphs[size] = self._record(size) if self._device.type == "cuda" else self._run_eagerly
        return self._graphs[size]

    def _run_eagerly(self, rows: Tensor) -> Tensor:
        return self._forward(rows.to(self._device, memory_format=torch.channels_last))

    def _forward(self, rows: Tensor) -> Tensor:
        reduced = self._dtype != torch.float32
        # Autocast's cache of weights is invalid after the recording.
        with torch.autocast(self._device.type, self._dtype, enabled=reduced, cache_enabled=False):
            outputs: Tensor = self._module(rows)
        return outputs

    def _record(self, size: int) -> Callable[[Tensor], Tensor]:
        """A function that runs the recorded graph of this batch size."""
        rows = torch.zeros(size, *self._shape, device=self._device).contiguous(memory_format=torch.channels_last)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._forward(rows)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may load models during the recording.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._forward(rows)
        self.size += rows.nbytes + outputs.nbytes

        def replay(batch: Tensor) -> Tensor:
            rows.copy_(batch)
            graph.replay()
            return outputs

        return replay


def precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions that the device supports."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return ("f32", "f16")
    return ("f32", "bf16", "f16")
