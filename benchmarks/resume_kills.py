"""Kill a training run at random moments with SIGKILL, resume it each time, and compare it with one left in peace.

`python -m benchmarks.resume_kills` prints a table, writes benchmarks/results/resume_kills.csv, and exits with 1 unless
both runs export the very same model.safetensors. That holds on a CPU, at one number of threads.
"""

from __future__ import annotations

import csv
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from training.core.run_folder import Run
from training.recipe.config import Recipe, read_recipe, runs_folder

RECIPE = Path("training/recipes/lenet5-mnist.toml")
RESULTS = Path("benchmarks/results/resume_kills.csv")
OVERRIDES = ["train.epochs=4", "train.warmup_epochs=1"]


def command(run: str, *options: str) -> list[str]:
    """The training command of a user, for the run of that name."""
    changes = [part for override in OVERRIDES for part in ("--set", override)]
    return [sys.executable, "-m", "training.classify", str(RECIPE), "--run", run, *changes, *options]


def reached(run: str) -> int:
    """The optimizer step that last.pt stands at, 0 before there is one."""
    folder = runs_folder() / run
    if not (folder / "last.pt").exists():
        return 0
    return int(Run(folder).load_last(processes=1)["progress"].step)


def digest(run: str, recipe: Recipe) -> str:
    """sha256 of the exported weights."""
    path = runs_folder() / run / "export" / recipe.name / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill_once(run: str, options: list[str], target: int, delay: float) -> dict[str, float]:
    """Start or resume, wait until last.pt is at step `target` or later and `delay` seconds more, then SIGKILL."""
    started = time.perf_counter()
    process = subprocess.Popen(command(run, *options))
    try:
        while reached(run) < target and process.poll() is None:
            time.sleep(0.05)
        time.sleep(delay)
    finally:
        process.kill()
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"the run ended by itself with {process.returncode} before it could be killed")
    return {"seconds": round(time.perf_counter() - started, 1), "resumes_at_step": reached(run)}


def main(
    kills: Annotated[int, typer.Option(min=1)] = 6,
    seed: Annotated[int, typer.Option(help="Of the moments, not of the training.")] = 0,
) -> None:
    """One unbroken run, one killed `kills` times."""
    recipe = read_recipe(Recipe, RECIPE, OVERRIDES)
    subprocess.run(command("kills-unbroken", "--overwrite"), check=True)
    total = reached("kills-unbroken")
    per_epoch = total // recipe.train.epochs
    moments, rows = random.Random(seed), []
    for kill in range(kills):
        # One in each part of the run, the last one early enough that there is something left to kill.
        target = int(total * 0.9 * (kill + moments.random()) / kills)
        row = kill_once("kills-broken", ["--resume"] if kill else ["--overwrite"], target, moments.uniform(0.2, 1.2))
        step = int(row["resumes_at_step"])
        rows.append({"kill": kill + 1, **row, "epoch": step // per_epoch + 1, "step_in_epoch": step % per_epoch})
    subprocess.run(command("kills-broken", "--resume"), check=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(" ".join(f"{name:>16}" for name in rows[0]), f"   ({per_epoch} steps an epoch)")
    for line in rows:
        print(" ".join(f"{value:>16}" for value in line.values()))
    unbroken, broken = digest("kills-unbroken", recipe), digest("kills-broken", recipe)
    print(f"unbroken {unbroken}\nbroken   {broken}\n{'the same' if unbroken == broken else 'DIFFERENT'}")
    raise SystemExit(unbroken != broken)


if __name__ == "__main__":
    typer.run(main)
