"""Train a classifier: `python -m training.classify training/recipes/lenet5-mnist.toml`.

On several GPUs: `accelerate launch --num_processes 4 -m training.classify RECIPE`. On a CPU, accelerate's own `--cpu`
starts a single process whatever `--num_processes` says; two processes (gloo) are started by
`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m training.classify RECIPE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.calibration import fit_temperature
from models.card import Metric, ModelCard, Training
from models.registry import build, configure
from models.runtime import TorchRuntime
from training import data
from training.augment import augment, mixup
from training.config import Recipe, load_recipe, runs_folder
from training.errors import TrainingError
from training.loop import Learner, fit, gather_rows
from training.metrics import classification, predict, probabilities
from training.run import Progress, Run, hardware, versions
from training.seeds import derive

cli = typer.Typer(add_completion=False)


class Classification:
    """The task: cross-entropy on augmented pictures, the best epoch by accuracy on the validation split."""

    monitor = "accuracy"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: Recipe, images: data.ImageSet, accelerator: Accelerator):
        self.recipe = recipe
        self.images = images
        self.config = configure(
            recipe.model.architecture,
            recipe.model.config | {"num_classes": len(images.classes), "in_channels": recipe.preprocess.channels},
        )
        self.accelerator = accelerator
        self._rows, self._held_out = data.stratified_split(images.labels, recipe.data.validation, recipe.seed)
        self.held_out_labels = torch.from_numpy(images.labels[self._held_out])
        self._batches = data.Batches(
            len(self._rows),
            recipe.train.batch_size,
            recipe.seed,
            accelerator.process_index,
            accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = build(recipe.model.architecture, asdict(self.config))
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"classifier": self._learner}

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        rows = self._rows[self._batches(epoch, index)]
        device = self.accelerator.device
        pixels = torch.from_numpy(np.asarray(self.images.images[rows])).to(device)  # uint8 [N, H, W, C]
        labels = torch.from_numpy(self.images.labels[rows]).to(device)
        images = augment(pixels.movedim(-1, 1).float(), self.recipe.augment, generator)
        targets = labels
        if self.recipe.augment.mixup:
            targets = F.one_hot(labels, len(self.images.classes)).float()
            images, targets = mixup(images, targets, self.recipe.augment.mixup, generator)
        images = self.recipe.preprocess.normalise(images.movedim(1, -1))
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self._learner.model.train()
        logits = self._learner.model(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.train.label_smoothing)
        self._learner.update(loss)
        return {"loss": loss.detach(), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        figures = classification(
            probabilities([self.held_out_logits(self._learner.network)], 1.0), self.held_out_labels
        )
        return {"loss": figures["nll"], "accuracy": figures["accuracy"]}

    def held_out_logits(self, network: nn.Module, *, flip: bool = False) -> Tensor:
        """Logits of the validation split [validation, K] on the CPU, each process computing its share."""
        runtime = TorchRuntime(network, self.accelerator.device)

        def compute(rows: data.Indices) -> Tensor:
            return predict(runtime, self.images, self._held_out[rows], self.recipe.preprocess, flip=flip)

        return gather_rows(self.accelerator, len(self._held_out), compute)


def setup(recipe: Recipe, run_name: str | None, *, resume: bool, overwrite: bool) -> tuple[Classification, Run]:
    """The run's folder with the resolved recipe in it, the data, the network."""
    accelerator = Accelerator(mixed_precision=recipe.train.precision)
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    run.begin(recipe.model_dump(mode="json"), resume=resume, overwrite=overwrite)
    with accelerator.local_main_process_first():  # one decodes, the others find it done
        images = data.load(recipe.data.name, "train", recipe.preprocess)
    return Classification(recipe, images, accelerator), run


def export(task: Classification, run: Run, progress: Progress) -> ModelCard | None:
    """Calibrate the best epoch's network on the validation split and write it as the service reads it; main only."""
    recipe, labels = task.recipe, task.held_out_labels
    # A fresh module: what training's has been through (mixed precision, wrappers) stays there.
    network = build(recipe.model.architecture, asdict(task.config))
    network.load_state_dict(run.load_best()["networks"]["classifier"])
    plain, mirrored = task.held_out_logits(network), task.held_out_logits(network, flip=True)
    if not run.main:
        return None
    temperature = fit_temperature(plain, labels)
    single = classification(probabilities([plain], temperature), labels)
    double = classification(probabilities([plain, mirrored], temperature), labels)
    helps = double["accuracy"] >= single["accuracy"] and double["nll"] < single["nll"]
    where = f"{recipe.data.name} validation ({recipe.data.validation:,} cut from train)"
    figures = single | ({f"{name}_flip": value for name, value in double.items()} if helps else {})
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        network,
        name=recipe.name,
        description=recipe.description,
        task="classify",
        architecture=recipe.model.architecture,
        config=asdict(task.config),
        preprocess=recipe.preprocess,
        classes=task.images.classes,
        temperature=temperature,
        tta="flip" if helps else "none",
        metrics=[Metric(name=name, value=value, data=where) for name, value in figures.items()],
        training=_account(task, progress),
        **recipe.card.model_dump(),
    )


def _account(task: Classification, progress: Progress) -> Training:
    return Training(
        recipe=task.recipe.model_dump(mode="json"),
        seed=task.recipe.seed,
        epochs=task.recipe.train.epochs,
        best_epoch=progress.best_epoch,
        wall_time_s=round(progress.wall_time_s, 1),
        hardware=hardware(task.accelerator.device),
        processes=task.accelerator.num_processes,
        versions=versions(),
    )


@cli.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/lenet5-mnist.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train a classifier by its recipe; the model and its card end up in the run's export/."""
    try:
        recipe = load_recipe(path, overrides or ())
        task, folder = setup(recipe, run, resume=resume, overwrite=overwrite)
        progress = fit(task, folder, recipe.train, seed=recipe.seed, accelerator=task.accelerator, resume=resume)
        card = export(task, folder, progress)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    task.accelerator.end_training()
    if card is not None:
        figures = ", ".join(f"{metric.name} {metric.value:.4f}" for metric in card.metrics)
        typer.echo(f"{folder.folder / 'export' / card.name}: epoch {progress.best_epoch}, validation {figures}")


if __name__ == "__main__":
    cli()
