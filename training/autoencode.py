"""Train an autoencoder, variational or not, or a denoiser: `python -m training.autoencode RECIPE`.

As in training/recipes/cvae-mnist.toml. Several processes are started as `training.classify` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.card import Metric, ModelCard, Training
from models.denoiser import DenoiserConfig
from models.generative import ReconstructionSubmodel, with_label_planes
from models.registry import build
from models.vae import VAEConfig
from training.core.errors import TrainingError
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.seeds import derive, generator
from training.core.trainer import Learner, fit, gather_rows, make_accelerator
from training.datasets import images as data
from training.datasets.crops_and_noise import Pictures, add_fixed_noise, add_noise
from training.losses import generative
from training.recipe.config import read_recipe, runs_folder
from training.recipe.generative_config import AutoencodeRecipe

cli = typer.Typer(add_completion=False)

_ROWS_AT_ONCE = 100


class Autoencoding:
    """The task: back to the clean picture, through a latent or past the noise.

    The best epoch is that of the highest ELBO where pictures are to be generated, else of the highest PSNR.
    """

    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: AutoencodeRecipe, pictures: list[Pictures], accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.monitor = "elbo" if recipe.task == "generate" else "psnr"
        self.pictures = pictures
        self.classes = self.pictures[0].set.classes if recipe.model.conditional else ()
        self.config = recipe.config(len(self.classes))
        self.variational = isinstance(self.config, VAEConfig)
        self.steps_per_epoch = len(pictures) * min(one.per_epoch for one in pictures)
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = build(recipe.model.architecture, asdict(self.config))
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"autoencoder": self._learner}

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        turn, which = divmod(index, len(self.pictures))
        clean, numbers = self.pictures[which].batch(epoch, turn, self.recipe.augment, generator)
        clean, labels = clean.to(self.accelerator.device), self._labels(numbers)
        shown = clean if self.recipe.noise is None else add_noise(clean, self.recipe.noise, generator)
        if self.recipe.train.channels_last:
            shown = shown.contiguous(memory_format=torch.channels_last)
        self._learner.model.train()
        if self.variational:
            progress = epoch + index / self.steps_per_epoch
            return self._variational_step(shown, clean, labels, self._beta(progress), generator)
        answer = self._learner.model(shown) if self._blind else self._learner.model(shown, labels)
        loss = generative.distance(answer, clean, self.recipe.loss.distance)
        self._learner.update(loss)
        return {"loss": loss.detach()}

    def _variational_step(
        self, shown: Tensor, clean: Tensor, labels: Tensor, beta: float, draw: torch.Generator
    ) -> Mapping[str, Tensor]:
        noise = torch.randn(len(shown), self.config.latent, generator=draw).to(shown.device)
        reading = self._learner.model(shown, labels, noise)
        likelihood = generative.log_likelihood(reading.logits, clean, reading.log_scale)
        kl = generative.kl_to_prior(reading.mean, reading.log_variance)
        # For each number of a picture, so that clipping and learning rate mean the same at every size.
        loss = -generative.elbo(likelihood, kl, beta).mean() / clean[0].numel()
        self._learner.update(loss)
        bound = generative.elbo(likelihood, kl).mean()
        return {"loss": loss.detach(), "elbo": bound.detach(), "kl": kl.mean().detach()}

    @property
    def _blind(self) -> bool:
        """Whether the network takes pictures alone."""
        return isinstance(self.config, DenoiserConfig)

    def _beta(self, epochs: float) -> float:
        """The KL term's weight after so many epochs."""
        loss = self.recipe.loss
        return loss.beta * min(1.0, epochs / loss.beta_epochs) if loss.beta_epochs else loss.beta

    def _labels(self, numbers: data.Indices) -> Tensor:
        """One-hot float32 [N, K], or [N, 0]."""
        device = self.accelerator.device
        if not self.classes:
            return torch.zeros(len(numbers), 0, device=device)
        return F.one_hot(torch.from_numpy(numbers).to(device), len(self.classes)).float()

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        return self.figures(self._learner.network)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Of the validation pictures, the same on all processes: `psnr` in dB; of a VAE `elbo` and `kl` in nats, too.

        Each is a mean over pictures, then over data sets and strengths of noise; where there are several, their own
        PSNR follows as `psnr_cifar10_25`.
        """
        network.eval()
        strengths = (0.0,) if self.recipe.noise is None else self.recipe.noise.validation
        parts: dict[str, Tensor] = {}
        for pictures in self.pictures:
            for sigma in strengths:

                def compute(places: data.Indices, pictures: Pictures = pictures, sigma: float = sigma) -> Tensor:
                    return self._judge(network, pictures, pictures.held_out[places], sigma)

                parts[f"psnr_{pictures.name}_{sigma:g}"] = (
                    gather_rows(self.accelerator, len(pictures.held_out), compute).double().mean(dim=0)
                )
        names = ("psnr", "elbo", "kl") if self.variational else ("psnr",)
        figures = dict(zip(names, torch.stack(list(parts.values())).mean(dim=0).tolist(), strict=True))
        return figures if len(parts) == 1 else figures | {name: float(row[0]) for name, row in parts.items()}

    @torch.inference_mode()
    def _judge(self, network: nn.Module, pictures: Pictures, rows: data.Indices, sigma: float) -> Tensor:
        """PSNR, and of a VAE the ELBO by one sample and the KL: [len(rows), 1 or 3]."""
        restore = network if self._blind else ReconstructionSubmodel(network)
        columns = []
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = rows[first : first + _ROWS_AT_ONCE]
            clean, labels = (
                pictures.clean(chosen).to(self.accelerator.device),
                self._labels(pictures.set.labels[chosen]),
            )
            shown = add_fixed_noise(clean, chosen, sigma, self.recipe.seed) if sigma else clean
            restored = restore(shown if self._blind else with_label_planes(shown, labels)).clamp(0, 1)
            figures = [generative.decibels(generative.squared_error(restored, clean))]
            if self.variational:
                figures += self._bound(network, shown, clean, labels, chosen)
            columns.append(torch.stack(figures, dim=1))
        return torch.cat(columns)

    def _bound(
        self, network: nn.Module, shown: Tensor, clean: Tensor, labels: Tensor, rows: data.Indices
    ) -> list[Tensor]:
        """The ELBO and the KL, [N] each; the sample is a function of the seed and the rows."""
        draws = (generator(self.recipe.seed, "latent", int(row)) for row in rows)
        noise = torch.stack([torch.randn(self.config.latent, generator=draw) for draw in draws]).to(shown.device)
        reading = network(shown, labels, noise)
        kl = generative.kl_to_prior(reading.mean, reading.log_variance)
        likelihood = generative.log_likelihood(reading.logits, clean, reading.log_scale)
        return [generative.elbo(likelihood, kl), kl]


def setup(recipe: AutoencodeRecipe, run_name: str | None, *, resume: bool, overwrite: bool) -> tuple[Autoencoding, Run]:
    """The run's folder with the resolved recipe in it, the data, the network."""
    accelerator = make_accelerator(recipe.train)
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    run.begin(recipe, resume=resume, overwrite=overwrite)
    with accelerator.local_main_process_first():  # one decodes, the others find it done
        pictures = [
            Pictures(
                section,
                recipe.preprocess,
                recipe.train.batch_size,
                recipe.seed,
                process=accelerator.process_index,
                processes=accelerator.num_processes,
            )
            for section in recipe.data
        ]
    return Autoencoding(recipe, pictures, accelerator), run


def export(task: Autoencoding, run: Run, progress: Progress) -> ModelCard | None:
    """Measure the best epoch's network on the validation pictures and write it as the service reads it; main only."""
    recipe = task.recipe
    network = build(recipe.model.architecture, asdict(task.config))
    network.load_state_dict(run.load_best()["networks"]["autoencoder"])
    figures = task.figures(network.to(task.accelerator.device))
    if not run.main:
        return None
    where = ", ".join(f"{pictures.name} validation ({len(pictures.held_out):,})" for pictures in task.pictures)
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        network,
        name=recipe.name,
        description=recipe.description,
        task=recipe.task,
        architecture=recipe.model.architecture,
        config=asdict(task.config),
        preprocess=recipe.preprocess,
        classes=task.classes,
        metrics=[Metric(name=name, value=value, data=where) for name, value in figures.items()],
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
        **recipe.card.model_dump(),
    )


@cli.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/cvae-mnist.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train an autoencoder or a denoiser by its recipe; the model and its card end up in the run's export/."""
    try:
        recipe = read_recipe(AutoencodeRecipe, path, overrides or ())
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
