"""The short runs behind docs/ideas.md: what they cost, what is equal in them, the way from runs to a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks.experiments import ideas, ideas_cells, ideas_report
from benchmarks.experiments.ideas_cells import EXPERIMENTS, Cell, Experiment, Job, cost, find, minutes, pilots, runs
from benchmarks.experiments.ideas_report import Row, curve, draw, markdown, of_experiment, read, report, spread, write
from models.registry import build
from tests.training.conftest import RECIPE, png, strokes, write_parquet
from training.core.errors import DataError
from training.evaluation.markdown import replaced
from training.evaluation.plots import COLOURS

SEEDS = 2


def all_jobs() -> list[Job]:
    rates = {(experiment.name, cell.name): cell.rates[0] for experiment in EXPERIMENTS for cell in experiment.cells}
    return [*runs(list(EXPERIMENTS), SEEDS, rates), *(job for one in EXPERIMENTS for job in pilots(one))]


def network(job: Job) -> nn.Module:
    return build(job.recipe.model.architecture, job.recipe.model.config | {"num_classes": 10})


def first(experiment: str) -> list[Job]:
    """A job of each cell of that experiment."""
    return [Job(one, cell, 1, cell.rates[0]) for one in find([experiment]) for cell in one.cells]


def rows(experiment: Experiment, epochs: int = 3, cells: Iterable[Cell] = ()) -> list[Row]:
    return [
        Row(
            experiment=experiment.name,
            cell=cell.name,
            seed=seed,
            epoch=epoch,
            lr=0.03,
            parameters=1234567,
            macs=12_345_678,
            train_loss=2.0 / epoch,
            train_accuracy=0.1 * epoch + 0.02 * seed,
            validation_loss=2.1 / epoch,
            validation_accuracy=0.09 * epoch + 0.01 * number,
            seconds=20.0 * seed,
        )
        for number, cell in enumerate(cells or experiment.cells)
        for seed in range(1, SEEDS + 1)
        for epoch in range(1, epochs + 1)
    ]


def test_the_plan_fits_the_budget_and_reads_training_pictures_only() -> None:
    jobs = all_jobs()
    assert len({job.name for job in jobs}) == len(jobs)
    assert sum(minutes(job, 150) for job in jobs) <= 80
    assert max(minutes(job, job.cell.gflops) for job in jobs) <= 20
    for recipe in (job.recipe for job in jobs):
        assert (recipe.data.name, recipe.data.train, recipe.data.validation) == ("cifar10", 10_000, 2_000)
        assert (recipe.train.batch_size, recipe.train.precision, recipe.train.channels_last) == (128, "bf16", True)


def test_minutes_are_those_of_the_networks_products() -> None:
    """Of ResNet-20 behind a max-pool, counted layer by layer."""
    job = next(job for job in first("depth") if job.cell.name == "residual-20")
    stem = 32 * 32 * 27 * 16
    stages = [16 * 16 * 9 * 16 * 16 * 6] + [
        side * side * 9 * (half * 2 * half + 2 * half * 2 * half * 5) for side, half in ((8, 16), (4, 32))
    ]
    macs = stem + sum(stages) + 64 * 10
    assert cost(job.recipe).macs == macs
    assert cost(job.recipe).parameters == sum(parameter.numel() for parameter in network(job).parameters()) == 269722
    training, validation = 6 * macs * 10_000 * 20, 2 * macs * 2_000 * (20 + 10)
    assert minutes(job, 150) == pytest.approx((training + validation) / 150e9 / 60)


def test_densenet_and_resnet_are_as_large_as_one_another() -> None:
    resnet, densenet = (cost(job.recipe) for job in first("density"))
    assert densenet.parameters == pytest.approx(resnet.parameters, rel=0.02)
    assert densenet.macs == pytest.approx(resnet.macs, rel=0.15)


def test_the_other_experiments_leave_the_size_as_it_is() -> None:
    for name in ("activation", "switches"):
        assert len({cost(job.recipe).parameters for job in first(name)}) == 1
    plain_20, plain_56, residual_20, residual_56 = (cost(job.recipe) for job in first("depth"))
    assert (plain_20, plain_56) == (residual_20, residual_56)
    heads, none = (cost(job.recipe) for job in first("auxiliary"))
    assert heads.macs == none.macs
    assert heads.parameters > none.parameters


def layers_with_weights(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())


def test_depths_are_what_the_labels_say() -> None:
    for job in first("depth"):
        assert layers_with_weights(network(job)) == int(job.cell.name.split("-")[1])
    resnet, densenet = (network(job) for job in first("density"))
    assert (layers_with_weights(resnet), layers_with_weights(densenet)) == (14, 28)


def test_a_switch_changes_the_recipe_in_one_thing() -> None:
    every, *others = (job.recipe.model.config for job in first("switches"))
    changed = [{key for key in every.keys() | other.keys() if every.get(key) != other.get(key)} for other in others]
    assert changed == [{"overlapping_pooling"}, {"local_response_norm"}, {"dropout"}]


def test_every_cell_learns_a_step() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for job in (job for experiment in EXPERIMENTS for job in first(experiment.name)):
        module = network(job)
        auxiliary = bool(job.recipe.model.config.get("auxiliary"))
        answers: tuple[Tensor, ...] = module(images, auxiliary=True) if auxiliary else (module(images),)
        assert len(answers) == (3 if auxiliary else 1)
        torch.stack([nn.functional.cross_entropy(logits, labels) for logits in answers]).sum().backward()  # type: ignore[no-untyped-call]
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_unknown_experiments_are_refused() -> None:
    with pytest.raises(ValueError, match="no experiment nets; there are activation, "):
        find(["depth", "nets"])


def test_the_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    written = rows(EXPERIMENTS[0])
    write(tmp_path / "ideas.csv", written)
    assert read(tmp_path / "ideas.csv") == written
    assert read(tmp_path / "none.csv") == []


def test_a_curve_is_the_seeds_mean_error_as_far_as_all_have_come() -> None:
    cells = of_experiment(rows(EXPERIMENTS[0])[:-1], EXPERIMENTS[0])
    line = curve(cells["relu"], "train_accuracy")
    assert line.mean == pytest.approx((87, 77, 67))
    assert (line.low[0], line.high[0]) == pytest.approx((86, 88))
    assert len(curve(cells["sigmoid"], "train_accuracy").mean) == 2


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_a_few_rows_make_a_picture_with_a_colour_for_each_cell(experiment: Experiment) -> None:
    colours = []
    for cells in (experiment.cells, experiment.cells[1:]):
        with Image.open(io.BytesIO(draw(experiment, rows(experiment, 2, cells)))) as picture:
            assert (picture.format, picture.size) == ("PNG", (1200, 750))
            colours.append({colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []})
    expected = {ImageColor.getrgb(colour) for colour, _ in zip(COLOURS, experiment.cells, strict=False)}
    assert [expected - found for found in colours] == [set(), {ImageColor.getrgb(COLOURS[0])}]


def test_one_epoch_of_one_cell_is_a_picture_too() -> None:
    experiment = EXPERIMENTS[0]
    assert draw(experiment, rows(experiment, 1, experiment.cells[:1])).startswith(b"\x89PNG")


def test_labels_move_apart_and_keep_their_order() -> None:
    assert spread([50.0, 20.0], 5, 100) == [50.0, 20.0]
    assert spread([50.0, 50.0, 47.0, 80.0], 5, 100) == pytest.approx([49.0, 54.0, 44.0, 80.0])
    assert spread([99.0, 99.5, 98.0], 5, 100) == pytest.approx([95.0, 100.0, 90.0])


def test_the_table_says_where_each_cell_ended() -> None:
    experiment = EXPERIMENTS[0]
    lines = markdown(experiment, rows(experiment)).splitlines()
    assert lines[0] == (
        "![ReLU, tanh and sigmoid in a small AlexNet: training and validation error over epochs]"
        "(pictures/ideas-activation.png)"
    )
    assert lines[2] == "After 3 epochs; mean of seeds 1, 2, each in brackets."
    # Three epochs of 20 and of 40 seconds are 1 and 2 minutes.
    assert lines[6] == "| ReLU | 0.03 | 1,234,567 | 12.3 | 67.0 (68.0, 66.0) | 73.0 (73.0, 73.0) | 1.5 |"
    assert len(lines) == 9


def test_a_report_replaces_what_is_between_the_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "ideas.md"
    page.write_text((ideas_report.PAGE).read_text())
    activation, switches, *_ = EXPERIMENTS
    for epochs in (2, 3):
        written = report(EXPERIMENTS, rows(activation, epochs), page, tmp_path)
        assert written == [tmp_path / "ideas-activation.png"]
    text = page.read_text()
    assert "After 3 epochs" in text
    assert "After 2 epochs" not in text
    assert replaced(text, "activation", "") == replaced((ideas_report.PAGE).read_text(), "activation", "")
    with pytest.raises(DataError, match="switches:begin"):
        replaced("<!-- switches:end --> <!-- switches:begin -->", switches.name, "")


LENETS = Experiment(
    "lenets",
    "Two rates",
    {"train.epochs": 4},
    (
        Cell("one", "one rate", {}, (0.002,), 10),
        Cell("two", "two rates", {"train.optimizer": "sgd"}, (0.05, 100_000.0), 10),
    ),
)


@pytest.mark.slow
def test_runs_become_a_csv_a_picture_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    pictures, labels = strokes(130)
    write_parquet(tmp_path / "data/strokes/train.parquet", [png(picture) for picture in pictures], labels)
    recipe, page = tmp_path / "recipe.toml", tmp_path / "ideas.md"
    recipe.write_text(RECIPE)
    page.write_text("# Ideas\n<!-- lenets:begin -->\n<!-- lenets:end -->\nThe end\n")
    monkeypatch.setattr(ideas_cells, "EXPERIMENTS", (replace(LENETS, recipe=recipe),))
    for name, path in {"RESULTS": "ideas.csv", "PILOTS": "pilots.csv", "PAGE": "ideas.md", "PICTURES": ""}.items():
        monkeypatch.setattr(ideas, name, tmp_path / path)

    def invoke(*arguments: str) -> None:
        result = CliRunner().invoke(ideas.cli, arguments)
        assert result.exit_code == 0, result.output

    invoke("run", "--seeds", "1", "--only", "lenets")
    found = read(tmp_path / "ideas.csv")
    assert [(row.cell, row.epoch, row.lr) for row in found] == [
        (cell, epoch, lr) for cell, lr in (("one", 0.002), ("two", 0.05)) for epoch in range(1, 5)
    ]
    assert found[3].train_loss < found[0].train_loss
    tried = list(csv.DictReader((tmp_path / "pilots.csv").read_text().splitlines()))
    assert [(row["cell"], row["lr"]) for row in tried] == [("two", "0.05"), ("two", "100000")]
    assert [row["train_loss"] == "inf" for row in tried] == [False, True]

    # What is done is left alone, what was cut off before its export is finished, and both end where they ended before.
    done, cut = (tmp_path / "runs/ideas" / name for name in ("lenets-one-1", "lenets-two-1"))
    before = (done / "best.pt").stat().st_mtime_ns
    (cut / "export/lenets-two-1/card.json").unlink()
    invoke("run", "--seeds", "1")
    again = read(tmp_path / "ideas.csv")
    assert [replace(row, seconds=0) for row in again] == [replace(row, seconds=0) for row in found]
    assert (done / "best.pt").stat().st_mtime_ns == before

    invoke("plot")
    assert (tmp_path / "ideas-lenets.png").is_file()
    assert page.read_text().startswith("# Ideas\n<!-- lenets:begin -->\n![Two rates")
    assert page.read_text().endswith("<!-- lenets:end -->\nThe end\n")

    # A run of another recipe is not what this cell asks for: training says so, and so does the command.
    changed = replace(LENETS, recipe=recipe, changes={"train.epochs": 5})
    monkeypatch.setattr(ideas_cells, "EXPERIMENTS", (changed,))
    result = CliRunner().invoke(ideas.cli, ["run", "--seeds", "1"])
    assert result.exit_code == 1
    assert "differs in train.epochs" in result.stderr
