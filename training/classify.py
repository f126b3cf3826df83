"""Train a classifier: `python -m training.classify training/recipes/lenet5-mnist.toml`.

On several GPUs: `accelerate launch --num_processes 4 -m training.classify RECIPE`. On a CPU, accelerate's own `--cpu`
starts a single process whatever `--num_processes` says; two processes (gloo) are started by
`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m training.classify RECIPE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

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
from models.tta import VIEWS, Tta
from training.core.errors import TrainingError
from training.core.initialise import Start, begin_as_identity, set_norms, whiten
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.seeds import derive
from training.core.trainer import Learner, fit, gather_rows, make_accelerator
from training.datasets import images as data
from training.datasets.augment import Colours, augment, blend, colour_basis, first_flips, mirror
from training.metrics.classification import classification, predict, probabilities
from training.recipe.config import Recipe, load_recipe, runs_folder

cli = typer.Typer(add_completion=False)


class Classification:
    """The task: cross-entropy on augmented pictures, the best epoch by accuracy on the validation split."""

    monitor = "accuracy"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: Recipe, images: data.ImageSet, accelerator: Accelerator):
        self.recipe = recipe
        self.images = images
        self.start = Start(recipe) if recipe.model.start else None
        self.config = configure(
            recipe.model.architecture,
            (self.start.config(recipe) if self.start else recipe.model.config)
            | {"num_classes": len(images.classes), "in_channels": recipe.preprocess.channels},
        )
        self.accelerator = accelerator
        rows, self._held_out = data.stratified_split(images.labels, recipe.data.validation, recipe.seed)
        self._rows = data.stratified_sample(images.labels, rows, recipe.data.train, recipe.seed)
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
        if recipe.train.identity:
            begin_as_identity(module)
        set_norms(module, recipe.train)
        if recipe.train.whiten:
            first = whiten(module, images, self._rows, recipe.preprocess)
            first.weight.requires_grad_(not recipe.train.freeze_whitening)
        if self.start:
            self.start.give(module)
        self._features = module.get_submodule("features")
        if recipe.model.freeze:
            self._features.requires_grad_(False)
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"classifier": self._learner}
        no_basis = torch.zeros(recipe.preprocess.channels, recipe.preprocess.channels)
        basis = colour_basis(images.images, self._rows) if recipe.augment.colour_pca else no_basis
        self._flips = first_flips(len(images.labels), recipe.seed)
        self._colours = Colours(recipe.preprocess.mean, basis)

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        rows = self._rows[self._batches(epoch, index)]
        device = self.accelerator.device
        pixels = torch.from_numpy(np.asarray(self.images.images[rows])).to(device)  # uint8 [N, H, W, C]
        labels = torch.from_numpy(self.images.labels[rows]).to(device)
        images = pixels.movedim(-1, 1).float()
        if self.recipe.augment.flip == "alternating":
            images = mirror(images, self._flips[rows] ^ bool(epoch % 2))
        images = augment(images, self.recipe.augment, generator, self._colours)
        targets = labels
        if self.recipe.augment.mixup or self.recipe.augment.cutmix:
            targets = F.one_hot(labels, len(self.images.classes)).float()
            images, targets = blend(images, targets, self.recipe.augment, generator)
        images = self.recipe.preprocess.normalise(images.movedim(1, -1))
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self._learner.model.train()
        if self.recipe.model.freeze:
            self._features.eval()  # or batch norm would go on counting, and what is dropped out would be missed
        logits, loss = self._logits_and_loss(images, targets)
        self._learner.update(loss)
        return {"loss": loss.detach(), "accuracy": (logits.argmax(dim=1) == labels).float().mean()}

    def _logits_and_loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier's logits, and its loss with the weighted losses of its auxiliary classifiers, if it has some.

        Szegedy et al., "Going Deeper with Convolutions", CVPR 2015.
        """
        train, model = self.recipe.train, self._learner.model
        outputs = model(images, auxiliary=True) if has_auxiliary(self.config) else (model(images),)
        main, *others = (F.cross_entropy(logits, targets, label_smoothing=train.label_smoothing) for logits in outputs)
        return outputs[0], main + train.auxiliary_weight * sum(others)

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        figures = classification(probabilities(self.held_out_logits(self._learner.network), 1.0), self.held_out_labels)
        return {"loss": figures["nll"], "accuracy": figures["accuracy"]}

    def held_out_logits(self, network: nn.Module, tta: Tta = "none") -> Tensor:
        """Logits of the validation split's views [V, validation, K] on the CPU, each process computing its share."""
        runtime = TorchRuntime(network, self.accelerator.device)

        def compute(rows: data.Indices) -> Tensor:
            logits = predict(runtime, self.images, self._held_out[rows], self.recipe.preprocess, tta=tta)
            return logits.movedim(0, 1).contiguous()  # [rows, V, K]

        return gather_rows(self.accelerator, len(self._held_out), compute).movedim(0, 1)


def has_auxiliary(config: Any) -> bool:
    """Whether the network has auxiliary classifiers: `forward(images, auxiliary=True)` answers their logits, too."""
    return bool(getattr(config, "auxiliary", False))


def setup(recipe: Recipe, run_name: str | None, *, resume: bool, overwrite: bool) -> tuple[Classification, Run]:
    """The run's folder with the resolved recipe in it, the data, the network."""
    accelerator = make_accelerator(recipe.train)
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    run.begin(recipe, resume=resume, overwrite=overwrite)
    with accelerator.local_main_process_first():  # one decodes, the others find it done
        images = data.load(recipe.data.name, "train", recipe.preprocess)
    return Classification(recipe, images, accelerator), run


def export(task: Classification, run: Run, progress: Progress) -> ModelCard | None:
    """Calibrate the best epoch's network on the validation split and write it as the service reads it; main only."""
    recipe, labels = task.recipe, task.held_out_labels
    network, config = _served(task, run.load_best()["networks"]["classifier"])
    logits = {kind: task.held_out_logits(network, kind) for kind in VIEWS}
    if not run.main:
        return None
    temperature = fit_temperature(logits["none"][0], labels)
    measured = {kind: classification(probabilities(logits[kind], temperature), labels) for kind in VIEWS}
    plain = measured["none"]
    harmless = [kind for kind in VIEWS if measured[kind]["accuracy"] >= plain["accuracy"]]
    tta = min(harmless, key=lambda kind: measured[kind]["nll"])
    where = f"{recipe.data.name} validation ({recipe.data.validation:,} cut from train)"
    figures = plain | ({} if tta == "none" else {f"{name}_tta": value for name, value in measured[tta].items()})
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        network,
        name=recipe.name,
        description=recipe.description,
        task="classify",
        architecture=recipe.model.architecture,
        config=asdict(config),
        preprocess=recipe.preprocess,
        classes=task.images.classes,
        temperature=temperature,
        tta=tta,
        metrics=[Metric(name=name, value=value, data=where) for name, value in figures.items()],
        training=_account(task, progress),
        **_provenance(task),
    )


def _served(task: Classification, state: Mapping[str, Tensor]) -> tuple[nn.Module, Any]:
    """The network as it is served, with its config: without auxiliary classifiers.

    A fresh module: what training's has been through (mixed precision, wrappers) stays there.
    """
    config = task.config
    if has_auxiliary(config):
        config = replace(config, auxiliary=False)
        state = {name: value for name, value in state.items() if not name.startswith("auxiliary.")}
    network = build(task.recipe.model.architecture, asdict(config))
    network.load_state_dict(dict(state))
    return network, config


def _provenance(task: Classification) -> dict[str, str]:
    """The card's data, source and licence: the recipe's words, and those of the card that the network started from."""
    said: dict[str, str] = task.recipe.card.model_dump()
    if task.start:
        card = task.start.card
        said["data"] += f"; started from {card.name} {card.version}, trained on: {card.data}"
        said["license"] += f"; of {card.name}, which it started from: {card.license}"
    return said


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
