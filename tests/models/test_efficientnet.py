"""EfficientNet against torchvision, timm and a third implementation, on copied weights."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet as IndependentLite
from torch import nn

from app.settings import PROJECT
from models import checkpoint
from models.efficientnet import B_ROWS, SameConv2d, compound_scale
from models.registry import build, configure
from tests.conftest import photo

STEADY = {"dropout": 0.0, "drop_connect": 0.0}


def randomise(module: nn.Module) -> None:
    """Weights and statistics that no part of which can be swapped unseen."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]


def copy(source: nn.Module, target: nn.Module) -> None:
    """Both list the same tensors in the same order, under other names."""
    theirs, ours = source.state_dict(), target.state_dict()
    assert [v.shape for v in theirs.values()] == [v.shape for v in ours.values()]
    target.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def assert_parity(theirs: nn.Module, ours: nn.Module, side: int, *, modes: tuple[bool, ...] = (False, True)) -> None:
    batch = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for training in modes:
            expected, got = theirs.train(training)(batch), ours.train(training)(batch)
            assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))], ids=lambda i: f"b{i}"
)
def test_parity_with_torchvision(number: int) -> None:
    theirs = getattr(torchvision.models, f"efficientnet_b{number}")(dropout=0.0, stochastic_depth_prob=0.0)
    randomise(theirs)
    ours = build(f"efficientnet-b{number}", STEADY)
    copy(theirs, ours)
    assert_parity(theirs, ours, 96)


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))])
def test_lite_parity_with_timm(number: int, side: int) -> None:
    theirs = timm.create_model(f"tf_efficientnet_lite{number}", drop_rate=0.0, drop_path_rate=0.0)
    randomise(theirs)
    ours = build(f"efficientnet-lite{number}", STEADY)
    copy(theirs, ours)
    assert_parity(theirs, ours, side)


def test_the_shipped_weights_against_a_third_implementation() -> None:
    module, card = checkpoint.load(PROJECT / "weights" / "efficientnet-lite0")
    independent = IndependentLite.from_name("efficientnet-lite0")
    copy(module, independent)
    batch = torch.stack([card.preprocess(photo(name)) for name in ("coffee", "chelsea", "rocket", "astronaut")])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = independent.eval()(batch)
    with torch.inference_mode():
        got = module(batch)
    assert (expected - got).abs().max() <= 1e-4 * expected.abs().max()
    assert got.argmax(1).tolist() == expected.argmax(1).tolist()


def test_same_padding_gives_the_ceiling() -> None:
    for kernel in (3, 5):
        for stride in (1, 2):
            for side in (7, 8, 9):
                output = SameConv2d(1, 1, kernel, stride=stride)(torch.zeros(1, 1, side, side + 1))
                assert output.shape[2:] == (-(-side // stride), -(-(side + 1) // stride))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("efficientnet-b0", 5.29),
        ("efficientnet-b1", 7.79),
        ("efficientnet-b2", 9.11),
        ("efficientnet-b3", 12.23),
        ("efficientnet-b4", 19.34),
        ("efficientnet-b5", 30.39),
        ("efficientnet-b6", 43.04),
        ("efficientnet-b7", 66.35),
        ("efficientnet-lite0", 4.65),
        ("efficientnet-lite4", 13.01),
    ],
)
def test_parameter_counts(name: str, millions: float) -> None:
    with torch.device("meta"):
        module = build(name)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_compound_scaling_is_the_papers() -> None:
    alpha, beta, gamma = 1.2, 1.1, 1.15
    assert alpha * beta**2 * gamma**2 == pytest.approx(2, abs=0.1)
    assert compound_scale(0) == (1.0, 1.0, 224)
    assert compound_scale(1) == (beta, alpha, 258)
    # The published rows are near the formula at phi = 0.5 (B1), 1, 2, ... (B2, B3, ...).
    for phi, name in zip((0.5, 1, 2, 3.5, 5, 6, 7), list(B_ROWS)[1:], strict=True):
        published, formula = B_ROWS[name], compound_scale(phi)
        assert published[:3] == pytest.approx(formula, rel=0.15)


def test_small_pictures_keep_their_resolution() -> None:
    config = {"stem_stride": 1, "strides": [1, 1, 2, 2, 1, 2, 1], "num_classes": 10, "image_size": 32}
    module = build("efficientnet-b0", config).eval()
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert isinstance(module.features, nn.Sequential)
    last = module.features[:-2](torch.zeros(1, 3, 32, 32))
    assert last.shape[2:] == (4, 4)
    assert configure("efficientnet-b0", config).strides == (1, 1, 2, 2, 1, 2, 1)
    with pytest.raises(ValueError, match="strides needs 7"):
        build("efficientnet-b0", {"strides": [1, 2]})
