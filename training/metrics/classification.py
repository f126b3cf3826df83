"""Figures of classifiers, computed the same way for a run's history and for the card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.card import Metric, ModelCard
from models.imported_runtime import load_reference
from models.openvino_runtime import OpenVinoInt8Runtime
from models.preprocess import Preprocess
from models.runtime import Runtime, prepare
from models.tta import VIEWS, Tta, views
from training.core.errors import DataError
from training.datasets.images import ImageSet, Indices, load
from training.recipe.config import runs_folder


def evaluation_runtime(network: nn.Module, device: torch.device | None = None) -> Runtime:
    """Return a runtime for `network` with channels_last weights, which take a third of the time on a CPU.

    The layout of the network itself changes, so do not pass one that is still being trained.
    """
    return prepare(network.to(memory_format=torch.channels_last), device)


def predict(
    runtime: Runtime,
    images: ImageSet,
    rows: Indices,
    preprocess: Preprocess,
    *,
    tta: Tta = "none",
    batch_size: int = 256,
) -> Tensor:
    """Return the outputs for each view of `rows`: float32 [V, len(rows), K] on the CPU, see `models.tta`."""
    logits = []
    for first in range(0, len(rows), batch_size):
        pixels = torch.from_numpy(np.asarray(images.images[rows[first : first + batch_size]]))
        batch = preprocess.normalise(pixels)
        logits.append(torch.stack([runtime(view) for view in views(batch, tta, preprocess)]))
    return torch.cat(logits, dim=1)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return the softmax of logits [V, N, K] at the temperature, averaged over views as in serving: [N, K]."""
    return (logits.double() / temperature).softmax(dim=2).mean(dim=0)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error over equal bins of the top class's confidence: [N, K] and [N] -> 0..1.

    Raises:
        ValueError: there are no rows, or probabilities are not finite.
    """
    if len(labels) == 0 or not torch.isfinite(probabilities).all():
        raise ValueError("the calibration error needs at least one row of finite probabilities")
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).double()
    # Bin k is (k/bins, (k+1)/bins].
    index = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, correct - confidence.double())
    return float(gaps.abs().sum() / len(labels))


def classification(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy (0..1), mean NLL (nats) and expected calibration error (0..1) of [N, K] against labels [N]."""
    return {
        "accuracy": float((predicted.argmax(dim=1) == labels).double().mean()),
        "nll": float(F.nll_loss(predicted.clamp_min(1e-12).log(), labels)),
        "ece": expected_calibration_error(predicted, labels),
    }


def measure_classifier(folder: Path, dataset: str) -> tuple[ModelCard, list[Metric]]:
    """Return the model's card and its figures on the data set's test split.

    `_tta`: with test-time augmentation; `_int8`: of the quantised network, if the card describes one.

    Raises:
        CheckpointError: see `load_reference`. DataError: see `images.load`; if the classes are not the card's.
    """
    runtime, card = load_reference(folder)
    test = load(dataset, "test", card.preprocess)
    if test.classes != card.classes:
        raise DataError(f"{dataset} has the classes {test.classes}, the card {card.classes}")
    rows = np.arange(len(test.labels))
    logits = predict(runtime, test, rows, card.preprocess, tta=card.tta)
    labels = torch.from_numpy(test.labels)
    figures = classification(probabilities(logits[: VIEWS["none"]], card.temperature), labels)
    if card.tta != "none":
        averaged = classification(probabilities(logits, card.temperature), labels)
        figures |= {f"{name}_tta": value for name, value in averaged.items()}
    if (int8 := checkpoint.load_int8(folder, card)) is not None:
        quantised = OpenVinoInt8Runtime(*int8, card.preprocess.shape, runs_folder() / "cache" / "compiled")
        outputs = predict(quantised, test, rows, card.preprocess)
        rounded = classification(probabilities(outputs, card.temperature), labels)
        figures |= {f"{name}_int8": value for name, value in rounded.items()}
    where = f"{dataset} test ({len(test.labels):,})"
    return card, [Metric(name=name, value=value, data=where) for name, value in figures.items()]
