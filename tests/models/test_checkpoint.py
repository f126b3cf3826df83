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
from models.checkpoint import CheckpointError
from models.registry import build
from tests.models.helpers import save_untrained

GOLDEN = Path(__file__).parent.parent / "golden" / "card-1"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_untrained(tmp_path, build("lenet1989"), "lenet1989", {})
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps(card))


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
    ("architecture", "overrides", "changes", "message"),
    [
        ("lenet1989", {}, {"schema_version": 2}, "schema_version"),
        ("lenet1989", {}, {"classes": ["a", "b"]}, "2 class names for a network with 10 classes"),
        ("lenet1989", {}, {"temperature": 0}, "temperature"),
        ("lenet1989", {}, {"unheard_of": 1}, "unheard_of"),
        ("lenet1989", {}, {"name": "../etc"}, "name"),
        ("lenet1989", {}, {"sha256": "short"}, "sha256"),
        ("lenet1989", {}, {"task": "dance"}, "task"),
        ("lenet1989", {}, {"architecture": "lenet6"}, "unknown architecture"),
        ("lenet1989", {}, {"config": {"width": 3}}, "no setting width"),
        (
            "lenet1989",
            {},
            {"preprocess": {"mode": "RGB", "size": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1]}},
            "preprocessing gives 3 channels, the network takes 1",
        ),
        ("vae", {}, {"temperature": 2.0}, "a temperature is a classifier's, not that of a network to generate"),
        ("vae", {}, {"task": "denoise"}, "vae is built to generate, not to denoise"),
    ],
)
def test_inconsistent_card_is_refused(
    architecture: str, overrides: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_untrained(tmp_path, build(architecture, overrides), architecture, overrides)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"(?s)card\.json.*{message}"):
        checkpoint.load(tmp_path)


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
    plain = build("lenet1989")
    expected = checkpoint.serialise(plain)
    wrapped = nn.Module()
    wrapped.module = nn.Module()
    wrapped.module._orig_mod = plain.to(memory_format=torch.channels_last)
    assert checkpoint.bare_state(wrapped).keys() == plain.state_dict().keys()
    assert checkpoint.serialise(wrapped) == expected
    save_untrained(tmp_path, wrapped, "lenet1989", {})
    assert checkpoint.load(tmp_path)


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
    save_untrained(tmp_path, network, "lenet1989", {})
    with pytest.raises(CheckpointError, match="NaN or infinity in "):
        checkpoint.load(tmp_path)
