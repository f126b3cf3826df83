"""Fit the temperature of a classifier: of predictions with a confidence of 0.8, eight in ten should be correct."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that minimises the cross-entropy of softmax(logits / T): [N, K] and [N] -> T in 0.05..20.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    The images must be from neither the training nor the test set.

    Raises:
        ValueError: if there are no rows, or logits are not finite.
    """
    if len(logits) == 0 or not torch.isfinite(logits).all():
        raise ValueError("temperature needs at least one row of finite logits")
    logits = logits.double()
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], lr=0.1, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp().clamp(0.05, 20.0))
