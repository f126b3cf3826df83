"""The table of losses for faces: equal budgets, and the way from runs to a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.experiments import face_losses
from benchmarks.experiments.face_losses import EPOCHS, LOSSES, STAGES, Cell, cells, draw, table


def test_every_loss_has_every_pretraining_at_the_same_budget() -> None:
    found = {(cell.loss, cell.stage): cell for cell in cells()}
    assert len(found) == len(cells()) == len(STAGES) + len(LOSSES) * (1 + len(STAGES))
    for (loss, stage), cell in found.items():
        if loss:
            before = found["", stage].epochs if stage else 0
            assert before + cell.epochs == EPOCHS
            assert cell.recipe.model.init == (found["", stage].recipe.name if stage else "")


def test_cells_differ_in_the_loss_and_what_a_stage_needs_alone() -> None:
    recipes = [cell.recipe.model_dump() for cell in cells()]
    for recipe in recipes:
        for part, name in (("train", "epochs"), ("train", "lr"), ("model", "init")):
            recipe[part].pop(name)
        del recipe["loss"], recipe["name"]
    assert all(recipe == recipes[0] for recipe in recipes)


def test_mining_is_what_the_cell_says() -> None:
    losses = {cell.loss: cell.recipe.loss for cell in cells() if not cell.stage}
    assert {loss: (found.kind, found.mining) for loss, found in losses.items()} == {
        "contrastive": ("contrastive", "batch-all"),
        "triplet, random": ("triplet", "random"),
        "triplet, semi-hard": ("triplet", "semi-hard"),
        "triplet, batch-hard": ("triplet", "batch-hard"),
    }


def test_names_tell_cells_apart_and_a_cell_that_never_ran_has_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path))
    assert len({cell.name for cell in cells()}) == len(cells())
    assert all(face_losses.card_of(cell) is None for cell in cells())


def test_the_table_names_the_whole_budget_and_puts_stages_last() -> None:
    figures = {"minutes": "5.0", "accuracy": "0.9", "tar@fmr=0.01": "0.5", "tar@fmr=0.001": "0.25", "eer": "0.1"}
    rows = [
        {"loss": "", "pretraining": "distillation", "epochs": "1", **figures},
        {"loss": "contrastive", "pretraining": "distillation", "epochs": "1", **figures},
    ]
    assert table(rows).splitlines()[2:] == [
        "| contrastive | distillation | 2, 1 | 0.9000 | 0.5000 | 0.2500 | 0.1000 | 5.0 |",
        "| (the stage alone) | distillation | 1, - | 0.9000 | 0.5000 | 0.2500 | 0.1000 | 5.0 |",
    ]


def test_the_plot_is_drawn_from_the_rows(tmp_path: Path) -> None:
    rows = [
        {"loss": Cell(loss, "").loss, "pretraining": "", "step": str(step), "active": str(share)}
        for loss in LOSSES
        if loss.startswith("triplet")
        for step, share in ((30, 0.9), (60, 0.4))
    ]
    path = tmp_path / "plot.png"
    path.write_bytes(draw(rows))
    with Image.open(path) as picture:
        assert len(picture.getcolors(1 << 20) or []) > len(LOSSES)
