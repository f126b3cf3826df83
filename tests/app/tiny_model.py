"""A small untrained classifier, saved as a model, and a manager that serves it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from torch import Tensor

from app.inference.model_manager import ModelManager
from app.observability.metrics import Metrics
from app.settings import Settings
from models import checkpoint
from models.preprocess import Preprocess
from models.registry import build


def tiny_model(weights: Path, name: str = "tiny", seed: int = 0) -> None:
    """Save a LeNet-1989 with random weights as a model for images of 16 x 16 pixels."""
    torch.manual_seed(seed)
    checkpoint.save(
        weights / name,
        build("lenet1989"),
        name=name,
        description="untrained, for tests",
        task="classify",
        architecture="lenet1989",
        config={},
        preprocess=Preprocess(mode="L", size=(16, 16), mean=(127.5,), std=(127.5,)),
        classes=tuple("abcdefghij"),
        data="none",
        source="this test",
        license="Apache-2.0",
    )


def zeros(batch: Tensor) -> Tensor:
    return torch.zeros(len(batch), 10)


class GatedRuntime:
    """A runtime that appends its name to `batches`, waits until `gate` is open, and returns `compute(batch)`."""

    def __init__(self, name: str, compute: Callable[[Tensor], Tensor] = zeros, size: int = 0):
        self.name, self.size, self._compute = name, size, compute
        self.batches: list[str] = []
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, batch: Tensor) -> Tensor:
        self.batches.append(self.name)
        self.entered.set()
        assert self.gate.wait(20)
        return self._compute(batch)


@asynccontextmanager
async def model_manager(settings: Settings, metrics: Metrics | None = None) -> AsyncIterator[ModelManager]:
    """A manager that is stopped at the end. Nothing is loaded at first."""
    manager = ModelManager(settings, metrics or Metrics())
    try:
        yield manager
    finally:
        await manager.stop()
