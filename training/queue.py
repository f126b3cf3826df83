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
from pydantic import BaseModel, ConfigDict, ValidationError

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


class QueueEntry(BaseModel):
    """One model of the queue.

    `recipe` is a path relative to the queue's file; `script` the module of `training` that trains it; `evaluate` the
    command of `training.evaluate` and its options, without the exported folder. `stage_of` names the model that starts
    from this one; a stage is not shipped, and is skipped if that model is done.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Path
    script: Literal["classify", "embed", "autoencode", "gan"]
    evaluate: tuple[str, ...] = ()
    stage_of: str = ""

    @property
    def name(self) -> str:
        """The model's name, the stem of its recipe's file."""
        return self.recipe.stem

    def read(self) -> Any:
        """Read the recipe as the script does.

        Raises:
            RecipeError: see `read_recipe`; the recipe has another name than its file.
        """
        recipe: Any = read_recipe(_FORMS[self.script], self.recipe)
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


def is_trained(folder: Path, entry: QueueEntry, recipe: Section) -> bool:
    """Return whether the folder has a model that was trained by the same recipe."""
    try:
        card = checkpoint.read_card(folder)
        return card.training is not None and _FORMS[entry.script].model_validate(card.training.recipe) == recipe
    except (checkpoint.CheckpointError, ValidationError):
        return False


class QueueLog:
    """VESTIBULE_RUNS/queue.jsonl: one JSON object for each finished step, the oldest first."""

    def __init__(self) -> None:
        self.path = runs_folder() / "queue.jsonl"

    def write(self, **row: Any) -> None:
        """Append a line and fsync."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def evaluated(self, card: ModelCard) -> bool:
        """Return whether the weights with this card have been evaluated."""
        if not self.path.is_file():
            return False
        expected = {"step": "evaluate", "model": card.name, "version": card.version, "exit": 0}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a line that a power cut left incomplete
                continue
            if expected.items() <= row.items():
                return True
        return False


class Queue:
    """Runs the steps of each model as commands on the CPUs of this process."""

    def __init__(self, entries: Sequence[QueueEntry], log: QueueLog, lock: int, *, reproduce: bool = False):
        self._entries = {entry.name: entry for entry in entries}
        self._log = log
        self._lock = lock
        self._reproduce = reproduce

    def is_done(self, entry: QueueEntry) -> bool:
        """Return whether the model is shipped, or trained and evaluated."""
        recipe = entry.read()
        if not self._reproduce and is_trained(weights_folder() / entry.name, entry, recipe):
            return True
        export = runs_folder() / entry.name / "export" / entry.name
        if not is_trained(export, entry, recipe):
            return False
        return not entry.evaluate or self._log.evaluated(checkpoint.read_card(export))

    def work(self, name: str) -> bool:
        """Train and evaluate a model, except for steps that are done; return whether all steps have succeeded."""
        entry = self._entries[name]
        if self.is_done(entry) or (entry.stage_of and self.is_done(self._entries[entry.stage_of])):
            typer.echo(f"{name}: done")
            return True
        recipe = entry.read()
        export = runs_folder() / name / "export" / name
        if not is_trained(export, entry, recipe) and not self._train(entry, recipe):
            return False
        card = checkpoint.read_card(export)
        if entry.evaluate and not self._log.evaluated(card):
            command, *options = entry.evaluate
            if not self._run("evaluate", name, ["training.evaluate", command, str(export), *options]):
                return False
        typer.echo(f"{name}: done, {export}")
        return True

    def _train(self, entry: QueueEntry, recipe: Any) -> bool:
        if not self._teach(recipe):
            return False
        options = ["--resume"] if _can_resume(entry, recipe) else ["--overwrite"]
        return self._run("train", recipe.name, [f"training.{entry.script}", str(entry.recipe), *options])

    def _teach(self, recipe: Any) -> bool:
        """Compute the vectors of the recipe's teacher if they are missing; return whether that has succeeded."""
        if not isinstance(recipe, EmbedRecipe) or not recipe.loss.teacher:
            return True
        teacher, dataset = recipe.loss.teacher, recipe.data.name
        if any(file.is_file() for file in teacher_files(teacher, dataset)):
            return True
        model = exported(teacher)
        options = ["--model", str(model)] if model.is_dir() else []
        return self._run("teach", teacher, ["training.teach", dataset, "--name", teacher, *options])

    def _run(self, step: str, model: str, module: Sequence[str]) -> bool:
        command = [sys.executable, "-m", *module]
        typer.echo(f"{model}: {step}: {' '.join(module)}")
        started, before = datetime.now(UTC), resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.monotonic()
        cpus = _cpus()
        threads = {"OMP_NUM_THREADS": str(len(cpus))}
        # The child inherits the lock: if only this process is killed, a new queue waits for the child to end.
        process = subprocess.Popen(command, env=_ALLOCATOR | os.environ | threads, pass_fds=[self._lock])  # noqa: S603
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        card = _card(runs_folder() / model / "export" / model)
        self._log.write(
            model=model,
            step=step,
            command=" ".join(module),
            started=started.isoformat(timespec="seconds"),
            hours=round((time.monotonic() - begun) / 3600, 4),
            core_hours=round(seconds / 3600, 4),
            cpus=cpus,
            processor=hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            version=card.version if card else None,
            metrics={f"{metric.name}, {metric.data}": metric.value for metric in card.metrics} if card else {},
            exit=code,
        )
        if code:
            typer.echo(f"{model}: {step} has failed with exit code {code}", err=True)
        return code == 0


def _card(folder: Path) -> ModelCard | None:
    try:
        return checkpoint.read_card(folder)
    except checkpoint.CheckpointError:
        return None


def _can_resume(entry: QueueEntry, recipe: Section) -> bool:
    """Return whether the run's folder has a checkpoint of the same recipe."""
    folder = runs_folder() / str(getattr(recipe, "name", ""))
    try:
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
        same = _FORMS[entry.script].model_validate(tomllib.loads(text)) == recipe
    except (OSError, ValueError):  # ValidationError is a ValueError
        return False
    return same and (folder / "last.pt").is_file()


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
    try:
        chosen: set[int] = set()
        for part in text.split(","):
            first, dash, last = part.partition("-")
            chosen |= set(range(int(first), int(last if dash else first) + 1))
    except (ValueError, OverflowError):
        chosen = set()
    if not chosen or not chosen <= set(range(os.cpu_count() or 1)):
        raise RecipeError(f"--cpus {text}: expected CPUs of 0 to {(os.cpu_count() or 1) - 1}, as 0 or 0,2 or 0-3")
    return chosen


@contextmanager
def only_queue() -> Iterator[int]:
    """Hold the lock of VESTIBULE_RUNS/queue.lock and yield its descriptor; wait for another queue to end."""
    runs_folder().mkdir(parents=True, exist_ok=True)
    descriptor = os.open(runs_folder() / "queue.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            typer.echo("another queue, or a command that it has started, is running: waiting for it to end", err=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _exit_on_sigterm(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


@cli.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Only these; default: all.")] = None,
    queue: Annotated[Path, typer.Option(help="The file that lists the models.")] = QUEUE,
    cpus: Annotated[str | None, typer.Option(help="CPUs to use, as 0 or 0-3; default: all.")] = None,
    reproduce: Annotated[bool, typer.Option("--reproduce", help="Train shipped models again.")] = False,
) -> None:
    """Train all shipped models by their recipes, one after the other."""
    with exit_on_error():
        if cpus:
            os.sched_setaffinity(0, parse_cpus(cpus))
        entries = read_queue(queue)
        in_order = [entry.name for entry in entries]
        if unknown := set(names or ()) - set(in_order):
            raise RecipeError(f"{queue} has no {', '.join(sorted(unknown))}; it has {', '.join(in_order)}")
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
        with only_queue() as lock:
            trainer = Queue(entries, QueueLog(), lock, reproduce=reproduce)
            failed = [name for name in in_order if (not names or name in names) and not trainer.work(name)]
    if failed:
        typer.echo(f"error: failed: {', '.join(failed)}; see {QueueLog().path}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    cli()
