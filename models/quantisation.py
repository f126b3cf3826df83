"""Quantise a classifier or an embedder to 8-bit integers after its training, and compare the result with torch.

The quantised network is stored beside the weights in OpenVINO's format. NNCF, the package extra `quantise`, determines
the ranges of values on sample images; running the network needs OpenVINO only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from models import checkpoint, openvino_runtime
from models.card import QUANTISED_TASKS, Int8, Tolerance
from models.checkpoint import QuantisedNetwork
from models.openvino_runtime import OpenVinoInt8Runtime
from models.registry import Task
from models.runtime import Runtime, TorchRuntime
from models.runtime_selection import OutputKind, disagreement

# Images that determine the ranges of values, and other images on which outputs are compared with torch's.
MAX_SAMPLES, MAX_COMPARED = 300, 1000
MIN_IMAGES = 60
_BATCH = 32
_OUTPUTS: dict[Task, OutputKind] = {"classify": "logits", "embed": "vectors"}
# The least agreement (see `card.Int8`) of a quantised network.
MIN_AGREEMENT: dict[Task, float] = {"classify": 0.97, "embed": 0.95}
# The tolerance with which the service compares this runtime with torch on photos. It is wider, because a network is
# uncertain about photos unlike those that it was trained on: for the CIFAR-10 networks the agreement on crops of the
# example photos is 0.90 to 0.96, on images of CIFAR-10 0.985 to 0.99; for mobilefacenet-triplet it is 0.913 on crops
# of the example photos, which are mostly no faces, and 0.967 on aligned faces.
TOLERANCE = Tolerance(top1=0.9, probability=0.5, direction=0.2)


class QuantisationError(ValueError):
    """The network cannot be quantised, or the result does not agree with torch; the message says why."""


def quantise(module: nn.Module, samples: Sequence[Tensor]) -> QuantisedNetwork:
    """Return the network with 8-bit weights and activations, whose ranges are those on `samples` [C, H, W].

    Raises:
        QuantisationError: NNCF is not installed.
    """
    model = openvino_runtime.convert(module, tuple(samples[0].shape))  # first, since it turns off NNCF's telemetry, too
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
    )
    return QuantisedNetwork(*openvino_runtime.serialise(quantised))


def quantise_model(folder: Path, inputs: Sequence[Tensor], cache: Path, least_agreement: float | None = None) -> Int8:
    """Quantise the network in `folder`, and write the result beside its weights and into its card.

    `inputs` [C, H, W] are preprocessed images. The first third, at most `MAX_SAMPLES`, determines the ranges, and the
    following ones, at most `MAX_COMPARED`, are compared. `cache` is a folder for OpenVINO's files. `least_agreement`:
    None for that of the task, `MIN_AGREEMENT`.

    Raises:
        CheckpointError: see `checkpoint.load`.
        QuantisationError: too few images, a network for another task, or the agreement (see `card.Int8`) is less than
            `least_agreement`. No file is changed in these cases.
    """
    module, card = checkpoint.load(folder)
    if card.task not in QUANTISED_TASKS:
        raise QuantisationError(
            f"{card.name} is a network to {card.task}; only classifiers and embedders are quantised"
        )
    if len(inputs) < MIN_IMAGES:
        raise QuantisationError(f"quantising needs at least {MIN_IMAGES} images, not {len(inputs)}")
    count = min(MAX_SAMPLES, len(inputs) // 3)
    quantised, compared = quantise(module, inputs[:count]), inputs[count : count + MAX_COMPARED]
    runtime = OpenVinoInt8Runtime(*quantised, card.preprocess.shape, cache)
    reference = TorchRuntime(module, torch.device("cpu"))
    expected, outputs = _outputs(reference, compared), _outputs(runtime, compared)
    kind = _OUTPUTS[card.task]
    least = MIN_AGREEMENT[card.task] if least_agreement is None else least_agreement
    if reason := disagreement(expected, outputs, kind, Tolerance(top1=least, probability=1, direction=1 - least)):
        raise QuantisationError(f"{card.name} is not quantised: {reason} ({len(compared)} images)")
    if kind == "logits":
        agreement = float((expected.argmax(dim=1) == outputs.argmax(dim=1)).double().mean())
    else:
        agreement = float(torch.cosine_similarity(expected, outputs).min().clamp(0, 1))
    differs = kind == "logits" or 1 - agreement > card.tolerance.direction  # see ModelCard.has_int8_vectors
    int8 = Int8(
        sha256=quantised.sha256,
        images=count,
        compared=len(compared),
        agreement=agreement,
        tolerance=TOLERANCE if differs else card.tolerance,
    )
    checkpoint.save_int8(folder, quantised, int8)
    return int8


def _outputs(runtime: Runtime, inputs: Sequence[Tensor]) -> Tensor:
    batches = (torch.stack(list(inputs[first : first + _BATCH])) for first in range(0, len(inputs), _BATCH))
    return torch.cat([runtime(batch) for batch in batches])
