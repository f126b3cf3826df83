"""Write a network of torch as an ONNX file."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from models.openvino_runtime import EXAMPLE_SIDE

INPUT = "input"
_OPSET = 17


class _OneInput(nn.Module):
    """Hides further parameters of a network's `forward`, whose defaults the exporter would pass by position."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        outputs: Tensor = self.network(x)
        return outputs


def export_onnx(module: nn.Module, shape: tuple[int, ...], output: str) -> bytes:
    """Return the ONNX file of a network in evaluation mode: any number of images [N, *shape], of the weights' type.

    A side of -1 in `shape` may have any length. The input is named `input`, the output has the name given.
    """
    type_ = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    example = torch.zeros(2, *(EXAMPLE_SIDE if side < 0 else side for side in shape), dtype=type_)
    axes = {0: "count"} | {axis: f"side{axis}" for axis, side in enumerate(shape, 1) if side < 0}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        file = Path(folder) / "network.onnx"
        # The other exporter needs a further package, onnxscript; this one is deprecated and complete.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            _OneInput(module).eval(),
            (example,),
            file,
            input_names=[INPUT],
            output_names=[output],
            dynamic_axes={INPUT: axes, output: dict(list(axes.items())[:1])},
            opset_version=_OPSET,
            dynamo=False,
        )
        return file.read_bytes()
