"""Every network of the registry that outputs images: gradients, saving, ranges, refusals. New rows are included."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import checkpoint
from models.generative import (
    DecoderSubmodel,
    EncoderSubmodel,
    ReconstructionSubmodel,
    SupportsDecode,
    SupportsEncode,
    with_label_planes,
)
from models.registry import REGISTRY, build, configure
from tests.models.helpers import assert_all_gradients, save_untrained

TASKS = {"reconstruct", "generate", "denoise"}
ZOO = [name for name, row in REGISTRY.items() if row.task in TASKS]
BATCH = 4
CLASSES = 3


def label_overrides(name: str) -> list[dict[str, Any]]:
    """No overrides, and labels if the network can have them."""
    labels = "num_classes" in {field.name for field in fields(REGISTRY[name].config)}
    return [{}, {"num_classes": CLASSES}] if labels else [{}]


ROWS = [
    *((name, overrides) for name in ZOO for overrides in label_overrides(name)),
    *(("gan", {"in_channels": 3, "image_size": side, "widths": [24, 16, 8]}) for side in (32, 48, 64)),
    ("fastgan", {"in_channels": 3, "image_size": 64, "widths": [16, 12, 8, 8]}),
    ("vae", {"in_channels": 3, "image_size": 32, "widths": [4, 4, 8], "likelihood": "gaussian"}),
]


def inputs(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images, latents and one-hot labels in the shapes of the config."""
    images = torch.rand(BATCH, config.in_channels, config.image_size, config.image_size)
    labels = torch.eye(getattr(config, "num_classes", 0) or 1).repeat(BATCH, 1)[:BATCH]
    latents = torch.randn(BATCH, getattr(config, "latent", 0))
    return images, latents, labels if getattr(config, "num_classes", 0) else labels[:, :0]


def submodels(module: nn.Module, config: Any) -> list[tuple[nn.Module, Tensor]]:
    """The submodels that are served, each with an input."""
    images, latents, labels = inputs(config)
    planes = with_label_planes(images, labels)
    served: list[tuple[nn.Module, Tensor]] = []
    if isinstance(module, SupportsDecode):
        served.append((DecoderSubmodel(module), torch.cat([latents, labels], dim=1)))
    if isinstance(module, SupportsEncode):
        served += [(EncoderSubmodel(module), planes), (ReconstructionSubmodel(module), planes)]
    return served or [(module, images)]


@pytest.mark.parametrize(("name", "overrides"), ROWS)
def test_shapes_ranges_gradients_labels_and_saving(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = configure(name, overrides)
    module = build(name, overrides)
    outputs = []
    for submodel, batch in submodels(module, config):
        output = submodel(batch)
        outputs.append(output)
        is_latent = isinstance(submodel, EncoderSubmodel)
        image = (config.in_channels, config.image_size, config.image_size)
        assert output.shape == (BATCH, *((config.latent,) if is_latent else image))
        if isinstance(submodel, DecoderSubmodel):
            assert output.abs().max() <= 1
            assert output.std() > 0
    loss = torch.stack([output.square().mean() for output in outputs]).sum()
    if hasattr(module, "posterior"):  # the loss needs outputs that no submodel has
        images, noise, labels = inputs(config)
        output = module(images, labels, noise)
        scale = 0 if output.log_scale is None else output.log_scale
        loss = loss + output.logits.square().mean() + output.log_variance.square().mean() + scale
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    assert_all_gradients(module)

    saved = save_untrained(tmp_path, module, name, overrides)
    loaded, card = checkpoint.load(tmp_path)
    assert card == saved
    torch.manual_seed(1)
    original = submodels(module.eval(), config)
    torch.manual_seed(1)
    restored = submodels(loaded, config)
    with torch.inference_mode():
        for (submodel, batch), (loaded_submodel, same_batch) in zip(original, restored, strict=True):
            output = submodel(batch)
            assert torch.equal(output, loaded_submodel(same_batch))
            one_by_one = torch.cat([submodel(item[None]) for item in batch])
            torch.testing.assert_close(output, one_by_one, rtol=1e-4, atol=1e-5)
            if "num_classes" in overrides:
                other = batch.clone()
                other[:, -CLASSES:] = batch[:, -CLASSES:].roll(1, dims=1)
                assert not torch.allclose(output, submodel(other)), "the label has no effect"


@pytest.mark.parametrize("name", ZOO)
def test_wrong_shapes_are_refused(name: str) -> None:
    module = build(name).eval()
    for submodel, batch in submodels(module, REGISTRY[name].config):
        wrong = [torch.cat([batch, batch[:, :1]], dim=1), batch[:, 1:], batch[0], batch[None]]
        if batch.ndim == 4:
            wrong += [batch[:, :, 1:], batch[:, :, :, 1:]]
        for inputs in wrong:
            with pytest.raises(ValueError, match="expected"):
                submodel(inputs)
