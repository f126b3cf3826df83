"""Small networks as ONNX files, and what onnxruntime computes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from models.onnx_export import export_onnx


def small_network(outputs: int = 10, channels: int = 3, seed: int = 0) -> nn.Sequential:
    """A network with random weights for images of any size from 8 x 8 pixels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, outputs),
    ).eval()


def write_onnx(module: nn.Module, path: Path, shape: tuple[int, ...] = (3, 32, 32), batch: int = 0) -> Path:
    """Write the ONNX file of a module; `batch`: the only number of images that it accepts, 0: any."""
    model = onnx.load_from_string(export_onnx(module, shape, "logits"))
    if batch:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
            value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, path)
    return path


def run_file(path: Path, images: Tensor) -> Tensor:
    """onnxruntime's first output for a batch of images."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: Any = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(outputs[0])
