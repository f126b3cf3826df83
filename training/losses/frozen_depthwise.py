"""Depthwise convolutions of a frozen network, whose gradient with respect to the images is fast on a CPU.

That gradient is again such a convolution: of the outputs' gradient, with zeros between its values, by the filters
turned by 180 degrees. torch has a kernel of its own for it, which is slow in bf16: 16 blocks of `efficientnet-lite0` at
96x96 and their gradient take 9.7 ms an image with it, 4.6 ms with this module (one core with bf16 instructions). In
float32 there is no difference.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import SameConv2d


class FrozenDepthwise(nn.Module):
    """Computes as `conv`, a depthwise convolution [N, C, H, W] -> [N, C, H', W'] whose weights are not trained."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    @staticmethod
    def fits(module: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Return whether it is a depthwise convolution with one kernel size, stride and padding for both directions."""
        return (
            isinstance(module, nn.Conv2d)
            and module.groups == module.in_channels == module.out_channels > 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and len(set(module.stride)) == len(set(module.kernel_size)) == 1
            and (isinstance(module, SameConv2d) or module.padding in {(0, 0), (module.kernel_size[0] // 2,) * 2})
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        conv, padding = self.conv, int(self.conv.padding[0])
        if isinstance(conv, SameConv2d):
            x, padding = conv.pad(x), 0
        outputs: Tensor = _Depthwise.apply(x, conv.weight, conv.bias, conv.stride[0], padding)
        return outputs


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.weight, ctx.stride, ctx.padding, ctx.size = weight, stride, padding, x.shape[2:]
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stride, margin = ctx.stride, ctx.weight.shape[2] - 1 - ctx.padding
        height, width = (size + 2 * ctx.padding - ctx.weight.shape[2] + 1 for size in ctx.size)
        if stride > 1:
            spread = torch.zeros(
                (*gradient.shape[:2], height, width), dtype=gradient.dtype, device=gradient.device
            ).contiguous(memory_format=torch.channels_last)
            spread[:, :, ::stride, ::stride] = gradient
            gradient = spread
        turned = ctx.weight.to(gradient.dtype).flip(2, 3)
        return F.conv2d(gradient, turned, padding=margin, groups=len(turned)), None, None, None, None
