"""DenseNet against torchvision on copied weights, the paper's counts, and its dense connections."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.densenet import VARIANTS, DenseBlock, DenseNet, DenseNetConfig
from tests.models.helpers import assert_parity


@pytest.mark.parametrize("layers", [121, 169, 201])
def test_logits_are_torchvisions(layers: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"densenet{layers}")()
    ours = DenseNet(VARIANTS[f"densenet{layers}"])
    assert_parity(ours, theirs, torch.randn(4, 3, 64, 75), statistics=torch.randn(4, 3, 64, 64))


@pytest.mark.parametrize("depth", [1, 2, 6, 12])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_block_connects_every_pair_of_layers(depth: int, bottleneck: bool) -> None:
    """L(L-1)/2 direct connections between layers; with the block's input the paper's L(L+1)/2.

    Every output is detached from its inputs, so that gradients show direct connections only.
    """
    torch.manual_seed(0)
    config = DenseNetConfig(growth=4, bottleneck=bottleneck)
    block = DenseBlock(config, 8, depth).eval()
    source = torch.randn(2, 8, 5, 5, requires_grad=True)
    sources, results = [source], []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        results.append(output)
        sources.append(output.detach().requires_grad_())
        return sources[-1]

    for layer in block:
        layer.register_forward_hook(cut)
    end = block(source)

    def read_directly(result: Tensor) -> list[int]:
        grads = torch.autograd.grad((result * torch.randn_like(result)).sum(), sources, allow_unused=True)
        return [i for i, grad in enumerate(grads) if grad is not None and grad.abs().sum() > 0]

    read = [read_directly(result) for result in results]
    assert read == [list(range(j + 1)) for j in range(depth)]  # 0 is the block's input, i + 1 layer i
    assert sum(len(row) for row in read) == depth * (depth + 1) // 2
    assert sum(len(row) - 1 for row in read) == depth * (depth - 1) // 2
    assert read_directly(end) == list(range(depth + 1))
    assert end.shape == (2, 8 + 4 * depth, 5, 5)
    torch.testing.assert_close(end, torch.cat(sources, dim=1))


def test_transition_keeps_its_share_of_the_channels() -> None:
    for compression, kept in ((1.0, 20), (0.5, 10), (0.3, 6)):
        config = DenseNetConfig(depths=(2, 1), growth=4, stem="small", stem_channels=12, compression=compression)
        convolutions = [m for m in DenseNet(config).features if isinstance(m, nn.Conv2d)]
        assert [m.out_channels for m in convolutions] == [12, kept]


def test_dropout_follows_every_convolution_but_the_first() -> None:
    module = DenseNet(replace(VARIANTS["densenet-bc-100"], depths=(2, 2), drop_rate=0.2))
    parts = [m for m in module.features.modules() if not isinstance(m, nn.Sequential | DenseBlock)]
    after = [b for a, b in pairwise(parts) if isinstance(a, nn.Conv2d)]
    assert len(after) == 1 + 2 * 4 + 1
    assert isinstance(after[0], nn.BatchNorm2d)
    assert all(isinstance(m, nn.Dropout) and m.p == 0.2 for m in after[1:])
