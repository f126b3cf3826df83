"""What every classifier of the registry can do. A new row is tested by being there."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.lenet import TableConv2d
from models.preprocess import Preprocess
from models.registry import REGISTRY, build, configure
from tests.models.helpers import run

# With more parameters than this, a network takes seconds.
FAST = 5_500_000
# Settings that make two runs differ.
RANDOM = {"dropout", "drop_connect", "drop_rate"}
BATCH = 4


def marks(name: str) -> list[pytest.MarkDecorator]:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build(name).parameters())
    return [pytest.mark.slow] if parameters > FAST else []


# Every classifier of the registry; those that take long are marked.
ZOO = [pytest.param(name, marks=marks(name)) for name, row in REGISTRY.items() if row.task == "classify"]


def smallest_images(name: str) -> Tensor:
    config = REGISTRY[name].config
    side = config.smallest
    return torch.randn(BATCH, config.in_channels, side, side)


def expected_zeros(module: nn.Module) -> dict[str, Tensor]:
    """Where a gradient has to be exactly zero: true for the weights that a connection table leaves out."""
    return {
        f"{name}.weight": (part.table == 0).expand_as(part.weight)
        for name, part in module.named_modules()
        if isinstance(part, TableConv2d)
    }


@pytest.mark.parametrize("name", ZOO)
def test_forward_backward_save_load(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    overrides = {field.name: 0.0 for field in fields(REGISTRY[name].config) if field.name in RANDOM}
    config = configure(name, overrides)
    module = build(name, overrides)
    images = smallest_images(name)

    answers = module(images, auxiliary=True) if getattr(config, "auxiliary", False) else (module(images),)
    labels = torch.arange(BATCH)
    loss = torch.stack([F.cross_entropy(logits, labels) for logits in answers]).sum()
    assert loss.isfinite()

    loss.backward()  # type: ignore[no-untyped-call]
    zeros = expected_zeros(module)
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{key} is not used"
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), f"{key} has no gradient"
        if key in zeros:
            assert not parameter.grad[zeros[key]].any(), f"{key} has gradients outside its table"

    channels, height, width = images.shape[1:]
    saved = checkpoint.save(
        tmp_path,
        module,
        name=name,
        description="untrained",
        task=REGISTRY[name].task,
        architecture=name,
        config=asdict(config),
        preprocess=Preprocess(
            mode="L" if channels == 1 else "RGB", size=(height, width), mean=(0.0,) * channels, std=(1.0,) * channels
        ),
        classes=tuple(map(str, range(config.num_classes))),
        data="none",
        source="this test",
        license="Apache-2.0",
    )
    loaded, card = checkpoint.load(tmp_path)
    assert card == saved
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(run(loaded, images, config.num_classes), module.eval()(images))


@pytest.mark.parametrize("name", ZOO)
def test_features_feed_the_head(name: str) -> None:
    torch.manual_seed(0)
    module = build(name).eval()
    images = smallest_images(name)
    features, head = module.get_submodule("features"), module.get_submodule("head")
    with torch.inference_mode():
        assert torch.equal(head(features(images)), module(images))


@pytest.mark.parametrize("name", ZOO)
def test_wrong_shapes_are_refused(name: str) -> None:
    module = build(name).eval()
    good = smallest_images(name)
    side = good.shape[-1]
    wrong = {
        "one channel more": torch.cat([good, good[:, :1]], dim=1),
        "too small": good[:, :, : side - 1],
        "too narrow": good[:, :, :, : side - 1],
        "no batch": good[0],
        "a dimension more": good[None],
    }
    for what, images in wrong.items():
        with pytest.raises(ValueError, match="expected images of shape") as caught:
            module(images)
        message = str(caught.value)
        assert f"[N, {good.shape[1]}, " in message, what  # the expected shape
        assert f"{side}]" in message, what
        assert str(list(images.shape)) in message, what  # the actual one
