"""The training queue: finished steps are skipped, killed steps resumed, failures reported."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models import checkpoint
from tests.training.conftest import assert_error, png, strokes, write_parquet
from training import queue
from training.recipe.config import Recipe, read_recipe

ROOT = Path(__file__).parents[2]

QUEUE = """
[[model]]
recipe = "recipes/strokes.toml"
script = "classify"
evaluate = ["classify", "--data", "strokes", "--write"]

[[model]]
recipe = "recipes/more.toml"
script = "classify"
evaluate = ["classify", "--data", "strokes", "--write"]
"""


@pytest.fixture
def small(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue of two small classifiers, and a test split."""
    pictures, labels = strokes(40, seed=1)
    write_parquet(workshop / "data/strokes/test.parquet", [png(p) for p in pictures], labels)
    recipe = (workshop / "recipe.toml").read_text()
    (workshop / "recipes").mkdir()
    (workshop / "recipes/strokes.toml").write_text(recipe)
    more = recipe.replace('"strokes"', '"more"', 1).replace("seed = 3", "seed = 4")
    (workshop / "recipes/more.toml").write_text(more)
    (workshop / "queue.toml").write_text(QUEUE)
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(workshop / "weights"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return workshop


@pytest.fixture(autouse=True)
def same_process_as_before() -> Iterator[None]:
    """Restore the CPU affinity and the SIGTERM handler, which the queue changes."""
    cpus, handler = os.sched_getaffinity(0), signal.getsignal(signal.SIGTERM)
    yield
    os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGTERM, handler)


def invoke(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(queue.cli, ["--queue", str(folder / "queue.toml"), *options])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/queue.jsonl").read_text().splitlines()]


def test_the_shipped_queue_names_every_model_that_is_trained_here() -> None:
    entries = queue.read_queue(queue.QUEUE)
    names = [entry.name for entry in entries]
    shipped = {
        folder.name
        for folder in (ROOT / "weights").iterdir()
        if folder.is_dir() and checkpoint.read_card(folder).training is not None
    }
    stages = {entry.name for entry in entries if entry.stage_of}
    assert shipped <= set(names) - stages
    # What a model starts from, is taught by or is judged by comes before it.
    for entry in entries:
        recipe = entry.read().model_dump()
        before = names[: names.index(entry.name)]
        needed = {recipe["model"].get("init", ""), recipe.get("loss", {}).get("teacher", "")}
        folders = [recipe["model"].get("start", ""), recipe.get("teacher", {}).get("model", "")]
        needed |= {Path(folder).name for folder in folders}
        needed |= {Path(part).name for part in entry.evaluate if part.startswith("weights/")}
        assert needed & set(names) <= set(before), entry.name


def test_the_script_for_a_gpu_names_models_of_the_queue() -> None:
    names = {entry.name for entry in queue.read_queue(queue.QUEUE)}
    script = (ROOT / "benchmarks/gpu.sh").read_text()
    lists = dict(re.findall(r"^(\w+)=\(([^)]+)\)$", script, re.MULTILINE))
    assert lists.keys() == {"cifar", "by_recipe"}
    assert {name for text in lists.values() for name in text.split()} | {"efficientnet-cifar10"} <= names
    settings = re.findall(r"--set '?((?!train)[^'\s]+)", script)
    assert len(settings) == 3
    recipe = read_recipe(Recipe, ROOT / "training/recipes/efficientnet-cifar10.toml", settings)
    assert recipe.preprocess.size == (224, 224)


def test_shipped_weights_of_the_same_recipe_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESTIBULE_WEIGHTS", str(ROOT / "weights"))
    entry = next(entry for entry in queue.read_queue(queue.QUEUE) if entry.name == "lenet5-mnist")
    recipe = read_recipe(Recipe, entry.recipe)
    assert queue.is_trained(ROOT / "weights/lenet5-mnist", recipe)
    other = read_recipe(Recipe, entry.recipe, ["train.epochs=31"])
    assert not queue.is_trained(ROOT / "weights/lenet5-mnist", other)
    assert not queue.is_trained(ROOT / "weights/efficientnet-lite0", recipe)
    assert not queue.is_trained(ROOT / "weights/nothing", recipe)


def test_queue_trains_evaluates_skips_and_continues_after_failures(small: Path) -> None:
    edit(small / "recipes/strokes.toml", "lr = 0.002", "lr = 1e30")
    result = invoke(small, "--cpus", "0")
    assert result.exit_code == 1
    assert "failed: strokes" in result.output
    steps = [(row["model"], row["step"], row["exit"]) for row in rows(small)]
    assert steps == [("strokes", "train", 1), ("more", "train", 0), ("more", "evaluate", 0)]
    _, train, evaluate = rows(small)
    card = checkpoint.read_card(small / "runs/more/export/more")
    assert (evaluate["cpus"], evaluate["version"]) == ([0], card.version)
    assert evaluate["metrics"]["accuracy, strokes test (40)"] > 0.5
    assert 0 < train["core_hours"] <= 1.5 * train["hours"]
    assert train["processor"]
    assert evaluate["started"] > train["started"]

    assert (invoke(small, "more").output, len(rows(small))) == ("more: done\n", 3)
    # The run's folder is lost; its weights were shipped.
    shutil.copytree(small / "runs/more/export/more", small / "weights/more")
    shutil.rmtree(small / "runs/more")
    assert (invoke(small, "more").output, len(rows(small))) == ("more: done\n", 3)

    entries = queue.read_queue(small / "queue.toml")
    done = partial(queue.Queue, entries, 0)
    assert done().is_done(entries[1])
    assert not done(reproduce=True).is_done(entries[1])
    edit(small / "recipes/more.toml", "epochs = 4", "epochs = 2")
    assert not done().is_done(entries[1])  # another recipe of the same name is another model


def test_overrides_train_another_model_than_the_shipped_one(small: Path) -> None:
    assert invoke(small, "more").exit_code == 0
    shutil.copytree(small / "runs/more/export/more", small / "weights/more")
    result = invoke(small, "more", "--set", "train.epochs=2", "--set", "train.batch_size=64")
    assert result.exit_code == 0, result.output
    card = checkpoint.read_card(small / "runs/more/export/more")
    assert card.training is not None
    assert (card.training.recipe["train"]["epochs"], card.training.recipe["train"]["batch_size"]) == (2, 64)
    assert [row["step"] for row in rows(small)] == ["train", "evaluate"] * 2
    assert invoke(small, "more", "--set", "train.epochs=2", "--set", "train.batch_size=64").output == "more: done\n"
    assert invoke(small, "more").output == "more: done\n"  # the shipped one
    assert "unknown key train.epoch" in invoke(small, "more", "--set", "train.epoch=2").output


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_incomplete_log_line_is_ignored(small: Path) -> None:
    (small / "runs").mkdir(exist_ok=True)
    card = checkpoint.read_card(ROOT / "weights/lenet5-mnist")
    assert not queue.is_evaluated(card)
    row = {"step": "evaluate", "model": card.name, "version": card.version, "exit": 0}
    queue.log_file().write_text(f'{{"model": "lenet5-mn\n{json.dumps(row | {"exit": 1})}\n')
    assert not queue.is_evaluated(card)
    queue.log_file().write_text(f'{{"model": "lenet5-mn\n{json.dumps(row)}\n')
    assert queue.is_evaluated(card)


def test_stage_of_a_shipped_model_is_skipped(small: Path) -> None:
    (small / "queue.toml").write_text(QUEUE.replace("[[model]]", '[[model]]\nstage_of = "more"', 1))
    shutil.copytree(ROOT / "weights/lenet5-mnist", small / "weights/more")
    shutil.copy(ROOT / "training/recipes/lenet5-mnist.toml", small / "recipes/more.toml")
    edit(small / "recipes/more.toml", 'name = "lenet5-mnist"', 'name = "more"')
    card = checkpoint.read_card(small / "weights/more")
    assert card.training is not None
    training = card.training.model_copy(update={"recipe": card.training.recipe | {"name": "more"}})
    checkpoint.write_card(small / "weights/more", card.model_copy(update={"name": "more", "training": training}))
    result = invoke(small)
    assert (result.exit_code, result.output) == (0, "strokes: done\nmore: done\n")
    assert not (small / "runs/queue.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 3", "queue.toml"),
        ("[[model]]\nrecipe = 'a.toml'\nscript = 'paint'", "script"),
        ("[[model]]\nrecipe = 'a.toml'\nscript = 'gan'\ncolour = 1", "colour"),
        ("[[model]]\nrecipe = 'a.toml'\nscript = 'gan'\nstage_of = 'b'", "stage_of names b"),
        ("[[model]]\nrecipe = 'recipe.toml'\nscript = 'classify'", "the recipe is named strokes"),
        ("not toml", "queue.toml"),
    ],
)
def test_invalid_queues_are_refused(small: Path, text: str, message: str) -> None:
    (small / "queue.toml").write_text(text)
    result = invoke(small)
    assert result.exit_code == 1
    assert message in result.output


def test_wrong_options_are_named(small: Path) -> None:
    assert_error(invoke(small, "nothing"), "has no nothing; it has strokes, more")
    for cpus in ("x", "9999", ",", "1-0", "0-", "0-0-0"):
        assert_error(invoke(small, "--cpus", cpus), f"--cpus {cpus}: expected CPUs of 0 to")
    assert queue.parse_cpus("0,0-0") == {0}


def test_a_second_queue_waits_for_the_first(small: Path) -> None:
    (small / "runs").mkdir(exist_ok=True)
    with (small / "runs/queue.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(small)
        assert process.stderr is not None
        assert "waiting for it to end" in process.stderr.readline()
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode != 0


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the queue in its own process group."""
    command = [sys.executable, "-m", "training.queue", "--queue", str(folder / "queue.toml"), *options]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, start_new_session=True)


def finish(folder: Path, *options: str) -> None:
    """Run the queue to its end."""
    process = start(folder, *options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def wait_for(folder: Path, name: str, process: subprocess.Popen[str]) -> None:
    while not (folder / "runs" / name).exists():
        assert process.poll() is None, "the queue ended before it could be killed"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_queue_ends_with_the_same_files(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    # In the middle of the first training, after it, and in the middle of the second.
    for place in ("strokes/last.pt", "strokes/export/strokes/card.json", "more/last.pt"):
        process = start(small)
        wait_for(small, place, process)
        time.sleep(draw.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(small)
    killed = small / "runs"
    monkeypatch.setenv("VESTIBULE_RUNS", str(small / "unbroken"))
    finish(small)
    for name in ("strokes", "more"):
        cards = [checkpoint.read_card(folder / name / "export" / name) for folder in (killed, small / "unbroken")]
        # The card has the hash of the weights.
        assert cards[0].model_copy(update={"training": None}) == cards[1].model_copy(update={"training": None})


@pytest.mark.slow
def test_child_of_a_killed_queue_keeps_the_lock(small: Path) -> None:
    """A new queue waits for the training process of a killed queue, so that two do not write to one run's folder."""
    process = start(small, "strokes")
    wait_for(small, "strokes/last.pt", process)
    process.kill()
    process.wait()
    finish(small, "strokes")
    process.communicate()
    assert [row["step"] for row in rows(small)] == ["evaluate"]  # the training was the old queue's child
