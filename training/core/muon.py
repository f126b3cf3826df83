"""Muon for convolutions: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

`torch.optim.Muon` takes matrices alone and multiplies in bfloat16. One of its iterations for a 256x2304 matrix takes
1.12 s on a CPU without bfloat16 instructions, and 0.05 s in float32 (one busy AVX2 core). This optimizer flattens
filters to matrices and multiplies in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The coefficients of the quintic polynomial, and the number of iterations in Jordan's CIFAR-10 training.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 3


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return a matrix [M, N] with the same singular vectors and singular values near 1, by Newton-Schulz iterations.

    Singular values below about a hundredth of the Frobenius norm remain smaller than 1/2.
    """
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / (wide.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    orthogonal: Tensor = x.mT if matrix.shape[0] > matrix.shape[1] else x
    return orthogonal


class Muon(torch.optim.SGD):
    """SGD, but groups with `orthogonal=True` are updated by orthogonalised momentum; their parameters are [out, ...].

    Before its step, a parameter of such a group is scaled to a Frobenius norm of sqrt(out), so that `lr` is the
    relative length of the step. That changes nothing where batch normalisation follows; so these groups are for
    convolutions before batch normalisation. Their weight decay has no effect and must be 0.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; the gradients of orthogonal groups are set to None.

        A closure is not supported.
        """
        for group in self.param_groups:
            if group.get("orthogonal"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
                        parameter.grad = None  # SGD skips it
        super().step(closure)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
        update = orthogonalise(direction.reshape(len(direction), -1).float()).view(direction.shape)
        parameter.add_(update, alpha=-group["lr"])
