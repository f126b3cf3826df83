"""Figures of merit, computed in one way for the run's history and for the card."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.calibration import expected_calibration_error
from models.preprocess import Preprocess
from models.runtime import Runtime
from training.data import ImageSet, Indices


def predict(
    runtime: Runtime,
    data: ImageSet,
    rows: Indices,
    preprocess: Preprocess,
    *,
    flip: bool = False,
    batch_size: int = 256,
) -> Tensor:
    """Logits of those rows, with `flip` of their mirror images: float32 [len(rows), K] on the CPU."""
    logits = []
    for first in range(0, len(rows), batch_size):
        pixels = torch.from_numpy(np.asarray(data.images[rows[first : first + batch_size]]))
        images = preprocess.normalise(pixels)
        logits.append(runtime(images.flip(-1) if flip else images))
    return torch.cat(logits)


def probabilities(views: list[Tensor], temperature: float) -> Tensor:
    """As the service answers: softmax of each view's logits [N, K] at the temperature, then the mean over views."""
    return torch.stack([(view.double() / temperature).softmax(dim=1) for view in views]).mean(dim=0)


def classification(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy (0..1), mean negative log-likelihood (nats), expected calibration error (0..1) of [N, K] against [N]."""
    return {
        "accuracy": float((predicted.argmax(dim=1) == labels).double().mean()),
        "nll": float(F.nll_loss(predicted.clamp_min(1e-12).log(), labels)),
        "ece": expected_calibration_error(predicted, labels),
    }
