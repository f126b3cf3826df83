"""The runtime that Vestibule chose for a model, called in a loop: what this machine could do without any server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models import checkpoint
from models.openvino_runtime import SIZES
from models.runtime import Runtime, prepare
from models.runtime_selection import RuntimeSelector


def chosen_runtime(model: Path, compiled: Path) -> Runtime:
    """As Vestibule chose it, by the verdict that it left in the folder `compiled`."""
    module, card = checkpoint.load(model)
    choice = RuntimeSelector(
        module, card.preprocess, card.preprocess.shape, "logits", card.tolerance, f"{card.sha256} ", compiled
    )
    runtime, _ = choice.select(prepare(module), Path("examples"))
    return runtime


def bare(runtime: Callable[[Tensor], Tensor], size: int, seconds: float) -> tuple[int, float]:
    """The batch that is the fastest, and pictures a second at it, of so many seconds for all sizes of batch."""
    best = (0, 0.0)
    for batch in SIZES:
        pictures = torch.rand(batch, 3, size, size)
        runtime(pictures)
        count, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds / len(SIZES):
            runtime(pictures)
            count += batch
        best = max(best, (batch, count / took), key=lambda one: one[1])
    return best
