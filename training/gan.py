"""Train a generator against its discriminator or critic: `python -m training.gan training/recipes/gan-mnist.toml`.

They are trained in turns: one step of the loop is some steps of the discriminator, in which the generator does not
change, and one of the generator, in which the discriminator does not change. There is only one process:
DistributedDataParallel does not support gradients of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from models.checkpoint import write_atomically
from models.gan import Discriminator, DiscriminatorConfig
from models.generative import latents
from models.projected_gan import ProjectedDiscriminator, ProjectedDiscriminatorConfig
from models.registry import build
from training.core.errors import RecipeError
from training.core.export import TrainedModel, command, export_and_summarise
from training.core.seeds import derive
from training.core.trainer import Learner
from training.datasets.augment import augment_differentiably
from training.datasets.crops_and_noise import CroppedImages, one_hot
from training.datasets.images import Indices
from training.losses import adversarial
from training.losses.anchor import Anchor
from training.losses.feature_maps import FeatureMaps
from training.metrics.contact_sheet import sheet
from training.metrics.feature_extractor import Extractor
from training.metrics.gan_monitor import CollapseMonitor, Pixels, balance, gradient_norm
from training.recipe.gan_config import GanRecipe

_ROWS_AT_ONCE = 250
# Batches of noise from which the statistics of the averaged generator's batch normalisation are computed.
_NORM_BATCHES = 20
# Images on which the critic's slope is measured after each epoch.
_SLOPE_IMAGES = 256
_SHEET_IMAGES = 100


class AdversarialTask:
    """Train a generator against a discriminator that distinguishes its images from the data set's.

    The best epoch has the lowest Frechet distance in the features of the monitor's network. A sheet of samples is
    written to `sheets` after each epoch and after every `watch.sheet_steps` steps, unless that is None.
    """

    monitor = "frechet"
    mode: Literal["max", "min"] = "min"

    def __init__(
        self,
        recipe: GanRecipe,
        images: CroppedImages,
        monitor: CollapseMonitor,
        accelerator: Accelerator,
        sheets: Path | None = None,
    ):
        self.recipe = recipe
        self.images = images
        self.collapse_monitor = monitor
        self.accelerator = accelerator
        self.classes = images.set.classes if recipe.model.conditional else ()
        self._features = None
        if recipe.features is not None:
            self._features = FeatureMaps(recipe.features, recipe.preprocess, accelerator, recipe.train.channels_last)
        try:
            self.config, config = recipe.configs(len(self.classes))
            torch.manual_seed(derive(recipe.seed, "weights"))
            generator, discriminator = (
                build(recipe.model.architecture, asdict(self.config)),
                self._build_discriminator(config),
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error
        self._anchor = None
        if recipe.anchor is not None:
            self._anchor = Anchor(recipe.anchor, self.config.latent, recipe.preprocess, accelerator)
        self._turns = recipe.game.turns
        self.steps_per_epoch = images.per_epoch // self._turns
        # In float32, whatever the learner's precision is.
        self._critic: Callable[[Any, Tensor], Tensor] = discriminator.score
        self._generator = Learner(generator, recipe.train, self.steps_per_epoch, accelerator)
        settings = recipe.train.model_copy(update={"ema": 0.0, "lr": recipe.train.lr * recipe.game.rate})
        self._discriminator = Learner(discriminator, settings, self.steps_per_epoch * self._turns, accelerator)
        self.learners = {"generator": self._generator, "discriminator": self._discriminator}
        self._sheets = sheets
        self._epoch = 0

    def _build_discriminator(self, config: DiscriminatorConfig) -> Discriminator | ProjectedDiscriminator:
        """Build the discriminator: of pixels, or of feature maps if the recipe has them."""
        if self._features is None:
            return Discriminator(config)
        settings = self.recipe.discriminator
        return ProjectedDiscriminator(
            ProjectedDiscriminatorConfig(self._features.shapes, settings.projection, settings.widths)
        )

    def _inputs(self, images: Tensor, draw: torch.Generator) -> Any:
        """Return the discriminator's inputs: augmented images [N, C, H, W], or their feature maps."""
        images = augment_differentiably(images, self.recipe.game.augment, draw)
        return images if self._features is None else self._features(images)

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `TrainingTask`. The figures are those of the discriminator's last step and of the generator's step."""
        self._epoch = epoch + 1
        self._generator.model.train()
        self._discriminator.model.train()
        figures: Mapping[str, Tensor] = {}
        for turn in range(self._turns):
            figures = self._discriminate(epoch, index * self._turns + turn, generator)
        steps = epoch * self.steps_per_epoch + index + 1
        figures = {**figures, **self._generate(steps - 1, generator)}
        if self.recipe.watch.sheet_steps and steps % self.recipe.watch.sheet_steps == 0:
            self._write_sheet(f"step-{steps:06d}", self.samples(self._generator.network, _SHEET_IMAGES))
        return figures

    def _discriminate(self, epoch: int, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Take one step of the discriminator; the generator does not change."""
        game = self.recipe.game
        real, numbers = self.images.batch(epoch, batch, self.recipe.augment, draw)
        real, labels = self._to_device(real), self._labels(torch.from_numpy(numbers))
        with frozen(self._generator.model), torch.no_grad():
            fake = self._generator.model(self._noise(len(real), draw), labels)
        scores = (
            self._discriminator.model(self._inputs(real, draw), labels),
            self._discriminator.model(self._inputs(fake, draw), labels),
        )
        loss = adversarial.discriminator_loss(game.loss, *scores)
        figures = {"discriminator_loss": loss.detach()}
        step = epoch * self.steps_per_epoch * self._turns + batch
        if game.penalty and step % game.penalty_every == 0:
            slopes = self._slopes(real, fake, labels, draw)
            loss = loss + game.penalty * game.penalty_every * adversarial.gradient_penalty(slopes)
        self._discriminator.update(loss)
        if game.clip:
            adversarial.clip_weights(self._discriminator.model, game.clip)
        figures |= _discriminator_figures(game.loss, *scores)
        return figures | {"discriminator_gradient": gradient_norm(self._discriminator.model)}

    def _generate(self, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Take the generator's step `step`, which counts from 0; the discriminator does not change."""
        count = self.recipe.train.batch_size
        labels = self._labels(torch.randint(max(1, len(self.classes)), (count,), generator=draw))
        noise = self._noise(count, draw)
        figures = {}
        with frozen(self._discriminator.model):
            fake = self._generator.model(noise, labels)
            losses = []
            if self._anchor is not None:
                losses.append(self._anchor.loss(fake, noise, step))
                figures["anchor_loss"] = losses[0].detach()
            if self._anchor is None or not self._anchor.copies(step):
                scores = self._discriminator.model(self._inputs(fake, draw), labels)
                losses.append(adversarial.generator_loss(self.recipe.game.loss, scores))
                figures["generator_loss"] = losses[-1].detach()
            self._generator.update(torch.stack(losses).sum())
        return figures | {"generator_gradient": gradient_norm(self._generator.model)}

    def _slopes(
        self, real: Tensor, fake: Tensor, labels: Tensor, draw: torch.Generator, *, create_graph: bool = True
    ) -> Tensor:
        """Return the critic's slopes [N] at a random point between each real and each generated image."""
        shares = torch.rand(len(real), generator=draw).to(real.device)
        points = adversarial.interpolate(real, fake.float(), shares)
        return adversarial.slopes(lambda images: self._critic(images, labels), points, create_graph=create_graph)

    def _noise(self, count: int, draw: torch.Generator) -> Tensor:
        return torch.randn(count, self.config.latent, generator=draw).to(self.accelerator.device)

    def _labels(self, numbers: Tensor) -> Tensor:
        return one_hot(numbers, len(self.classes)).to(self.accelerator.device)

    def _to_device(self, images: Tensor) -> Tensor:
        return self._discriminator.arrange(images.to(self.accelerator.device))

    def validate(self) -> Mapping[str, float]:
        """See `TrainingTask`.

        Raises:
            CollapsedError: see `CollapseMonitor.check`.
        """
        network = self._generator.network
        recompute_norms(network, self._norm_batches())
        samples = self.samples(network, self.recipe.watch.samples)
        self._write_sheet(f"epoch-{self._epoch:03d}", samples[:_SHEET_IMAGES])
        figures = self._sample_figures(samples) | self._held_out_figures(network)
        self.collapse_monitor.check(figures, self._epoch)
        return figures

    def _write_sheet(self, name: str, samples: Pixels) -> None:
        if self._sheets is not None:
            write_atomically(self._sheets / f"{name}.png", sheet(samples, 10, 2))

    def _norm_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(derive(self.recipe.seed, "settling"))
        for _ in range(_NORM_BATCHES):
            numbers = torch.randint(max(1, len(self.classes)), (_ROWS_AT_ONCE,), generator=draw)
            yield self._noise(_ROWS_AT_ONCE, draw), self._labels(numbers)

    def _sample_figures(self, samples: Pixels) -> dict[str, float]:
        """Compare a generator's samples with the validation images, see `CollapseMonitor.figures`."""
        return self.collapse_monitor.figures(samples, self._classes_in_turn(len(samples)) if self.classes else None)

    def _classes_in_turn(self, count: int) -> Tensor:
        return torch.arange(count) % max(1, len(self.classes))

    @torch.inference_mode()
    def samples(self, network: nn.Module, count: int) -> Pixels:
        """Generate the images of the recipe's first `count` latents, classes in turn: uint8 [count, H, W, C]."""
        network.eval()
        noise = torch.stack([latents(self.recipe.seed, index, self.config.latent) for index in range(count)])
        noise, labels = noise.to(self.accelerator.device), self._labels(self._classes_in_turn(count))
        batches = zip(torch.split(noise, _ROWS_AT_ONCE), torch.split(labels, _ROWS_AT_ONCE), strict=True)
        drawn = torch.cat([network(*batch) for batch in batches])
        pixels: Pixels = self.recipe.preprocess.denormalise(drawn).cpu().numpy()
        return pixels

    def _held_out_figures(self, network: nn.Module) -> dict[str, float]:
        """Return the discriminator's figures on images that it was not trained on, of pixels also its slopes there."""
        rows: Indices = self.images.held_out[:_SLOPE_IMAGES]
        draw = torch.Generator().manual_seed(derive(self.recipe.seed, "held out"))
        real = self._to_device(self.images.clean(rows))
        labels = self._labels(torch.from_numpy(self.images.set.labels[rows]))
        self._discriminator.model.eval()
        with torch.no_grad():
            fake = network.eval()(self._noise(len(rows), draw), labels)
            inputs = (real, fake) if self._features is None else (self._features(real), self._features(fake))
            scores = self._critic(inputs[0], labels), self._critic(inputs[1], labels)
        figures = {name: float(value) for name, value in _discriminator_figures(self.recipe.game.loss, *scores).items()}
        if self._features is not None:
            return figures
        slopes = self._slopes(real, fake, labels, draw, create_graph=False)
        return figures | {"slope": float(slopes.mean()), "steepest": float(slopes.max())}

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Measure the generator's samples; see `ExportTask`."""
        recipe = self.recipe
        network = build(recipe.model.architecture, asdict(self.config))
        network.load_state_dict(networks["generator"])
        figures = self._sample_figures(self.samples(network.to(self.accelerator.device), recipe.watch.samples))
        data = f"{recipe.watch.samples:,} samples, {recipe.data.name} validation, {self.collapse_monitor.features}"
        return TrainedModel(network, self.config, figures, data, card={"classes": self.classes})


def _discriminator_figures(kind: adversarial.Adversarial, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return a critic's estimate of the earth mover's distance, or a discriminator's accuracy and lead."""
    real, fake = real.detach(), fake.detach()
    if kind == "wasserstein":
        return {"earth_mover": adversarial.earth_mover(real, fake)}
    accuracy, lead = balance(real, fake)
    return {"accuracy": accuracy, "lead": lead}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freeze the module: it computes as before and passes gradients to its inputs, but does not change.

    Neither running statistics of batch normalisation nor the vectors of spectral normalisation are updated. All
    parameters of the module must be trained.
    """

    def switch(updates: bool) -> None:
        module.requires_grad_(updates)
        for norm in _batch_norms(module):
            norm.track_running_stats = updates
        for layer in module.modules():
            if isinstance(layer, ParametrizationList):
                layer.train(updates and module.training)

    switch(updates=False)
    try:
        yield
    finally:
        switch(updates=True)


@torch.no_grad()
def recompute_norms(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Recompute the running statistics of batch normalisation on the inputs `batches`.

    Averaged weights need it: their statistics are not the average of those of the weights that were averaged.
    """
    norms = _batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    for inputs in batches:
        network(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def setup(recipe: GanRecipe, accelerator: Accelerator, folder: Path) -> AdversarialTask:
    """Load the data and build the networks; sheets of samples are written to `folder`/samples.

    Raises:
        CheckpointError: see `Extractor`. TrainingError: more than one process; see `CroppedImages`.
    """
    if accelerator.num_processes > 1:
        raise RecipeError(
            f"a generator and its discriminator train in one process, not in {accelerator.num_processes}:"
            " DistributedDataParallel does not support gradients of gradients"
        )
    extractor = Extractor(recipe.watch.extractor)
    images = CroppedImages(recipe.data, recipe.preprocess, recipe.train.batch_size, recipe.seed)
    real = images.set.images[images.held_out]
    monitor = CollapseMonitor(recipe.watch, extractor, real, derive(recipe.seed, "modes"))
    return AdversarialTask(recipe, images, monitor, accelerator, folder / "samples")


cli = command(
    GanRecipe,
    setup,
    export_and_summarise,
    "Train a generator by its recipe; the model and its card are written to the run's export/.",
)

if __name__ == "__main__":
    cli()
