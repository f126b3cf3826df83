"""A training run of commit 3efbd78, killed in its third epoch, is resumed and ends as an unbroken run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from models import checkpoint
from tests.golden_files import GOLDEN, expected, unpack
from training import classify
from training.core.run_folder import Run

WRITTEN = expected("run")


@pytest.fixture
def golden(folders: Path) -> Path:
    """A copy of the run and of its data, which `folders` makes VESTIBULE_RUNS and VESTIBULE_DATASETS."""
    return unpack("run", folders)


def test_golden_checkpoint_is_read(golden: Path) -> None:
    run = Run(golden / "runs/strokes")
    state = run.load_last(processes=1)
    progress = state["progress"]
    assert progress.step == 24  # six steps of the third epoch
    assert progress.history == json.loads((golden / "runs/strokes/history.json").read_text()) == WRITTEN["history"][:2]
    assert sorted(progress.statistics) == ["accuracy", "loss"]
    assert (progress.best_epoch, progress.wall_time_s > 0) == (run.load_best()["epoch"], True)
    assert sorted(state["learners"]["classifier"]) == ["average", "model", "optimizer", "scheduler"]


def test_golden_run_is_resumed_to_the_same_weights(golden: Path) -> None:
    result = CliRunner().invoke(classify.cli, [str(golden / "recipe.toml"), "--resume"])
    assert result.exit_code == 0, result.output
    run = golden / "runs/strokes"
    history = json.loads((run / "history.json").read_text())
    assert len(history) == 4
    for row, golden_row in zip(history, WRITTEN["history"], strict=True):
        assert row == pytest.approx(golden_row, rel=1e-3)
    module, card = checkpoint.load(run / "export/strokes")
    assert card.training is not None
    assert card.training.best_epoch == WRITTEN["best_epoch"]
    state = module.state_dict()
    weights = safetensors.torch.load_file(GOLDEN / "run.safetensors")
    assert state.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.allclose(state[name], value, rtol=1e-3, atol=1e-4), name


def test_another_recipe_is_refused(golden: Path) -> None:
    result = CliRunner().invoke(classify.cli, [str(golden / "recipe.toml"), "--resume", "--set", "train.lr=0.02"])
    assert result.exit_code == 1
    assert "differs in train.lr" in result.output
