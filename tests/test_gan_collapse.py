"""The demonstration of a collapse: one game, two losses, and the way from rows to a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from benchmarks import gan_collapse, tables
from benchmarks.gan_collapse import COLUMNS, RUNS, draw, recipe_of
from training.core.errors import CollapsedError
from training.recipe.gan_config import GanRecipe

FIGURES = {"classes": 9.0, "modes": 40.0, "diversity": 0.9, "recall": 0.5, "frechet": 30.0}


def test_the_runs_differ_in_the_loss_alone() -> None:
    recipes = {run: recipe_of(run).model_dump() for run in RUNS}
    assert [recipes[run]["game"]["loss"] for run in RUNS] == ["minimax", "wasserstein"]
    for recipe in recipes.values():
        del recipe["name"], recipe["game"]["loss"], recipe["game"]["penalty"]
    assert recipes["minimax"] == recipes["wasserstein"]


@pytest.mark.parametrize(("collapsing", "code"), [("minimax", 0), ("wasserstein", 1)])
def test_each_run_ends_as_a_row_says(
    collapsing: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: GanRecipe) -> None:
        folder = tmp_path / "runs" / recipe.name
        folder.mkdir(parents=True)
        row = {f"validation/{name}": value for name, value in FIGURES.items()}
        rows = ", ".join(
            str({"epoch": float(epoch), "train/generator_gradient": 0.5, **row}).replace("'", '"') for epoch in (1, 2)
        )
        (folder / "history.json").write_text(f"[{rows}]")
        if recipe.name.endswith(collapsing):
            raise CollapsedError("it has collapsed", FIGURES | {"classes": 2.0})

    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(gan_collapse, "train", train)
    monkeypatch.setattr(gan_collapse, "RESULTS", tmp_path / "results.csv")
    monkeypatch.setattr(gan_collapse, "PICTURE", tmp_path / "picture.png")
    with pytest.raises(typer.Exit) as ended:
        gan_collapse.main(draw_only=False)
    assert ended.value.exit_code == code
    rows = tables.read(tmp_path / "results.csv")
    assert [(row["run"], row["epoch"]) for row in rows if row["run"] == collapsing] == [
        (collapsing, epoch) for epoch in "123"
    ]
    (stopped,) = [row for row in rows if row["stopped"]]
    assert (stopped["classes"], stopped["generator_gradient"], stopped["stopped"]) == ("2", "", "it has collapsed")
    assert sum(row["seconds"] != "" for row in rows) == 2
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 1000


def test_a_stopped_run_is_marked_in_the_picture() -> None:
    def row(run: str, epoch: int, stopped: str = "") -> Mapping[str, str]:
        values = {name: str(value) for name, value in FIGURES.items()}
        empty = dict.fromkeys(COLUMNS, "")
        return empty | values | {"run": run, "epoch": str(epoch), "generator_gradient": "0.1", "stopped": stopped}

    plain = [row(run, epoch) for run in RUNS for epoch in (1, 2)]
    marked = [*plain[:1], row("minimax", 2, "collapsed"), *plain[2:]]
    one, other = (np.asarray(Image.open(io.BytesIO(draw(rows)))) for rows in (plain, marked))
    assert one.shape == other.shape
    assert (one != other).any()
