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

from models import checkpoint
from models.blocks import StochasticDepth
from models.importers import SOURCES, import_weights
from models.registry import build
from tests.conftest import photo
from tests.models.helpers import TOLERANCE, assert_parity, without_drops


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))], ids=lambda i: f"b{i}"
)
def test_logits_are_torchvisions(number: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"efficientnet_b{number}")()
    images, statistics = torch.randn(4, 3, 96, 96), torch.randn(8, 3, 96, 96)
    assert_parity(build(f"efficientnet-b{number}"), theirs, images, statistics)


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 5))])
def test_lite_logits_are_timms(number: int, side: int) -> None:
    torch.manual_seed(0)
    # timm's default momentum is torch's 0.1; TensorFlow's 0.99 is torch's 0.01.
    theirs = without_drops(timm.create_model(f"tf_efficientnet_lite{number}", bn_momentum=0.01))
    images, statistics = torch.randn(4, 3, side, side), torch.randn(8, 3, side, side)
    assert_parity(without_drops(build(f"efficientnet-lite{number}")), theirs, images, statistics)


def test_imported_weights_give_the_logits_of_a_third_implementation(tmp_path: Path) -> None:
    import_weights("package:efficientnet-lite0", tmp_path)
    module, card = checkpoint.load(tmp_path / "efficientnet-lite0")
    independent = IndependentLite.from_name("efficientnet-lite0")
    # The published file under its own names, so that errors of the importer show.
    row = SOURCES["package:efficientnet-lite0"]
    (file,) = [f for f in importlib.metadata.files(row.distribution) or () if f.name == row.file]
    independent.load_state_dict(torch.load(str(file.locate()), map_location="cpu", weights_only=True))
    batch = torch.stack([card.preprocess(photo(name)) for name in ("coffee", "chelsea", "rocket", "astronaut")])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = independent.eval()(batch)
    with torch.inference_mode():
        actual = module(batch)
    assert (expected - actual).abs().max() <= TOLERANCE * expected.abs().max()
    assert actual.argmax(1).tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_stochastic_depth_is_torchvisions(drop: float) -> None:
    maps = torch.rand(50, 3, 4, 5)
    ours, theirs = StochasticDepth(drop), torchvision.ops.StochasticDepth(drop, "row")
    dropped = []
    for module in (ours, theirs):
        torch.manual_seed(7)
        dropped.append(module(maps))
    assert torch.equal(*dropped)
    assert (dropped[0] == 0).flatten(1).all(dim=1).any() == (drop > 0)
    assert torch.equal(ours.eval()(maps), maps)
