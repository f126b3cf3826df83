"""Train every shipped model, one after the other: `python -m training.queue`, which `make weights` runs.

`training/queue.toml` lists the models in order. A model is done if the card of the shipped weights has the current
recipe, or if that of its run's export has it and the export has been evaluated. A stopped run is resumed from its last
checkpoint; a run of another recipe is deleted and started again. A teacher's vectors are computed before they are
needed. If a step fails, the failure is logged and the next model is tried.

VESTIBULE_RUNS/queue.jsonl gets a line for each finished step: command, time, processor, core-hours.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pydantic import ValidationError

from models import checkpoint
from models.card import ModelCard
from training.core.errors import RecipeError, exit_on_error
from training.core.run_folder import hardware
from training.recipe.config import Recipe, Section, exported, read_recipe, runs_folder, teacher_files, weights_folder
from training.recipe.embed_config import EmbedRecipe
from training.recipe.gan_config import GanRecipe
from training.recipe.generative_config import AutoencodeRecipe

cli = typer.Typer(add_completion=False)

QUEUE = Path(__file__).with_name("queue.toml")
_FORMS: dict[str, type[Section]] = {
    "classify": Recipe,
    "embed": EmbedRecipe,
    "autoencode": AutoencodeRecipe,
    "gan": GanRecipe,
}
# By default glibc returns large blocks to the kernel after each training step, and page faults take a fifth of the next
# step (MobileFaceNet on one core: 16.6 images/s, with these settings 20.6).
_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class QueueEntry(Section):
    """One model of the queue.

    `recipe` is a path relative to the queue's file; `script` the module of `training` that trains it; `evaluate` the
    command of `training.evaluate` and its options, without the exported folder. `stage_of` names the model that starts
    from this one or is taught by it; a stage is not shipped, and is skipped if that model is done.
    """

    recipe: Path
    script: Literal["classify", "embed", "autoencode", "gan"]
    evaluate: tuple[str, ...] = ()
    stage_of: str = ""

    @property
    def name(self) -> str:
        """The model's name, the stem of its recipe's file."""
        return self.recipe.stem

    def read(self, overrides: Sequence[str] = ()) -> Any:
        """Read the recipe as the script does, with the same `overrides`.

        Raises:
            RecipeError: see `read_recipe`; the recipe has another name than its file.
        """
        recipe: Any = read_recipe(_FORMS[self.script], self.recipe, overrides)
        if recipe.name != self.name:
            raise RecipeError(f"{self.recipe}: the recipe is named {recipe.name}")
        return recipe


def read_queue(path: Path) -> list[QueueEntry]:
    """Read the models of a queue file, in order.

    Raises:
        RecipeError: the file is unreadable, not TOML, or has invalid values.
    """
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
        entries = [QueueEntry(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if unknown := {entry.stage_of for entry in entries} - {entry.name for entry in entries} - {""}:
        raise RecipeError(f"{path}: stage_of names {', '.join(sorted(unknown))}, which is not in the queue")
    return [entry.model_copy(update={"recipe": path.parent / entry.recipe}) for entry in entries]


def is_trained(folder: Path, recipe: Section) -> bool:
    """Return whether the folder has a model that was trained by the same recipe."""
    card = _card(folder)
    return card is not None and card.training is not None and _describes(card.training.recipe, recipe)


def _card(folder: Path) -> ModelCard | None:
    try:
        return checkpoint.read_card(folder)
    except checkpoint.CheckpointError:
        return None


def _describes(document: dict[str, Any], recipe: Section) -> bool:
    """Return whether a saved recipe, with the defaults of settings that it lacks, is `recipe`."""
    try:
        return type(recipe).model_validate(document) == recipe
    except ValidationError:
        return False


def _can_resume(recipe: Any) -> bool:
    """Return whether the run's folder has a checkpoint of the same recipe."""
    folder = runs_folder() / recipe.name
    return (folder / "last.pt").is_file() and _describes(tomllib.loads((folder / "recipe.toml").read_text()), recipe)


def log_file() -> Path:
    """Return the path of the log, a JSON object for each finished step, the oldest first."""
    return runs_folder() / "queue.jsonl"


def is_evaluated(card: ModelCard) -> bool:
    """Return whether the log says that the weights with this card have been evaluated."""
    expected = {"step": "evaluate", "model": card.name, "version": card.version, "exit": 0}
    for line in log_file().read_text(encoding="utf-8").splitlines() if log_file().is_file() else ():
        try:
            if expected.items() <= json.loads(line).items():
                return True
        except ValueError:  # a line that a power cut left incomplete
            continue
    return False


class Queue:
    """Runs the steps of each model as commands on the CPUs of this process.

    `overrides` are applied to all recipes (see `read_recipe`); with `reproduce`, shipped models are trained too.
    """

    def __init__(
        self, entries: Sequence[QueueEntry], lock: int, *, reproduce: bool = False, overrides: Sequence[str] = ()
    ):
        self._entries = {entry.name: entry for entry in entries}
        self._lock = lock
        self._reproduce = reproduce
        self._overrides = overrides

    def is_done(self, entry: QueueEntry) -> bool:
        """Return whether the model is shipped, or trained and evaluated."""
        shipped = not self._reproduce and is_trained(weights_folder() / entry.name, entry.read(self._overrides))
        return shipped or next(self._missing_steps(entry), None) is None

    def work(self, name: str) -> bool:
        """Train and evaluate a model, except for steps that are done; return whether all steps have succeeded."""
        entry = self._entries[name]
        done = self.is_done(entry) or (entry.stage_of != "" and self.is_done(self._entries[entry.stage_of]))
        succeeded = done or all(self._run(*step) for step in self._missing_steps(entry))
        if succeeded:
            typer.echo(f"{name}: done")
        return succeeded

    def _missing_steps(self, entry: QueueEntry) -> Iterator[tuple[str, str, list[str]]]:
        """Yield the steps that are not done yet: its name, the model, and the module of `training` with its options.

        Whether a step is missing is decided after the one before has been run.
        """
        recipe = entry.read(self._overrides)
        export = runs_folder() / entry.name / "export" / entry.name
        if not is_trained(export, recipe):
            teacher = recipe.loss.teacher if isinstance(recipe, EmbedRecipe) else ""
            if teacher and not any(file.is_file() for file in teacher_files(teacher, recipe.data.name)):
                options = ["--model", str(exported(teacher))] if exported(teacher).is_dir() else []
                yield "teach", teacher, ["teach", recipe.data.name, "--name", teacher, *options]
            option = "--resume" if _can_resume(recipe) else "--overwrite"
            overrides = [f"--set={override}" for override in self._overrides]
            yield "train", entry.name, [entry.script, str(entry.recipe), option, *overrides]
        if entry.evaluate and not is_evaluated(checkpoint.read_card(export)):
            command, *options = entry.evaluate
            yield "evaluate", entry.name, ["evaluate", command, str(export), *options]

    def _run(self, step: str, model: str, arguments: Sequence[str]) -> bool:
        command = f"training.{' '.join(arguments)}"
        typer.echo(f"{model}: {step}: {command}")
        started, before = datetime.now(UTC), resource.getrusage(resource.RUSAGE_CHILDREN)
        begun, cpus = time.monotonic(), _cpus()
        # The child inherits the lock: if only this process is killed, a new queue waits for the child to end.
        code = subprocess.run(  # noqa: S603
            [sys.executable, "-m", f"training.{arguments[0]}", *arguments[1:]],
            env=_ALLOCATOR | os.environ | {"OMP_NUM_THREADS": str(len(cpus))},
            pass_fds=[self._lock],
            check=False,
        ).returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        card = _card(runs_folder() / model / "export" / model)
        row = {
            "model": model,
            "step": step,
            "command": command,
            "started": started.isoformat(timespec="seconds"),
            "hours": round((time.monotonic() - begun) / 3600, 4),
            "core_hours": round(seconds / 3600, 4),
            "cpus": cpus,
            "processor": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            "version": card.version if card else None,
            "metrics": {f"{metric.name}, {metric.data}": metric.value for metric in card.metrics} if card else {},
            "exit": code,
        }
        with log_file().open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if code:
            typer.echo(f"{model}: {step} has failed with exit code {code}", err=True)
        return code == 0


def _cpus() -> list[int]:
    """Return the CPUs that this process may use; all CPUs on systems without affinity."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def parse_cpus(text: str) -> set[int]:
    """Parse `0`, `0,2` or `0-3` into a set of CPU numbers.

    Raises:
        RecipeError: invalid text, or CPUs that this machine does not have.
    """
    ranges = [part.split("-", maxsplit=1) for part in text.split(",")]
    try:
        chosen = {cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)}
    except (ValueError, OverflowError):
        chosen = set()
    if not chosen or not chosen <= set(range(os.cpu_count() or 1)):
        raise RecipeError(f"--cpus {text}: expected CPUs of 0 to {(os.cpu_count() or 1) - 1}, as 0 or 0,2 or 0-3")
    return chosen


@contextmanager
def only_queue() -> Iterator[int]:
    """Hold the lock of VESTIBULE_RUNS/queue.lock and yield its descriptor; wait for another queue to end."""
    runs_folder().mkdir(parents=True, exist_ok=True)
    with (runs_folder() / "queue.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            typer.echo("another queue, or a command that it has started, is running: waiting for it to end", err=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


@cli.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Only these; default: all.")] = None,
    queue: Annotated[Path, typer.Option(help="The file that lists the models.")] = QUEUE,
    cpus: Annotated[str | None, typer.Option(help="CPUs to use, as 0 or 0-3; default: all.")] = None,
    reproduce: Annotated[bool, typer.Option("--reproduce", help="Train shipped models again.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="As train.epochs=1, for all recipes; repeatable.")
    ] = None,
) -> None:
    """Train all shipped models by their recipes, one after the other."""
    with exit_on_error():
        if cpus:
            os.sched_setaffinity(0, parse_cpus(cpus))
        entries = read_queue(queue)
        in_order = [entry.name for entry in entries]
        if unknown := set(names or ()) - set(in_order):
            raise RecipeError(f"{queue} has no {', '.join(sorted(unknown))}; it has {', '.join(in_order)}")
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        with only_queue() as lock:
            trainer = Queue(entries, lock, reproduce=reproduce, overrides=overrides or ())
            failed = [name for name in in_order if (not names or name in names) and not trainer.work(name)]
    if failed:
        typer.echo(f"error: failed: {', '.join(failed)}; see {log_file()}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    cli()
