"""What every network of the registry that answers pictures can do. A new row is tested by being there."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

from models import checkpoint
from models.card import ModelCard
from models.generative import DecoderPart, Decodes, EncoderPart, Encodes, ReconstructPart, with_label_planes
from models.preprocess import Preprocess
from models.registry import REGISTRY, build, configure

TASKS = {"reconstruct", "generate", "denoise"}
ZOO = [name for name, row in REGISTRY.items() if row.task in TASKS]
BATCH = 4
KINDS = 3


def conditions(name: str) -> list[dict[str, Any]]:
    """The row as it is, and with labels where it can have some."""
    labels = "num_classes" in {field.name for field in fields(REGISTRY[name].config)}
    return [{}, {"num_classes": KINDS}] if labels else [{}]


ROWS = [(name, overrides) for name in ZOO for overrides in conditions(name)]


@jaxtyped(typechecker=beartype)
def as_pictures(
    answer: Float[Tensor, "n {channels} {side} {side}"], channels: int, side: int
) -> Float[Tensor, "n {channels} {side} {side}"]:
    """The answer, its shape checked as it stands in the signature."""
    return answer


def inputs(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, latents and one-hot labels, as many columns of the last two as the config says."""
    pictures = torch.rand(BATCH, config.in_channels, config.image_size, config.image_size)
    labels = torch.eye(getattr(config, "num_classes", 0) or 1).repeat(BATCH, 1)[:BATCH]
    latents = torch.randn(BATCH, getattr(config, "latent", 0))
    return pictures, latents, labels if getattr(config, "num_classes", 0) else labels[:, :0]


def parts(module: nn.Module, config: Any) -> list[tuple[nn.Module, Tensor]]:
    """Everything of it that is served, with what it is given."""
    pictures, latents, labels = inputs(config)
    planes = with_label_planes(pictures, labels)
    served: list[tuple[nn.Module, Tensor]] = []
    if isinstance(module, Decodes):
        served.append((DecoderPart(module), torch.cat([latents, labels], dim=1)))
    if isinstance(module, Encodes):
        served += [(EncoderPart(module), planes), (ReconstructPart(module), planes)]
    return served or [(module, pictures)]


@pytest.mark.parametrize(("name", "overrides"), ROWS)
def test_forward_backward_save_load(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = configure(name, overrides)
    module = build(name, overrides)
    answers = [part(given) for part, given in parts(module, config)]
    loss = torch.stack([answer.square().mean() for answer in answers]).sum()
    if hasattr(module, "posterior"):  # the loss needs what no served part shows
        pictures, noise, labels = inputs(config)
        reading = module(pictures, labels, noise)
        scale = 0 if reading.log_scale is None else reading.log_scale
        loss = loss + reading.logits.square().mean() + reading.log_variance.square().mean() + scale
    assert loss.isfinite()
    loss.backward()  # type: ignore[no-untyped-call]
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{key} is not used"
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), f"{key} has no gradient"

    saved = checkpoint.save(
        tmp_path,
        module,
        name=name,
        description="untrained",
        task=REGISTRY[name].task,
        architecture=name,
        config=asdict(config),
        preprocess=Preprocess(
            mode="L" if config.in_channels == 1 else "RGB",
            size=(config.image_size, config.image_size),
            mean=(0.0,) * config.in_channels,
            std=(255.0,) * config.in_channels,
        ),
        classes=tuple("abc"[: overrides.get("num_classes", 0)]),
        data="none",
        source="this test",
        license="Apache-2.0",
    )
    loaded, card = checkpoint.load(tmp_path)
    assert card == saved
    torch.manual_seed(1)
    given = parts(module.eval(), config)
    torch.manual_seed(1)
    again = parts(loaded, config)
    with torch.inference_mode():
        for (part, items), (other, same) in zip(given, again, strict=True):
            assert torch.equal(items, same)
            assert torch.equal(part(items), other(same))


@pytest.mark.parametrize(("name", "overrides"), ROWS)
def test_pictures_have_their_shape_and_their_range(name: str, overrides: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = configure(name, overrides)
    module = build(name, overrides).eval()
    with torch.inference_mode():
        for part, given in parts(module, config):
            answer = part(given)
            if isinstance(part, EncoderPart):
                assert answer.shape == (BATCH, config.latent)
                continue
            as_pictures(answer, config.in_channels, config.image_size)
            if isinstance(part, DecoderPart):
                assert answer.min() >= -1
                assert answer.max() <= 1
                assert answer.std() > 0


@pytest.mark.parametrize(("name", "overrides"), ROWS)
def test_a_batch_is_answered_row_by_row(name: str, overrides: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = build(name, overrides).eval()
    with torch.inference_mode():
        for part, given in parts(module, configure(name, overrides)):
            singly = torch.cat([part(item[None]) for item in given])
            torch.testing.assert_close(part(given), singly, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_wrong_shapes_are_refused(name: str) -> None:
    module = build(name).eval()
    for part, given in parts(module, REGISTRY[name].config):
        wrong = [torch.cat([given, given[:, :1]], dim=1), given[:, 1:], given[0], given[None]]
        if given.ndim == 4:
            wrong += [given[:, :, 1:], given[:, :, :, 1:]]
        for items in wrong:
            with pytest.raises(ValueError, match="expected"):
                part(items)


@pytest.mark.parametrize(("name", "overrides"), [row for row in ROWS if row[1]])
def test_a_label_changes_the_picture(name: str, overrides: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = configure(name, overrides)
    module = build(name, overrides).eval()
    with torch.inference_mode():
        for part, given in parts(module, config):
            other = given.clone()
            swapped = given[:, -KINDS:].roll(1, dims=1)
            other[:, -KINDS:] = swapped
            assert not torch.allclose(part(given), part(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "0 class names for a network with 3 classes"),
        ({"config": {"num_classes": 0}}, "3 class names for a network with 0 classes"),
        ({"temperature": 2.0}, "a temperature is a classifier's, not that of a network to generate"),
        ({"task": "denoise"}, "vae is built to generate, not to denoise"),
        (
            {"preprocess": Preprocess(size=(28, 28), mean=(0,) * 3, std=(1,) * 3)},
            "preprocessing makes 3 channels, not 1",
        ),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        **{"name": "x", "description": "", "task": "generate", "architecture": "vae", "config": {"num_classes": 3}},
        **{"preprocess": Preprocess(mode="L", size=(28, 28), mean=(0,), std=(1,)), "classes": ("a", "b", "c")},
        **{"parameters": 1, "data": "", "source": "", "license": "", "sha256": "0" * 64},
    }
    assert ModelCard(**good).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match=message):
        ModelCard(**good | changes)
