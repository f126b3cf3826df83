"""A training run that is killed at random moments exports the same weights as an unbroken run.

    pytest -m slow -s tests/soak/test_resume_kills.py --soak-size 6 --soak-results benchmarks/results

The size is the number of kills. The exports are equal on a CPU with one number of threads.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import tables
from tests.soak.conftest import Soak
from training.core.run_folder import Run
from training.recipe.config import Recipe, read_recipe, runs_folder

RECIPE = Path("training/recipes/lenet5-mnist.toml")
OVERRIDES = ["train.epochs=4", "train.warmup_epochs=1"]


def command(run: str, option: str) -> list[str]:
    """The command that trains the run of that name."""
    overrides = [part for override in OVERRIDES for part in ("--set", override)]
    return [sys.executable, "-m", "training.classify", str(RECIPE), "--run", run, *overrides, option]


def reached(run: str) -> int:
    """The optimizer step of the run's last.pt; 0 without one."""
    folder = runs_folder() / run
    if not (folder / "last.pt").exists():
        return 0
    return int(Run(folder).load_last(processes=1)["progress"].step)


def kill_once(run: str, option: str, target: int, delay: float) -> dict[str, float]:
    """Start the run, wait until last.pt has step `target` and for `delay` more seconds, then send SIGKILL."""
    started = time.perf_counter()
    process = subprocess.Popen(command(run, option))
    try:
        while reached(run) < target and process.poll() is None:
            time.sleep(0.05)
        time.sleep(delay)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    return {"seconds": round(time.perf_counter() - started, 1), "resumes_at_step": reached(run)}


@pytest.mark.slow
@pytest.mark.data
def test_a_killed_run_exports_the_weights_of_an_unbroken_run(
    soak: Soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: Callable[[str], Path]
) -> None:
    datasets("mnist")
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path))
    kills, recipe = soak.size or 2, read_recipe(Recipe, RECIPE, OVERRIDES)
    subprocess.run(command("unbroken", "--overwrite"), check=True)
    total = reached("unbroken")
    per_epoch = total // recipe.train.epochs
    rng, rows = random.Random(soak.seed), []
    for kill in range(kills):
        # One kill in each part of the run. The last part ends early, so that the run does not end before the kill.
        target = int(total * 0.9 * (kill + rng.random()) / kills)
        row = kill_once("broken", "--resume" if kill else "--overwrite", target, rng.uniform(0.2, 1.2))
        step = int(row["resumes_at_step"])
        rows.append({"kill": kill + 1, **row, "epoch": step // per_epoch + 1, "step_in_epoch": step % per_epoch})
        print(rows[-1])
    subprocess.run(command("broken", "--resume"), check=True)
    tables.write(soak.results / "resume_kills.csv", list(rows[0]), rows)
    unbroken, broken = (
        (tmp_path / run / "export" / recipe.name / "model.safetensors").read_bytes() for run in ("unbroken", "broken")
    )
    assert unbroken == broken
