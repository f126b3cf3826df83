"""Train a generator against its discriminator or critic: `python -m training.gan training/recipes/gan-mnist.toml`.

They take turns: the discriminator's steps with the generator untouched, then the generator's with the discriminator
untouched; that is one step of the loop. One process does it all: gradients of gradients do not pass through
DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList

from models import checkpoint
from models.card import Metric, ModelCard, Training
from models.checkpoint import write_atomically
from models.gan import Discriminator
from models.generative import latents
from models.registry import build
from training.core.errors import RecipeError, TrainingError
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.seeds import derive
from training.core.trainer import Learner, fit, make_accelerator
from training.datasets.crops_and_noise import Pictures
from training.datasets.images import Indices
from training.losses import adversarial as losses
from training.metrics.contact_sheet import sheet
from training.metrics.feature_extractor import Extractor
from training.metrics.gan_monitor import Pixels, Watch, balance, gradient_norm
from training.recipe.config import read_recipe, runs_folder
from training.recipe.gan_config import GanRecipe

cli = typer.Typer(add_completion=False)

_ROWS_AT_ONCE = 250
# Batches of noise whose statistics the averaged generator's normalisation is given.
_SETTLING = 20
# Pictures on which the critic's slope is measured after each epoch.
_SLOPES = 256
_SHOWN = 100


class Adversaries:
    """The task: a generator that a discriminator cannot tell from the data.

    The best epoch is that of the lowest Frechet distance, in the features of the network that watches. With an `album`,
    a sheet of samples is left in it after each epoch.
    """

    monitor = "frechet"
    mode: Literal["max", "min"] = "min"

    def __init__(
        self, recipe: GanRecipe, pictures: Pictures, watch: Watch, accelerator: Accelerator, album: Path | None = None
    ):
        self.recipe = recipe
        self.pictures = pictures
        self.watch = watch
        self.accelerator = accelerator
        self.classes = pictures.set.classes if recipe.model.conditional else ()
        try:
            self.config, config = recipe.configs(len(self.classes))
            torch.manual_seed(derive(recipe.seed, "weights"))
            generator, discriminator = build(recipe.model.architecture, asdict(self.config)), Discriminator(config)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        self._turns = recipe.game.turns
        self.steps_per_epoch = pictures.per_epoch // self._turns
        self._critic = discriminator.score  # in float32, whatever the learner's precision is
        self._generator = Learner(generator, recipe.train, self.steps_per_epoch, accelerator)
        settings = recipe.train.model_copy(update={"ema": 0.0, "lr": recipe.train.lr * recipe.game.rate})
        self._discriminator = Learner(discriminator, settings, self.steps_per_epoch * self._turns, accelerator)
        self.learners = {"generator": self._generator, "discriminator": self._discriminator}
        self._album = album
        self._epoch = 0

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`. The figures are those of the last of the discriminator's steps, and of the generator's."""
        self._epoch = epoch + 1
        self._generator.model.train()
        self._discriminator.model.train()
        figures: Mapping[str, Tensor] = {}
        for turn in range(self._turns):
            figures = self._discriminate(epoch, index * self._turns + turn, generator)
        return {**figures, **self._generate(generator)}

    def _discriminate(self, epoch: int, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
        """One step of the discriminator; nothing of the generator changes."""
        game = self.recipe.game
        real, numbers = self.pictures.batch(epoch, batch, self.recipe.augment, draw)
        real, labels = self._laid_out(real), self._labels(torch.from_numpy(numbers))
        with untouched(self._generator.model), torch.no_grad():
            fake = self._generator.model(self._noise(len(real), draw), labels)
        scores = self._discriminator.model(real, labels), self._discriminator.model(fake, labels)
        loss = losses.discriminator_loss(game.loss, *scores)
        figures = {"discriminator_loss": loss.detach()}
        step = epoch * self.steps_per_epoch * self._turns + batch
        if game.penalty and step % game.penalty_every == 0:
            slopes = self._slopes(real, fake, labels, draw)
            loss = loss + game.penalty * game.penalty_every * losses.gradient_penalty(slopes)
        self._discriminator.update(loss)
        if game.clip:
            losses.clip_weights(self._discriminator.model, game.clip)
        figures |= _measured(game.loss, *scores)
        return figures | {"discriminator_gradient": gradient_norm(self._discriminator.model)}

    def _generate(self, draw: torch.Generator) -> dict[str, Tensor]:
        """One step of the generator; nothing of the discriminator changes."""
        count = self.recipe.train.batch_size
        labels = self._labels(torch.randint(max(1, len(self.classes)), (count,), generator=draw))
        with untouched(self._discriminator.model):
            fake = self._generator.model(self._noise(count, draw), labels)
            loss = losses.generator_loss(self.recipe.game.loss, self._discriminator.model(fake, labels))
            self._generator.update(loss)
        return {"generator_loss": loss.detach(), "generator_gradient": gradient_norm(self._generator.model)}

    def _slopes(
        self, real: Tensor, fake: Tensor, labels: Tensor, draw: torch.Generator, *, create_graph: bool = True
    ) -> Tensor:
        """Of the critic, [N], at a random point between each real and each generated picture."""
        shares = torch.rand(len(real), generator=draw).to(real.device)
        points = losses.between(real, fake.float(), shares)
        return losses.slopes(lambda pictures: self._critic(pictures, labels), points, create_graph=create_graph)

    def _noise(self, count: int, draw: torch.Generator) -> Tensor:
        return torch.randn(count, self.config.latent, generator=draw).to(self.accelerator.device)

    def _labels(self, numbers: Tensor) -> Tensor:
        """One-hot float32 [N, K], or [N, 0]."""
        if not self.classes:
            return torch.zeros(len(numbers), 0, device=self.accelerator.device)
        return F.one_hot(numbers, len(self.classes)).float().to(self.accelerator.device)

    def _laid_out(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(self.accelerator.device)
        return pictures.contiguous(memory_format=torch.channels_last) if self.recipe.train.channels_last else pictures

    def validate(self) -> Mapping[str, float]:
        """See `Task`.

        Raises:
            CollapsedError: see `Watch.check`.
        """
        network = self._generator.network
        settle(network, self._settling())
        samples = self.samples(network, self.recipe.watch.samples)
        if self._album is not None:
            write_atomically(self._album / f"epoch-{self._epoch:03d}.png", sheet(samples[:_SHOWN], 10, 2))
        figures = self._compared(samples) | self._held_out(network)
        self.watch.check(figures, self._epoch)
        return figures

    def _settling(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(derive(self.recipe.seed, "settling"))
        for _ in range(_SETTLING):
            numbers = torch.randint(max(1, len(self.classes)), (_ROWS_AT_ONCE,), generator=draw)
            yield self._noise(_ROWS_AT_ONCE, draw), self._labels(numbers)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """How near a generator's samples are to the validation pictures, see `Watch.figures`."""
        return self._compared(self.samples(network, self.recipe.watch.samples))

    def _compared(self, samples: Pixels) -> dict[str, float]:
        return self.watch.figures(samples, self._asked(len(samples)) if self.classes else None)

    def _asked(self, count: int) -> Tensor:
        """Classes in turn."""
        return torch.arange(count) % max(1, len(self.classes))

    @torch.inference_mode()
    def samples(self, network: nn.Module, count: int) -> Pixels:
        """The recipe's first `count` pictures, classes in turn: uint8 [count, H, W, C]."""
        network.eval()
        noise = torch.stack([latents(self.recipe.seed, index, self.config.latent) for index in range(count)])
        noise, labels = noise.to(self.accelerator.device), self._labels(self._asked(count))
        firsts = range(0, count, _ROWS_AT_ONCE)
        drawn = torch.cat([network(noise[i : i + _ROWS_AT_ONCE], labels[i : i + _ROWS_AT_ONCE]) for i in firsts])
        pixels: Pixels = self.recipe.preprocess.denormalise(drawn).cpu().numpy()
        return pixels

    def _held_out(self, network: nn.Module) -> dict[str, float]:
        """What the discriminator makes of pictures that it was not trained on, and its slopes between them."""
        rows: Indices = self.pictures.held_out[:_SLOPES]
        draw = torch.Generator().manual_seed(derive(self.recipe.seed, "held out"))
        real = self._laid_out(self.pictures.clean(rows))
        labels = self._labels(torch.from_numpy(self.pictures.set.labels[rows]))
        self._discriminator.model.eval()
        with torch.no_grad():
            fake = network.eval()(self._noise(len(rows), draw), labels)
            scores = self._critic(real, labels), self._critic(fake, labels)
        slopes = self._slopes(real, fake, labels, draw, create_graph=False)
        figures = {name: float(value) for name, value in _measured(self.recipe.game.loss, *scores).items()}
        return figures | {"slope": float(slopes.mean()), "steepest": float(slopes.max())}


def _measured(kind: losses.Adversarial, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """A critic's estimate of the earth mover's distance; of a discriminator who is winning."""
    real, fake = real.detach(), fake.detach()
    if kind == "wasserstein":
        return {"earth_mover": losses.earth_mover(real, fake)}
    accuracy, lead = balance(real, fake)
    return {"accuracy": accuracy, "lead": lead}


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """The module computes as in training, yet nothing of it changes, and gradients pass through it to its inputs only.

    Neither running statistics of batch normalisation nor the vectors of spectral normalisation move.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    spectral = [part for part in module.modules() if isinstance(part, ParametrizationList)]
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for norm in norms:
        norm.track_running_stats = False
    for part in spectral:
        part.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracks
        for part in spectral:
            part.train(module.training)
        for parameter in learning:
            parameter.requires_grad_(True)


@torch.no_grad()
def settle(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Give batch normalisation the statistics that the network's own weights have on these inputs.

    Averaged weights need it: an average of other weights' statistics is not theirs.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for inputs in batches:
        network(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def setup(recipe: GanRecipe, run_name: str | None, *, resume: bool, overwrite: bool) -> tuple[Adversaries, Run]:
    """The run's folder with the resolved recipe in it, the data, the networks.

    Raises:
        TrainingError: more than one process, and see `Run.begin`, `Pictures`, `Extractor`.
    """
    accelerator = make_accelerator(recipe.train)
    if accelerator.num_processes > 1:
        raise RecipeError(f"a generator and its discriminator train in one process, not in {accelerator.num_processes}")
    try:
        extractor = Extractor(recipe.watch.extractor)
    except checkpoint.CheckpointError as error:
        raise RecipeError(f"watch.extractor: {error}") from error
    run = Run(runs_folder() / (run_name or recipe.name))
    run.begin(recipe, resume=resume, overwrite=overwrite)
    pictures = Pictures(recipe.data, recipe.preprocess, recipe.train.batch_size, recipe.seed)
    real = pictures.set.images[pictures.held_out]
    watch = Watch(recipe.watch, extractor, real, derive(recipe.seed, "modes"))
    return Adversaries(recipe, pictures, watch, accelerator, run.folder / "samples"), run


def export(task: Adversaries, run: Run, progress: Progress) -> ModelCard:
    """Write the best epoch's generator as the service reads it."""
    recipe = task.recipe
    network = build(recipe.model.architecture, asdict(task.config))
    network.load_state_dict(run.load_best()["networks"]["generator"])
    figures = task.figures(network.to(task.accelerator.device))
    where = f"{recipe.watch.samples:,} samples, {recipe.data.name} validation, {task.watch.features}"
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        network,
        name=recipe.name,
        description=recipe.description,
        task="generate",
        architecture=recipe.model.architecture,
        config=asdict(task.config),
        preprocess=recipe.preprocess,
        classes=task.classes,
        metrics=[Metric(name=name, value=value, data=where) for name, value in figures.items()],
        training=_account(task, progress),
        **recipe.card.model_dump(),
    )


def _account(task: Adversaries, progress: Progress) -> Training:
    return Training(
        recipe=task.recipe.model_dump(mode="json"),
        seed=task.recipe.seed,
        epochs=task.recipe.train.epochs,
        best_epoch=progress.best_epoch,
        wall_time_s=round(progress.wall_time_s, 1),
        hardware=hardware(task.accelerator.device),
        versions=versions(),
    )


def train(recipe: GanRecipe, run: str | None, *, resume: bool, overwrite: bool) -> tuple[Run, Progress, ModelCard]:
    """A whole run.

    Raises:
        TrainingError: see `setup`, `fit` and `Watch.check`.
    """
    task, folder = setup(recipe, run, resume=resume, overwrite=overwrite)
    progress = fit(task, folder, recipe.train, seed=recipe.seed, accelerator=task.accelerator, resume=resume)
    card = export(task, folder, progress)
    task.accelerator.end_training()
    return folder, progress, card


@cli.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/gan-mnist.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train a generator by its recipe; the model and its card end up in the run's export/."""
    try:
        recipe = read_recipe(GanRecipe, path, overrides or ())
        folder, progress, card = train(recipe, run, resume=resume, overwrite=overwrite)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    figures = ", ".join(f"{metric.name} {metric.value:.4f}" for metric in card.metrics)
    typer.echo(f"{folder.folder / 'export' / card.name}: epoch {progress.best_epoch}, validation {figures}")


if __name__ == "__main__":
    cli()
