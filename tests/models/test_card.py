"""The card as a file: every card that is written can be read again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from models import checkpoint
from models.card import Metric, ModelCard, Tolerance, Training
from models.checkpoint import CheckpointError
from models.passages import MAX_FRAMES

GOLDEN = Path(__file__).parents[1] / "golden" / "card-1"
TRAINING = Training(
    recipe={"train": {"epochs": 2, "betas": [0.9, 0.99]}},
    seed=1,
    epochs=2,
    best_epoch=1,
    wall_time_s=12.5,
    hardware="2 cores",
    versions={"torch": torch.__version__},
)


def changed(**fields: Any) -> ModelCard:
    """The golden card with changed fields."""
    return ModelCard.model_validate(checkpoint.read_card(GOLDEN).model_dump() | fields)


def test_every_field_is_read_back(tmp_path: Path) -> None:
    metric = Metric(name="accuracy", value=1 / 3, data="x", origin="reported")
    card = changed(training=TRAINING, metrics=(metric,), temperature=1 / 3, tta="flip")
    checkpoint.write_card(tmp_path, card)
    assert checkpoint.read_card(tmp_path) == card


def test_card_without_tolerance_has_the_default(tmp_path: Path) -> None:
    assert "tolerance" not in json.loads((GOLDEN / "card.json").read_text())
    assert checkpoint.read_card(GOLDEN).tolerance == Tolerance(top1=0.995, probability=0.02, direction=0.001)
    checkpoint.write_card(tmp_path, changed(tolerance={"direction": 0.1}))
    assert checkpoint.read_card(tmp_path).tolerance == Tolerance(direction=0.1)


def test_passages_need_the_calibration_of_an_embedder() -> None:
    card = checkpoint.read_card(Path(__file__).parents[2] / "weights/mobilefacenet-triplet").model_dump()
    assert len(ModelCard.model_validate(card).passages) == MAX_FRAMES
    for fields in ({"matching": None}, {"passages": [*card["passages"], card["passages"][0]]}):
        with pytest.raises(ValidationError, match="passages need matching"):
            ModelCard.model_validate(card | fields)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Metric(name="nll", value=value, data="x")
    with pytest.raises(ValidationError, match="finite"):
        Training.model_validate(TRAINING.model_dump() | {"wall_time_s": value})
    with pytest.raises(ValidationError, match="temperature"):
        changed(temperature=value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000])
def test_invalid_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"card\.json"):
        checkpoint.read_card(tmp_path)


def test_config_that_cannot_be_built_is_a_checkpoint_error(tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "card.json").read_text())
    data |= {"architecture": "lenet5", "config": {"num_classes": 26}, "classes": list("abcdefghijklmnopqrstuvwxyz")}
    (tmp_path / "card.json").write_text(json.dumps(data))
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes())
    assert checkpoint.read_card(tmp_path)
    with pytest.raises(CheckpointError, match="codes for the 10 digits, not for 26"):
        checkpoint.load(tmp_path)
