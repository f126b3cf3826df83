"""EfficientNet against torchvision, timm and a third implementation, on copied weights."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet as IndependentLite
from torch import nn

from models import checkpoint
from models.blocks import SameConv2d
from models.efficientnet import B_ROWS, compound_scale
from models.importers import SOURCES, import_weights
from models.registry import build, configure
from tests.conftest import photo
from tests.models.helpers import copy_in_order, drop_rates, enliven, parity, without_drops

TOLERANCE = 1e-4  # of the logits' scale, in float32


def assert_parity(theirs: nn.Module, ours: nn.Module, side: int) -> None:
    """The same logits from the same numbers, in eval and in train mode."""
    torch.manual_seed(0)
    enliven(without_drops(theirs), torch.randn(8, 3, side, side))
    copy_in_order(theirs, without_drops(ours))
    batch = torch.randn(4, 3, side, side)
    assert parity(ours, theirs, batch, train=False) <= TOLERANCE
    assert parity(ours, theirs, batch, train=True) <= TOLERANCE
    # Train mode moves the running statistics, by the momentum.
    assert parity(ours, theirs, batch, train=False) <= TOLERANCE


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))], ids=lambda i: f"b{i}"
)
def test_parity_with_torchvision(number: int) -> None:
    theirs = getattr(torchvision.models, f"efficientnet_b{number}")()
    ours = build(f"efficientnet-b{number}")
    assert drop_rates(ours) == drop_rates(theirs)
    assert_parity(theirs, ours, 96)


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))])
def test_lite_parity_with_timm(number: int, side: int) -> None:
    # timm's default momentum is torch's 0.1; TensorFlow's 0.99 is 0.01 here.
    theirs = timm.create_model(f"tf_efficientnet_lite{number}", bn_momentum=0.01)
    assert_parity(theirs, build(f"efficientnet-lite{number}"), side)


def test_the_imported_weights_against_a_third_implementation(tmp_path: Path) -> None:
    import_weights("package:efficientnet-lite0", tmp_path)
    module, card = checkpoint.load(tmp_path / "efficientnet-lite0")
    independent = IndependentLite.from_name("efficientnet-lite0")
    # The published file under its own names: what the importer confused would show here.
    row = SOURCES["package:efficientnet-lite0"]
    (file,) = [f for f in importlib.metadata.files(row.distribution) or () if f.name == row.file]
    independent.load_state_dict(torch.load(str(file.locate()), map_location="cpu", weights_only=True))
    batch = torch.stack([card.preprocess(photo(name)) for name in ("coffee", "chelsea", "rocket", "astronaut")])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = independent.eval()(batch)
    with torch.inference_mode():
        got = module(batch)
    assert (expected - got).abs().max() <= TOLERANCE * expected.abs().max()
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
    # The published rows: near the formula up to B3, above it from B4 on.
    for phi, name in zip((0, 0.5, 1, 2, 3, 4, 5, 6), B_ROWS, strict=True):
        ratios = [row / formula for row, formula in zip(B_ROWS[name], compound_scale(phi), strict=False)]
        low, high = (0.95, 1.05) if phi <= 2 else (1.0, 1.18)
        assert all(low <= ratio <= high for ratio in ratios), (name, ratios)


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
