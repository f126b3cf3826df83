"""What the tests of the networks share: a forward pass with checked shapes; comparing two implementations."""

from __future__ import annotations

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


@jaxtyped(typechecker=beartype)
def run(
    module: nn.Module, images: Float[Tensor, "n channels height width"], outputs: int
) -> Float[Tensor, "n {outputs}"]:
    """The module's answer. Types and shapes are checked as they stand in the signature."""
    answer: Tensor = module(images)
    return answer


def drop_rates(module: nn.Module) -> list[float]:
    """Every chance to drop something, in order."""
    return [m.p for m in module.modules() if isinstance(m, StochasticDepth | nn.Dropout)]


def without_drops(module: nn.Module) -> nn.Module:
    """The module, with nothing random left in train mode."""
    for part in module.modules():
        if isinstance(part, StochasticDepth | nn.Dropout):
            part.p = 0.0
    return module


def enliven(module: nn.Module, images: Tensor) -> None:
    """Random gains and offsets for every batch norm, and the statistics of `images`.

    With the statistics of a new network (0 and 1) the signal dies in eval mode: every picture gets the same logits, and
    comparing two implementations shows nothing.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.momentum = 1.0
        module.train()(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            assert norm.running_mean is not None
            norm.running_mean.add_(torch.randn_like(norm.running_mean), alpha=0.05)
            norm.momentum = momentum


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the numbers of `source`: their states have the same shapes in the same order, only other names."""
    ours, theirs = target.state_dict(), source.state_dict()
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    for (name, value), (other, number) in pairs:
        assert value.shape == number.shape, f"{name} {list(value.shape)} is {other} {list(number.shape)}"
    target.load_state_dict({name: number for (name, _), (_, number) in pairs})


@torch.no_grad()
def parity(ours: nn.Module, theirs: nn.Module, images: Tensor, *, train: bool) -> float:
    """max |ours - theirs| of the logits, as a share of max |theirs|."""
    a, b = ours.train(train)(images), theirs.train(train)(images)
    scale = b.abs().max()
    assert b.std(dim=0).mean() > 0.01 * scale, "every picture gets the same logits: the comparison shows nothing"
    return float((a - b).abs().max() / scale)
