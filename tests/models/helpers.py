"""Helpers of the tests of networks: checked forward passes, gradients, saving, comparing two implementations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn
from torchvision import ops

from models import checkpoint
from models.blocks import StochasticDepth
from models.card import ModelCard
from models.preprocess import Preprocess
from models.registry import configure, lookup
from models.runtime import Runtime

_DROPS = (StochasticDepth, ops.StochasticDepth, nn.Dropout)
TOLERANCE = 1e-4  # of the logits' scale, in float32


@jaxtyped(typechecker=beartype)
def run(
    module: nn.Module, images: Float[Tensor, "n channels height width"], outputs: int
) -> Float[Tensor, "n {outputs}"]:
    """The module's output. Types and shapes are checked against the signature."""
    output: Tensor = module(images)
    return output


def layers_of(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    """The submodules of these kinds, in order."""
    return [m for m in module.modules() if isinstance(m, kinds)]


def assert_all_gradients(module: nn.Module, zeros: dict[str, Tensor] | None = None) -> None:
    """Every parameter has a finite gradient that is not all zero, and zero where the mask in `zeros` is true."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} is not used"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"{name} has no gradient"
        if zeros and name in zeros:
            assert not parameter.grad[zeros[name]].any(), f"{name} has gradients outside its table"


def save_untrained(
    folder: Path, module: nn.Module, architecture: str, overrides: dict[str, Any], side: int = 0, **fields: Any
) -> ModelCard:
    """Save `module` with a card that fits its config; `side` is that of the input, by default the config's."""
    config = configure(architecture, overrides)
    channels, side = config.in_channels, side or config.image_size
    card: dict[str, Any] = {
        "name": architecture,
        "description": "untrained",
        "task": lookup(architecture).task,
        "architecture": architecture,
        "config": asdict(config),
        "preprocess": Preprocess(
            mode="L" if channels == 1 else "RGB", size=(side, side), mean=(0.0,) * channels, std=(255.0,) * channels
        ),
        "classes": tuple(map(str, range(getattr(config, "num_classes", 0)))),
        "data": "none",
        "source": "this test",
        "license": "Apache-2.0",
    }
    return checkpoint.save(folder, module, **(card | fields))


def drop_rates(module: nn.Module) -> list[float]:
    """Every probability above zero to drop something, in order."""
    return [m.p for m in module.modules() if isinstance(m, _DROPS) and m.p]


def without_drops(module: nn.Module) -> nn.Module:
    """The module with all drop probabilities set to zero, so that it is deterministic in train mode."""
    for layer in module.modules():
        if isinstance(layer, _DROPS):
            layer.p = 0.0
    return module


def randomise(module: nn.Module) -> None:
    """Draw weights that keep the signal's size, and biases that matter."""
    for layer in layers_of(module, nn.Conv2d, nn.Linear):
        nn.init.kaiming_normal_(layer.get_parameter("weight"))
        if layer.bias is not None:
            nn.init.normal_(layer.get_parameter("bias"), std=0.1)


def enliven(module: nn.Module, images: Tensor) -> None:
    """Give every batch norm random gains and offsets, and the statistics of `images`.

    With the statistics of a new network (0 and 1) the signal vanishes in eval mode: all images get the same logits, and
    a comparison of two implementations proves nothing.
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
    """Copy the tensors of `source` to `target`, whose state has the same shapes in the same order."""
    pairs = list(zip(target.state_dict().items(), source.state_dict().items(), strict=True))
    for (target_name, value), (source_name, tensor) in pairs:
        assert value.shape == tensor.shape, f"{target_name} {list(value.shape)} is {source_name} {list(tensor.shape)}"
    target.load_state_dict({name: tensor for (name, _), (_, tensor) in pairs})


@torch.no_grad()
def parity(ours: nn.Module, theirs: nn.Module, images: Tensor, *, train: bool) -> float:
    """max |ours - theirs| of the logits, as a share of max |theirs|."""
    a, b = ours.train(train)(images), theirs.train(train)(images)
    scale = b.abs().max()
    assert b.std(dim=0).mean() > 0.01 * scale, "all images have the same logits, so the comparison proves nothing"
    return float((a - b).abs().max() / scale)


def assert_parity(ours: nn.Module, theirs: nn.Module, images: Tensor, statistics: Tensor | None = None) -> None:
    """Both networks drop the same, and with the tensors of `theirs` have the same logits in eval and in train mode.

    `statistics` are the images that batch norms take their statistics from, by default `images`.
    """
    assert drop_rates(ours) == drop_rates(theirs)
    enliven(without_drops(theirs), images if statistics is None else statistics)
    copy_in_order(theirs, without_drops(ours))
    # Train mode updates the running statistics, so the second comparison in eval mode differs from the first.
    for train in (False, True, False):
        assert parity(ours, theirs, images, train=train) <= TOLERANCE


def assert_runtime_agrees(
    ready: Runtime, module: nn.Module, batches: Iterable[Tensor], tolerance: float = 1e-4
) -> None:
    """The outputs are the module's up to a share of the largest, in float32, and later calls do not overwrite them."""
    previous: tuple[Tensor, Tensor] | None = None
    for batch in batches:
        with torch.inference_mode():
            expected = module(batch)
        outputs = ready(batch)
        assert (outputs.shape, outputs.dtype) == (expected.shape, torch.float32)
        assert float((outputs - expected).abs().max()) <= tolerance * float(expected.abs().max())
        assert previous is None or torch.equal(*previous)
        previous = outputs, outputs.clone()


# For images of CIFAR-10: 32x32 -> 16x16 -> 8x8.
SMALL_INCEPTION: dict[str, Any] = {
    "num_classes": 10,
    "image_size": 32,
    "stem": "small",
    "stem_channels": [24],
    "rows": [
        [[16, 16, 24, 4, 8, 8]],
        [[24, 24, 32, 4, 8, 8], [24, 24, 32, 4, 8, 8]],
        [[32, 32, 48, 8, 16, 16]],
    ],
    "batch_norm": True,
    "local_response_norm": False,
    "auxiliary_after": [[1, 0], [1, 1]],
    "auxiliary_hidden": 64,
}
