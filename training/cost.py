"""What a network costs: multiply-accumulates, and time measured so that it is fair to all that are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Key = TypeVar("Key")

_WARM_UP = 3


def macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates for one picture of `shape` (C, H, W): those of convolutions and matrix products.

    What works on each element alone (activations, normalisation, pooling) is not counted, as in the papers. The module
    is in evaluation mode, on any device.
    """
    device = next(module.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape, device=device))
    flops: int = counter.get_total_flops()
    return flops // 2


def interleaved_medians(calls: Mapping[Key, Callable[[], object]], rounds: int) -> dict[Key, float]:
    """Median seconds of each call over `rounds` rounds in which each takes its turn, after a warm-up.

    A machine that is slow for a while is so for all of them, and the median forgets it.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for number in range(_WARM_UP + rounds):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            if number >= _WARM_UP:
                seconds[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) for key, values in seconds.items()}
