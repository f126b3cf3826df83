"""Store imported graphs and run them with OpenVINO, which is their only runtime, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from models import checkpoint, openvino_runtime, runtime
from models.card import ModelCard
from models.checkpoint import CheckpointError
from models.imported_network import CONSTANTS, FEATURES, GRAPH, OUTPUT, ImportedConfig, no_module
from models.openvino_runtime import GraphRuntime
from models.registry import configure, lookup
from models.runtime import Runtime

# The compiled batch sizes: fewer than for other networks, since no other runtime answers while they are compiled.
_SIZES = (1, 4, 16)


def is_imported(card: ModelCard) -> bool:
    """Return whether the card is that of an imported graph."""
    return lookup(card.architecture).build is no_module


def serialise(model: Any) -> bytes:
    """Return the content of model.safetensors for a graph."""
    graph, constants = openvino_runtime.serialise(model)
    parts = {GRAPH: graph, CONSTANTS: constants}
    return safetensors.numpy.save({name: np.frombuffer(part, np.uint8) for name, part in parts.items()})


def deserialise(data: bytes) -> Any:
    """Return the graph of a model.safetensors.

    Raises:
        CheckpointError: it does not hold a graph that OpenVINO reads.
    """
    try:
        parts = safetensors.numpy.load(data)
        graph, constants = (parts[name].astype(np.uint8, copy=False).tobytes() for name in (GRAPH, CONSTANTS))
        return openvino_runtime.core().read_model(graph, constants)
    except (KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{checkpoint.WEIGHTS_FILE} does not hold a graph: {error}") from error


def select_output(model: Any, name: str) -> Any:
    """Return the part of a graph that computes one of its outputs.

    Raises:
        CheckpointError: the graph does not have this output.
    """
    results = [result for result in model.get_results() if name in result.get_input_tensor(0).get_names()]
    if len(results) != 1:
        raise CheckpointError(f"{checkpoint.WEIGHTS_FILE}: the graph does not have the output {name}")
    return openvino_runtime.package().Model(results, model.get_parameters(), name)


def load(folder: Path, compiled: Path | None = None, *, features: bool = False) -> tuple[Runtime, ModelCard]:
    """Return the runtime of an imported network and its card.

    `compiled` is a folder that caches compiled networks. `features`: the output is the vector before the last layer.

    Raises:
        CheckpointError: see `checkpoint.read_weights`; the weights do not hold a graph of the card's shapes.
    """
    data, card = checkpoint.read_weights(folder)
    config: ImportedConfig = configure(card.architecture, card.config)
    model = select_output(deserialise(data), FEATURES if features else OUTPUT)
    sizes = (config.batch,) if config.batch else _SIZES
    try:
        return GraphRuntime(model, card.preprocess.shape, "f32", compiled, sizes), card
    except RuntimeError as error:
        raise CheckpointError(f"{folder / checkpoint.WEIGHTS_FILE}: {error}") from error


def load_reference(folder: Path) -> tuple[Runtime, ModelCard]:
    """Return the reference runtime of any model and its card: torch in float32, or for imported graphs OpenVINO.

    torch's weights are channels_last, with which a CPU takes half the time or less.

    Raises:
        CheckpointError: see `load` and `checkpoint.load`.
    """
    if is_imported(checkpoint.read_card(folder)):
        return load(folder)
    module, card = checkpoint.load(folder)
    return runtime.prepare(module.to(memory_format=torch.channels_last)), card
