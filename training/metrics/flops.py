"""Count multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulates of convolutions and matrix products for one image of `shape` (C, H, W).

    Elementwise operations (activations, normalisation, pooling) are not counted, as in the papers. The module must be
    in evaluation mode; it may be on any device.
    """
    device = next(module.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape, device=device))
    flops: int = counter.get_total_flops()
    return flops // 2
