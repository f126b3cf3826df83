"""LeNet against the papers' counts and against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.lenet import C3_TABLE, DIGIT_GLYPHS, H2_TABLE, EuclideanRBF, ScaledTanh, Subsampling, TableConv2d
from models.registry import build


def free_parameters(module: nn.Module) -> int:
    """The number of trainable parameters; of a connection table's kernels, of the connected ones only."""
    if isinstance(module, TableConv2d):
        return int(module.table.expand_as(module.weight).sum()) + (0 if module.bias is None else module.bias.numel())
    own = sum(p.numel() for p in module.parameters(recurse=False))
    return own + sum(free_parameters(child) for child in module.children())


def per_layer(module: nn.Module) -> list[int]:
    """The counts of the layers that have parameters, from input to output; a UnitBias counts as a layer."""
    parts = [*module.get_submodule("features").children(), module.get_submodule("head")]
    return [count for part in parts if (count := free_parameters(part))]


@pytest.mark.parametrize(
    ("name", "layers", "total"),
    [
        # H1, H2 (each: kernels, then one bias a unit), H3, output.
        ("lenet1989", [300, 768, 2400, 192, 5790, 310], 9_760),
        # C1, S2, C3, S4, C5, F6; the RBF's codes are fixed.
        ("lenet5", [156, 12, 1_516, 32, 48_120, 10_164], 60_000),
        # C1, C3, C5, F6, output; not in a paper.
        ("lenet5-relu", [156, 2_416, 48_120, 10_164, 850], 61_706),
    ],
)
def test_free_parameters_of_each_layer(name: str, layers: list[int], total: int) -> None:
    module = build(name)
    assert per_layer(module) == layers
    assert free_parameters(module) == total


@pytest.mark.parametrize(
    ("inputs", "table", "options"),
    [(6, C3_TABLE, {}), (12, H2_TABLE, {"stride": 2, "bias": False}), (6, C3_TABLE, {"padding": 2})],
)
def test_table_convolution_is_a_convolution_per_map(
    inputs: int, table: tuple[tuple[int, ...], ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    layer = TableConv2d(inputs, table, 5, **options)
    nn.init.normal_(layer.weight)  # also where there is no connection, which must have no effect
    images = torch.randn(3, inputs, 14, 14)
    maps = []
    for j, seen in enumerate(table):
        bias = None if layer.bias is None else layer.bias[j : j + 1]
        kernel = layer.weight[j : j + 1, list(seen)]
        maps.append(F.conv2d(images[:, list(seen)], kernel, bias, layer.stride, layer.padding))
    torch.testing.assert_close(layer(images), torch.cat(maps, dim=1), rtol=1e-5, atol=1e-4)


def test_tables_are_the_papers() -> None:
    assert [len(row) for row in C3_TABLE] == [3] * 6 + [4] * 9 + [6]
    assert len(set(C3_TABLE)) == 16
    assert [sum(i in row for row in C3_TABLE) for i in range(6)] == [10] * 6  # table I: ten crosses a row
    assert [len(row) for row in H2_TABLE] == [8] * 12
    assert [sum(i in row for row in H2_TABLE) for i in range(12)] == [8] * 12


def test_subsampling_against_a_loop() -> None:
    torch.manual_seed(0)
    layer = Subsampling(3)
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    images = torch.randn(2, 3, 6, 8)
    expected = torch.empty(2, 3, 3, 4)
    for n, c, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3), torch.arange(4)).tolist():
        window = images[n, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        expected[n, c, i, j] = window.sum() / 4 * layer.gain[c, 0, 0].detach() + layer.bias[c, 0, 0].detach()
    torch.testing.assert_close(layer(images), expected)


def test_rbf_is_the_negative_squared_distance() -> None:
    torch.manual_seed(0)
    layer = EuclideanRBF()
    x = torch.randn(5, 84)
    torch.testing.assert_close(layer(x), -(torch.cdist(x, layer.codes) ** 2), rtol=1e-5, atol=1e-4)
    assert torch.equal(layer(layer.codes).argmax(dim=1), torch.arange(10))


def test_codes_are_ten_different_drawings_of_7x12() -> None:
    assert [[len(row) for row in glyph.split()] for glyph in DIGIT_GLYPHS] == [[7] * 12] * 10
    codes = EuclideanRBF().codes
    assert codes.shape == (10, 84)
    assert codes.abs().eq(1).all()
    distances = torch.cdist(codes, codes) + torch.eye(10) * 100
    assert distances.min() >= 4  # at least four pixels differ: 4 * 2^2 = 4^2


def test_scaled_tanh() -> None:
    f = ScaledTanh()
    ends = f(torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([-1.0, 0.0, 1.0]), rtol=0, atol=1e-4)
    # The paper's reason for these numbers: |f''| is largest at +-1.
    x = torch.linspace(0, 3, 3001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert x.detach()[curvature.abs().argmax()] == pytest.approx(1, abs=0.02)


def test_padding_is_background() -> None:
    """LeNet-1989 pads with -1: the maps of a blank image are the same at the edge and in the centre."""
    module = build("lenet1989")
    features = module.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    first = features[:2]
    maps = first(torch.full((1, 1, 16, 16), -1.0))
    torch.testing.assert_close(maps, maps[:, :, 4:5, 4:5].expand_as(maps))
