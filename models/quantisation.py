"""Quantise a classifier, an embedder or a detector to 8-bit integers after its training, and compare it with torch.

The quantised network is stored beside the weights in OpenVINO's format. NNCF, the package extra `quantise`, determines
the ranges of values on sample images; running the network needs OpenVINO only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from models import checkpoint, detection_agreement, detector, openvino_runtime
from models.card import QUANTISED_TASKS, Int8, ModelCard, Tolerance
from models.checkpoint import QuantisedNetwork
from models.registry import Task
from models.runtime import Runtime, TorchRuntime
from models.runtime_selection import OutputKind, disagreement_of_batches, int8_runtime

if TYPE_CHECKING:
    import openvino

# Images that determine the ranges of values, and other images on which outputs are compared with torch's. A detector's
# are larger, and all are in memory.
MAX_SAMPLES: dict[Task, int] = {"classify": 300, "embed": 300, "detect": 100}
MAX_COMPARED: dict[Task, int] = {"classify": 1000, "embed": 1000, "detect": 200}
MIN_IMAGES = 60
_BATCH = 32
# How many of the first layers stay in float32: the first of these numbers with which the agreement suffices. The first
# layers of mobile networks lose most: the logits of efficientnet-lite0 change by 0.29 (root mean square), without the
# first two layers by 0.12, without the first six by 0.10.
FLOAT_LAYERS = (0, 2, 6)
MAX_FLOAT_SHARE = 0.25  # of the layers
# OpenVINO's names of the operations of layers with weights.
_LAYERS = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"})
_OUTPUTS: dict[Task, OutputKind] = {"classify": "logits", "embed": "vectors", "detect": "faces"}
# The least agreement (see `card.Int8`) of a quantised network.
MIN_AGREEMENT: dict[Task, float] = {"classify": 0.97, "embed": 0.95, "detect": 0.95}
# The tolerance with which the service compares this runtime with torch on photos. It is wider, because a network is
# uncertain about photos unlike those that it was trained on: for the CIFAR-10 networks the agreement on crops of the
# example photos is 0.90 to 0.96, on images of CIFAR-10 0.985 to 0.99; for mobilefacenet-triplet it is 0.913 on crops
# of the example photos, which are mostly no faces, and 0.967 on aligned faces. The 95th percentile of the distances of
# centerface's landmarks is 0.11 in the example photos and their crops, which have 22 faces, and 0.07 in LFW's photos.
TOLERANCE = Tolerance(top1=0.9, probability=0.5, direction=0.2, faces=0.9, landmarks=0.15)


class QuantisationError(ValueError):
    """The network cannot be quantised, or the result does not agree with torch; the message says why."""


def input_of(card: ModelCard) -> Callable[[Image.Image], Tensor]:
    """Return the function that converts an image to the network's input, [C, H, W]."""
    return partial(detector.prepare, preprocess=card.preprocess) if card.task == "detect" else card.preprocess


def quantise(model: openvino.Model, samples: Sequence[Tensor], float_layers: Sequence[str]) -> QuantisedNetwork:
    """Return the network with 8-bit weights and activations, whose ranges are those on `samples` [C, H, W].

    The operations `float_layers` stay in float32. `model` is from `openvino_runtime`, which turns off NNCF's telemetry.

    Raises:
        QuantisationError: NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise QuantisationError("quantising needs NNCF: pip install 'vestibule[quantise]'") from error
    nncf.set_log_level(logging.WARNING)
    quantised = nncf.quantize(
        model,
        nncf.Dataset([sample[None].numpy() for sample in samples]),
        preset=nncf.QuantizationPreset.MIXED,  # asymmetric ranges of activations: GELU and SiLU are not symmetric
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=list(float_layers)),
    )
    return QuantisedNetwork(*openvino_runtime.serialise(quantised))


def quantise_model(folder: Path, inputs: Sequence[Tensor], cache: Path, least_agreement: float | None = None) -> Int8:
    """Quantise the network in `folder`, and write the result beside its weights and into its card.

    `inputs` [C, H, W] are preprocessed images (`input_of`). The first third, at most `MAX_SAMPLES`, determines the
    ranges, and the following ones, at most `MAX_COMPARED`, are compared. As few of the first layers stay in float32 as
    the agreement requires (`FLOAT_LAYERS`). `cache` is a folder for OpenVINO's files. `least_agreement`: None for that
    of the task, `MIN_AGREEMENT`.

    Raises:
        CheckpointError: see `checkpoint.load`.
        QuantisationError: too few images, a network for another task, or the agreement (see `card.Int8`) is less than
            `least_agreement`. No file is changed in these cases.
    """
    module, card = checkpoint.load(folder)
    if card.task not in QUANTISED_TASKS:
        raise QuantisationError(
            f"{card.name} is a network to {card.task}; only classifiers, embedders and detectors are quantised"
        )
    if len(inputs) < MIN_IMAGES:
        raise QuantisationError(f"quantising needs at least {MIN_IMAGES} images, not {len(inputs)}")
    count = min(MAX_SAMPLES[card.task], len(inputs) // 3)
    compared = inputs[count : count + MAX_COMPARED[card.task]]
    batch = 1 if card.task == "detect" else _BATCH
    expected = _outputs(TorchRuntime(module, torch.device("cpu")), compared, batch)
    kind, shape = _OUTPUTS[card.task], card.preprocess.shape
    model = openvino_runtime.convert(module, openvino_runtime.any_size(shape) if kind == "faces" else shape)
    layers = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in _LAYERS]
    least = MIN_AGREEMENT[card.task] if least_agreement is None else least_agreement
    tolerance = TOLERANCE.model_copy(update={"top1": least, "probability": 1, "direction": 1 - least, "faces": least})
    for first in (number for number in FLOAT_LAYERS if number <= MAX_FLOAT_SHARE * len(layers)):
        quantised = quantise(model, inputs[:count], layers[:first])
        outputs = _outputs(int8_runtime(quantised, kind, shape, cache), compared, batch)
        reason = disagreement_of_batches(expected, outputs, kind, tolerance)
        if reason is None:
            int8 = _described(card, quantised, _agreement(expected, outputs, kind), count, len(compared))
            checkpoint.save_int8(folder, quantised, int8)
            return int8
    raise QuantisationError(f"{card.name} is not quantised: {reason} ({len(compared)} images)")


def _described(card: ModelCard, quantised: QuantisedNetwork, agreement: float, images: int, compared: int) -> Int8:
    same_vectors = card.task == "embed" and 1 - agreement <= card.tolerance.direction  # see ModelCard.has_int8_vectors
    return Int8(
        sha256=quantised.sha256,
        images=images,
        compared=compared,
        agreement=agreement,
        tolerance=card.tolerance if same_vectors else TOLERANCE,
    )


def _outputs(runtime: Runtime, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
    return [runtime(torch.stack(list(inputs[first : first + batch]))) for first in range(0, len(inputs), batch)]


def _agreement(expected: Sequence[Tensor], outputs: Sequence[Tensor], kind: OutputKind) -> float:
    """The agreement of batches of outputs, see `card.Int8`."""
    if kind == "faces":
        return detection_agreement.compare_maps(expected, outputs).share
    first, second = torch.cat(list(expected)), torch.cat(list(outputs))
    if kind == "logits":
        return float((first.argmax(dim=1) == second.argmax(dim=1)).double().mean())
    return float(torch.cosine_similarity(first, second).min().clamp(0, 1))
