"""The last steps of all training scripts: fit, export the best weights with their card, print a summary."""

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
from training.core.distributed import on_main, require_agreement
from training.core.errors import exit_on_error
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.trainer import TrainingTask, fit, make_accelerator
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


class ExportTask(TrainingTask, Protocol):
    """A task whose best network is exported."""

    recipe: Any

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Build, measure and calibrate the network whose best states `networks` holds, by the learner's name.

        Called on every process.
        """
        ...


TaskT = TypeVar("TaskT", bound=TrainingTask)
Setup = Callable[[Any, Accelerator, Path], TaskT]


def begin(
    setup: Setup[TaskT], recipe: Any, run_name: str | None = None, *, resume: bool = False, overwrite: bool = False
) -> tuple[TaskT, Run]:
    """Return the task from `setup(recipe, accelerator, run folder)`, and the run.

    The folder is VESTIBULE_RUNS/<run_name>, by default the recipe's name. It is changed only after `setup` succeeds.

    Raises:
        RunError: see `Run.begin`, `require_agreement`. TrainingError: see `setup`.
    """
    accelerator = make_accelerator(recipe.train)
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    arguments = repr((recipe.model_dump_json(), run.folder.name, resume, overwrite))
    require_agreement(accelerator, runs_folder(), arguments)
    task = setup(recipe, accelerator, run.folder)
    on_main(accelerator, lambda: run.begin(recipe, resume=resume, overwrite=overwrite))
    return task, run


def export(task: ExportTask, run: Run, progress: Progress) -> ModelCard | None:
    """Write the best epoch's network and its card to the run's export/<name>.

    Returns the card on the main process, None on the others.
    """
    recipe = task.recipe
    trained = task.best_model(on_main(task.accelerator, run.load_best)["networks"])
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


def command(
    form: type[Section],
    setup: Setup[TaskT],
    finish: Callable[[TaskT, Run, Progress], str | None],
    description: str,
) -> typer.Typer:
    """Return the command line of a training script: read a recipe of the class `form`, set up, fit and `finish`.

    The line that `finish` returns, if any, is printed.
    """
    cli = typer.Typer(add_completion=False)

    @cli.command(help=description)
    def main(
        path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, as those in training/recipes.")],
        run_name: Annotated[
            str | None, typer.Option("--run", help="The run's folder under VESTIBULE_RUNS; default: the recipe's name.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Continue from last.pt.")] = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
        overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
    ) -> None:
        with exit_on_error():
            recipe: Any = read_recipe(form, path, overrides or ())
            task, run = begin(setup, recipe, run_name, resume=resume, overwrite=overwrite)
            summary = finish(task, run, fit(task, run, recipe.train, recipe.seed, resume=resume))
            task.accelerator.end_training()
        if summary:
            typer.echo(summary)

    return cli
