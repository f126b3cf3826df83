"""What a network costs: multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


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
