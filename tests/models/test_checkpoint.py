"""Weights and card: matching files load, all others are refused, and a crash leaves the old file or the new."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models import checkpoint
from models.card import ModelCard
from models.checkpoint import CheckpointError
from models.preprocess import Preprocess
from models.registry import build

GOLDEN = Path(__file__).parent.parent / "golden" / "card-1"


def save(folder: Path, module: nn.Module) -> ModelCard:
    return checkpoint.save(
        folder,
        module,
        name="tiny",
        description="for tests",
        task="classify",
        architecture="lenet1989",
        config={},
        preprocess=Preprocess(mode="L", size=(16, 16), mean=(127.5,), std=(127.5,)),
        classes=tuple("0123456789"),
        data="none",
        source="a test",
        license="Apache-2.0",
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tmp_path, build("lenet1989"))
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps(card))


def test_saved_network_is_loaded(saved: Path) -> None:
    torch.manual_seed(0)
    original = build("lenet1989")
    module, card = checkpoint.load(saved)
    assert not module.training
    for key, value in original.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)
    assert card.version == card.sha256[:12]
    assert card.parameters == sum(p.numel() for p in original.parameters())


def test_flipped_byte_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"classes": ["a", "b"]},
        {"classes": []},
        {"temperature": float("nan")},
        {"temperature": 0},
        {"unheard_of": 1},
        {"name": "../etc"},
        {"sha256": "short"},
        {"task": "dance"},
        {"metrics": [{"name": "accuracy", "value": None, "data": "x"}]},
        {"architecture": "lenet6"},
        {"config": {"width": 3}},
        {"preprocess": {"mode": "RGB", "size": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1]}},
    ],
)
def test_inconsistent_card_is_refused(saved: Path, changes: dict[str, Any]) -> None:
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=r"card\.json"):
        checkpoint.load(saved)


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    data, digest = checkpoint.serialise(build("lenet5"))
    (saved / "model.safetensors").write_bytes(data)
    edit(saved, sha256=digest)
    with pytest.raises(CheckpointError, match="Missing key"):
        checkpoint.load(saved)
    (saved / "model.safetensors").write_bytes(b"not safetensors")
    edit(saved, sha256=hashlib.sha256(b"not safetensors").hexdigest())
    with pytest.raises(CheckpointError):
        checkpoint.load(saved)


def test_wrappers_and_memory_formats_do_not_change_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = build("lenet1989")
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = plain.to(memory_format=torch.channels_last)
    assert checkpoint.bare_state(wrapped).keys() == plain.state_dict().keys()
    assert checkpoint.serialise(wrapped) == checkpoint.serialise(build_again())
    save(tmp_path, wrapped)
    assert checkpoint.load(tmp_path)


def build_again() -> nn.Module:
    torch.manual_seed(0)
    return build("lenet1989")


def test_failed_write_leaves_the_old_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_card_version_1_loads_forever() -> None:
    module, card = checkpoint.load(GOLDEN)
    expected = json.loads((GOLDEN / "logits.json").read_text())
    ramp = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(module(ramp)[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert card.schema_version == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    network = build("lenet1989")
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = value
    save(tmp_path, network)
    with pytest.raises(CheckpointError, match="NaN or infinity in "):
        checkpoint.load(tmp_path)
