"""Figures of merit, computed in one way for the run's history and for the card."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.calibration import expected_calibration_error
from models.preprocess import Preprocess
from models.runtime import Runtime
from models.tta import Tta, views
from training.data import ImageSet, Indices


def predict(
    runtime: Runtime,
    data: ImageSet,
    rows: Indices,
    preprocess: Preprocess,
    *,
    tta: Tta = "none",
    batch_size: int = 256,
) -> Tensor:
    """Logits of each view of those rows: float32 [V, len(rows), K] on the CPU, see `models.tta`."""
    logits = []
    for first in range(0, len(rows), batch_size):
        pixels = torch.from_numpy(np.asarray(data.images[rows[first : first + batch_size]]))
        images = preprocess.normalise(pixels)
        logits.append(torch.stack([runtime(view) for view in views(images, tta, preprocess)]))
    return torch.cat(logits, dim=1)


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """As the service answers: softmax of logits [V, N, K] at the temperature, then the mean over views: [N, K]."""
    return (logits.double() / temperature).softmax(dim=2).mean(dim=0)


def classification(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (0..1), mean negative log-likelihood (nats), expected calibration error (0..1) of [N, K] against [N]."""
    return {
        "accuracy": float((predicted.argmax(dim=1) == labels).double().mean()),
        "nll": float(F.nll_loss(predicted.clamp_min(1e-12).log(), labels)),
        "ece": expected_calibration_error(predicted, labels),
    }
