"""The run's folder: recipe, checkpoints, history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from training.core.errors import RunError
from training.core.run_folder import Progress, Run


class Train(BaseModel):
    """Settings; `momentum` is newer than the saved runs."""

    epochs: int = 2
    lr: float = 0.1
    momentum: float = 0.0


class Form(BaseModel):
    """A recipe."""

    name: str = "r"
    train: Train = Train()


RECIPE = Form()


def row(epoch: int) -> dict[str, float]:
    return {"epoch": float(epoch), "lr": 0.1, "train/loss": 1.0 / epoch, "validation/loss": 2.0 / epoch}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with all files after its second epoch."""
    created = Run(tmp_path / "r")
    created.begin(RECIPE)
    created.save_best(2, {"net": {"w": torch.ones(2)}})
    created.save_last(Progress(step=8, best_epoch=2, history=[row(1), row(2)]), {"net": {"model": {}}}, None, 1)
    return created


def test_a_folder_holds_one_run(run: Run) -> None:
    with pytest.raises(RunError, match="already holds a run: --resume continues it, --overwrite deletes it"):
        run.begin(RECIPE)
    for folder in (run.folder, run.folder / "new"):
        Run(folder).begin(RECIPE, overwrite=True)
        assert [path.name for path in folder.iterdir()] == ["recipe.toml"]


def test_a_run_of_another_recipe_is_not_resumed(run: Run, tmp_path: Path) -> None:
    run.begin(RECIPE, resume=True)
    other = Form(train=Train(epochs=3, momentum=0.9))
    with pytest.raises(RunError, match=r"differs in train\.epochs, train\.momentum"):
        run.begin(other, resume=True)
    with pytest.raises(RunError, match="there is no run to resume"):
        Run(tmp_path / "nothing").begin(RECIPE, resume=True)


def test_run_that_is_older_than_a_setting_is_resumed_with_its_default(run: Run) -> None:
    (run.folder / "recipe.toml").write_text('name = "r"\n[train]\nepochs = 2\nlr = 0.1\n')
    run.begin(RECIPE, resume=True)
    with pytest.raises(RunError, match=r"differs in train\.momentum"):
        run.begin(Form(train=Train(momentum=0.9)), resume=True)
    (run.folder / "recipe.toml").write_text('name = "r"\n[train]\nepochs = "many"\nlr = 0.1\n')  # now invalid
    with pytest.raises(RunError, match=r"differs in train\.epochs"):
        run.begin(RECIPE, resume=True)


def test_saved_checkpoints_are_loaded(run: Run) -> None:
    state = run.load_last(1)
    assert state["progress"] == Progress(step=8, best_epoch=2, history=[row(1), row(2)])
    assert (state["processes"], state["threads"]) == (1, torch.get_num_threads())
    assert torch.equal(run.load_best()["networks"]["net"]["w"], torch.ones(2))
    # The file can be read without this package.
    assert torch.load(run.folder / "best.pt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_missing_and_damaged_files_are_named(run: Run, name: str) -> None:
    data = (run.folder / name).read_bytes()
    middle = len(data) // 2
    for damaged in (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], data[:-1], b""):
        (run.folder / name).write_bytes(damaged)
        with pytest.raises(RunError, match=f"{name} is damaged"):
            run.load_last(1)
    (run.folder / name).unlink()
    with pytest.raises(RunError, match=f"{name}: No such file"):
        run.load_last(1)


def test_older_best_weights_and_other_numbers_of_processes_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match="started with 1 processes, not 2"):
        run.load_last(2)
    run.save_best(1, {})
    with pytest.raises(RunError, match=r"best\.pt is older"):
        run.load_last(1)


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    other = Run(tmp_path / "r", main=False)
    other.begin(RECIPE)
    other.save_last(Progress(), {}, None, 2)
    other.save_best(1, {})
    other.log([row(1)])
    other.finish(Progress(history=[row(1)]))
    assert not (tmp_path / "r").exists()


def test_history_is_written_as_json_plot_and_tensorboard(run: Run) -> None:
    run.log([row(1)])
    run.log([row(1), row(2)])
    run.finish(Progress(history=[row(1), row(2)], best_epoch=2))
    # A resumed run writes epoch 2 again, in place of the row that the killed run wrote.
    again = Run(run.folder)
    again.log([row(1), row(2)])
    again.finish(Progress(history=[row(1), row(2)], best_epoch=2))
    assert json.loads((run.folder / "history.json").read_text()) == [row(1), row(2)]
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [(1, 2.0), (2, 1.0)]
    with Image.open(run.folder / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
