"""DenseNet against torchvision on copied weights, the paper's counts, and the connections that give it its name."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.densenet import VARIANTS, DenseBlock, DenseNet, DenseNetConfig
from tests.models.helpers import copy_in_order, enliven, parity

TOLERANCE = 1e-4  # of the logits' scale, in float32


@pytest.mark.parametrize("layers", [121, 169, 201])
def test_parity_with_torchvision(layers: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"densenet{layers}")()
    ours = DenseNet(VARIANTS[f"densenet{layers}"])
    enliven(theirs, torch.randn(4, 3, 64, 64))
    copy_in_order(theirs, ours)
    batch = torch.randn(4, 3, 64, 75)
    assert parity(ours, theirs, batch, train=False) <= TOLERANCE
    assert parity(ours, theirs, batch, train=True) <= TOLERANCE
    # Train mode moves the running statistics, by the momentum.
    assert parity(ours, theirs, batch, train=False) <= TOLERANCE


def formula(config: DenseNetConfig) -> int:
    """The parameters, counted on paper: a convolution in*out*k^2, a batch norm two a channel."""
    k, channels = config.growth, config.stem_channels
    side = 7 if config.stem == "imagenet" else 3
    total = config.in_channels * channels * side**2 + (2 * channels if config.stem == "imagenet" else 0)
    for number, depth in enumerate(config.depths):
        for _ in range(depth):
            if config.bottleneck:
                total += 2 * channels + channels * 4 * k + 2 * 4 * k + 4 * k * k * 9
            else:
                total += 2 * channels + channels * k * 9
            channels += k
        total += 2 * channels  # of the transition, or the last one
        if number < len(config.depths) - 1:
            kept = int(channels * config.compression)
            total += channels * kept
            channels = kept
    return total + (channels + 1) * config.num_classes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("densenet121", 7_978_856),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
        ("densenet264", 33_337_704),
        ("densenet40", 1_019_722),
        ("densenet-bc-100", 769_162),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    with torch.device("meta"):
        module = DenseNet(VARIANTS[name])
    assert sum(p.numel() for p in module.parameters()) == parameters == formula(VARIANTS[name])


@pytest.mark.parametrize(("name", "millions"), [("densenet40", 1.0), ("densenet-bc-100", 0.8)])
def test_the_papers_table_2(name: str, millions: float) -> None:
    assert round(formula(VARIANTS[name]) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("densenet121", 121),
        ("densenet169", 169),
        ("densenet201", 201),
        ("densenet264", 265),  # what the paper's table adds up to
        ("densenet40", 40),
        ("densenet-bc-100", 100),
    ],
)
def test_the_number_in_the_name_counts_layers_with_weights(name: str, layers: int) -> None:
    with torch.device("meta"):
        module = DenseNet(VARIANTS[name])
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()) == layers


@pytest.mark.parametrize("depth", [1, 2, 6, 12])
@pytest.mark.parametrize("bottleneck", [True, False])
def test_a_block_connects_every_pair_of_layers(depth: int, bottleneck: bool) -> None:
    """L(L-1)/2 direct connections between layers; with the block's input the paper's L(L+1)/2.

    Every output is cut off from what it was computed from, so a gradient that still arrives took no detour.
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


@pytest.mark.parametrize("name", ["densenet40", "densenet-bc-100"])
def test_small_pictures_keep_their_resolution(name: str) -> None:
    module = DenseNet(VARIANTS[name]).eval()
    sizes = []
    for part in module.features:
        if isinstance(part, DenseBlock):
            part.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    with torch.inference_mode():
        assert module(torch.zeros(1, 3, 28, 28)).shape == (1, 10)
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sizes == [28, 14, 7, 32, 16, 8]


def test_the_stem_reads_grey_pictures_too() -> None:
    module = DenseNet(replace(VARIANTS["densenet-bc-100"], in_channels=1, depths=(2, 2)))
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_transition_keeps_its_share_of_the_channels() -> None:
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": ()}, "at least one block"),
        ({"depths": (6, 0)}, "at least one layer"),
        ({"compression": 0.0}, "above 0"),
        ({"compression": 1.5}, "at most 1"),
    ],
)
def test_what_makes_no_network_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseNet(DenseNetConfig(**asdict(DenseNetConfig()) | change))


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 32), ("small", 8), ("small-pool", 16)])
def test_the_smallest_picture_is_accepted_and_a_smaller_one_refused(stem: str, smallest: int) -> None:
    config = replace(DenseNetConfig(depths=(1, 1, 1, 1), growth=4), stem=stem)  # type: ignore[arg-type]
    module = DenseNet(config).eval()
    assert config.smallest == smallest
    assert module(torch.zeros(1, 3, smallest, smallest)).shape == (1, 1000)
    with pytest.raises(ValueError, match=rf"expected images of shape \[N, 3, >={smallest}, >={smallest}\]"):
        module(torch.zeros(1, 3, smallest, smallest - 1))
