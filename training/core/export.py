"""The common end of the training scripts: fit, export the best weights with their card, print a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import nn

from models import checkpoint
from models.card import Metric, ModelCard, Training
from models.registry import lookup
from training.core.errors import exit_on_error
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.trainer import TrainingTask, fit
from training.recipe.config import Section, read_recipe, runs_folder


@dataclass(frozen=True)
class TrainedModel:
    """The network of the best epoch, as it is served, with the part of its card that depends on the task.

    `figures` were measured on `data`; `card` holds further fields of `ModelCard`, such as `classes` or `temperature`.
    """

    network: nn.Module
    config: Any
    figures: Mapping[str, float]
    data: str
    card: Mapping[str, Any] = field(default_factory=dict)


class RunTask(TrainingTask, Protocol):
    """A task that a command can train."""

    accelerator: Accelerator


class ExportTask(RunTask, Protocol):
    """A task whose best network is exported."""

    recipe: Any

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Build, measure and calibrate the network whose best states `networks` holds, by the learner's name.

        Called on every process.
        """
        ...


TaskT = TypeVar("TaskT", bound=RunTask)


def begin_run(recipe: Any, run_name: str | None, accelerator: Accelerator, *, resume: bool, overwrite: bool) -> Run:
    """Return the run, whose folder under VESTIBULE_RUNS has the resolved recipe in it; `run_name` None: the recipe's.

    Raises:
        RunError: see `Run.begin`.
    """
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    run.begin(recipe, resume=resume, overwrite=overwrite)
    return run


def export(task: ExportTask, run: Run, progress: Progress) -> ModelCard | None:
    """Write the best epoch's network and its card to the run's export/<name>.

    Returns the card on the main process, None on the others.
    """
    recipe, trained = task.recipe, task.best_model(run.load_best()["networks"])
    if not run.main:
        return None
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        trained.network,
        name=recipe.name,
        description=recipe.description,
        task=lookup(recipe.model.architecture).task,
        architecture=recipe.model.architecture,
        config=asdict(trained.config),
        preprocess=recipe.preprocess,
        metrics=[Metric(name=name, value=value, data=trained.data) for name, value in trained.figures.items()],
        training=Training(
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            seed=recipe.seed,
            epochs=recipe.train.epochs,
            best_epoch=progress.best_epoch,
            wall_time_s=round(progress.wall_time_s, 1),
            hardware=hardware(task.accelerator.device),
            processes=task.accelerator.num_processes,
            versions=versions(),
        ),
        **(recipe.card.model_dump() | trained.card),
    )


def export_and_summarise(task: ExportTask, run: Run, progress: Progress) -> str | None:
    """Export as `export` does. Returns a line for the terminal on the main process, None on the others."""
    card = export(task, run, progress)
    if card is None:
        return None
    figures = ", ".join(f"{metric.name} {metric.value:.4f}" for metric in card.metrics)
    return f"{run.folder / 'export' / card.name}: epoch {progress.best_epoch}, validation {figures}"


def train(
    setup: Callable[..., tuple[TaskT, Run]],
    recipe: Any,
    run_name: str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    finish: Callable[[TaskT, Run, Progress], str | None],
) -> str | None:
    """Set up the task, fit it and `finish` it. Returns what `finish` returns.

    `setup` takes the recipe, the run's name, `resume` and `overwrite`.

    Raises:
        TrainingError: see `setup`, `fit` and `finish`.
    """
    task, run = setup(recipe, run_name, resume=resume, overwrite=overwrite)
    progress = fit(task, run, recipe.train, seed=recipe.seed, accelerator=task.accelerator, resume=resume)
    summary = finish(task, run, progress)
    task.accelerator.end_training()
    return summary


def command(
    form: type[Section],
    setup: Callable[..., tuple[TaskT, Run]],
    finish: Callable[[TaskT, Run, Progress], str | None],
    description: str,
) -> typer.Typer:
    """Return the command line of a training script, which trains by a recipe of the class `form`; see `train`."""
    cli = typer.Typer(add_completion=False)

    @cli.command(help=description)
    def main(
        path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, as those in training/recipes.")],
        run: Annotated[
            str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: the recipe's name.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue from last.pt.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
        overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
    ) -> None:
        with exit_on_error():
            recipe = read_recipe(form, path, overrides or ())
            summary = train(setup, recipe, run, resume=resume, overwrite=overwrite, finish=finish)
        if summary:
            typer.echo(summary)

    return cli
