"""Train an autoencoder, a VAE or a denoiser: `python -m training.autoencode training/recipes/cvae-mnist.toml`.

Several processes are started as described in `training.classify`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from models.denoiser import DenoiserConfig
from models.generative import ReconstructionSubmodel, with_label_planes
from models.registry import build
from models.vae import VAEConfig
from training.core.export import TrainedModel, command, export_and_summarise
from training.core.seeds import derive, generator
from training.core.trainer import Learner, gather_rows
from training.datasets.camera_noise import photograph_each
from training.datasets.crops_and_noise import CroppedImages, add_fixed_noise, add_noise, one_hot
from training.datasets.images import Indices
from training.losses import generative
from training.losses.feature_maps import FeatureMaps, perceptual_distance
from training.recipe.generative_config import AutoencodeRecipe

_ROWS_AT_ONCE = 100

# Adds noise to clean images [N, C, H, W], whose rows in the data set are [N].
Spoil = Callable[[Tensor, Indices], Tensor]


class AutoencodingTask:
    """Train to reconstruct an image through a latent, or to remove noise from it.

    The best epoch has the highest ELBO if the network generates images, else the highest PSNR.
    """

    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: AutoencodeRecipe, datasets: list[CroppedImages], accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.monitor = "elbo" if recipe.task == "generate" else "psnr"
        self.datasets = datasets
        self.classes = datasets[0].set.classes if recipe.model.conditional else ()
        self.config = recipe.config(len(self.classes))
        self.variational = isinstance(self.config, VAEConfig)
        self._unconditional = isinstance(self.config, DenoiserConfig)  # takes images without labels
        self.steps_per_epoch = len(datasets) * min(dataset.per_epoch for dataset in datasets)
        self._features = None
        if recipe.features is not None:
            self._features = FeatureMaps(recipe.features, recipe.preprocess, accelerator, recipe.train.channels_last)
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = build(recipe.model.architecture, asdict(self.config))
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"autoencoder": self._learner}

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `TrainingTask`."""
        batch, dataset = divmod(index, len(self.datasets))
        clean, numbers = self.datasets[dataset].batch(epoch, batch, self.recipe.augment, generator)
        clean, labels = clean.to(self.accelerator.device), self._labels(numbers)
        noisy = clean if self.recipe.noise is None else add_noise(clean, self.recipe.noise, generator)
        noisy = self._learner.arrange(noisy)
        self._learner.model.train()
        if self.variational:
            progress = epoch + index / self.steps_per_epoch
            return self._variational_step(noisy, clean, labels, self._beta(progress), generator)
        restored = self._learner.model(noisy) if self._unconditional else self._learner.model(noisy, labels)
        loss = generative.distance(restored, clean, self.recipe.loss.distance)
        self._learner.update(loss)
        return {"loss": loss.detach()}

    def _variational_step(
        self, noisy: Tensor, clean: Tensor, labels: Tensor, beta: float, draw: torch.Generator
    ) -> Mapping[str, Tensor]:
        noise = torch.randn(len(noisy), self.config.latent, generator=draw).to(noisy.device)
        output = self._learner.model(noisy, labels, noise)
        likelihood = generative.log_likelihood(output.logits, clean, output.log_scale)
        kl = generative.kl_to_prior(output.mean, output.log_variance)
        # Per pixel and channel, so that clipping and learning rate have the same effect at every image size.
        loss = -generative.elbo(likelihood, kl, beta).mean() / clean[0].numel()
        figures = {}
        if self._features is not None:
            maps, targets = self._features(output.logits.sigmoid()), self._features(clean)
            distance = perceptual_distance(maps, targets).mean()
            loss = loss + self.recipe.loss.perceptual * distance
            figures["perceptual"] = distance.detach()
        self._learner.update(loss)
        bound = generative.elbo(likelihood, kl).mean()
        return figures | {"loss": loss.detach(), "elbo": bound.detach(), "kl": kl.mean().detach()}

    def _beta(self, epochs: float) -> float:
        """Return the KL term's weight after `epochs`."""
        loss = self.recipe.loss
        return loss.beta * min(1.0, epochs / loss.beta_epochs) if loss.beta_epochs else loss.beta

    def _labels(self, numbers: Indices) -> Tensor:
        return one_hot(torch.from_numpy(numbers), len(self.classes)).to(self.accelerator.device)

    def validate(self) -> Mapping[str, float]:
        """See `TrainingTask`."""
        return self.figures(self._learner.network)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Return figures on the validation images: `psnr` in dB, for a VAE also `elbo` and `kl` in nats.

        Each is a mean over images, then over data sets and kinds of noise. If there are several, the PSNR of each
        follows as `psnr_cifar10_25` or `psnr_cifar10_camera`. The figures are the same on all processes.
        """
        network.eval()
        means: dict[str, Tensor] = {}
        for dataset in self.datasets:
            for name, spoil in self._kinds_of_noise().items():

                def compute(positions: Indices, dataset: CroppedImages = dataset, spoil: Spoil = spoil) -> Tensor:
                    return self._measure(network, dataset, dataset.held_out[positions], spoil)

                means[f"psnr_{dataset.name}_{name}"] = (
                    gather_rows(self.accelerator, len(dataset.held_out), compute).double().mean(dim=0)
                )
        names = ("psnr", "elbo", "kl") if self.variational else ("psnr",)
        figures = dict(zip(names, torch.stack(list(means.values())).mean(dim=0).tolist(), strict=True))
        return figures if len(means) == 1 else figures | {name: float(row[0]) for name, row in means.items()}

    def _kinds_of_noise(self) -> dict[str, Spoil]:
        """Return functions of the clean images and their rows that return the noisy images of validation, by name."""
        noise, seed = self.recipe.noise, self.recipe.seed
        if noise is None:
            return {"0": lambda clean, _: clean}
        kinds: dict[str, Spoil] = {
            f"{sigma:g}": partial(add_fixed_noise, sigma=sigma, seed=seed) for sigma in noise.validation
        }
        if noise.camera.share:
            kinds["camera"] = partial(photograph_each, section=noise.camera, seed=seed)
        return kinds

    @torch.inference_mode()
    def _measure(self, network: nn.Module, dataset: CroppedImages, rows: Indices, spoil: Spoil) -> Tensor:
        """Return PSNR, and for a VAE the ELBO by one sample and the KL: [len(rows), 1 or 3]."""
        restore = network if self._unconditional else ReconstructionSubmodel(network)
        columns = []
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = rows[first : first + _ROWS_AT_ONCE]
            clean = dataset.clean(chosen).to(self.accelerator.device)
            labels = self._labels(dataset.set.labels[chosen])
            noisy = spoil(clean, chosen)
            restored = restore(noisy if self._unconditional else with_label_planes(noisy, labels)).clamp(0, 1)
            figures = [generative.decibels(generative.squared_error(restored, clean))]
            if self.variational:
                figures += self._bound(network, noisy, clean, labels, chosen)
            columns.append(torch.stack(figures, dim=1))
        return torch.cat(columns)

    def _bound(self, network: nn.Module, noisy: Tensor, clean: Tensor, labels: Tensor, rows: Indices) -> list[Tensor]:
        """Return the ELBO and the KL, [N] each; the sample depends on the seed and the rows only."""
        draws = (generator(self.recipe.seed, "latent", int(row)) for row in rows)
        noise = torch.stack([torch.randn(self.config.latent, generator=draw) for draw in draws]).to(noisy.device)
        output = network(noisy, labels, noise)
        kl = generative.kl_to_prior(output.mean, output.log_variance)
        likelihood = generative.log_likelihood(output.logits, clean, output.log_scale)
        return [generative.elbo(likelihood, kl), kl]

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Measure on the validation images; see `ExportTask`."""
        network = build(self.recipe.model.architecture, asdict(self.config))
        network.load_state_dict(networks["autoencoder"])
        data = ", ".join(f"{dataset.name} validation ({len(dataset.held_out):,})" for dataset in self.datasets)
        figures = self.figures(network.to(self.accelerator.device))
        return TrainedModel(network, self.config, figures, data, card={"classes": self.classes})


def setup(recipe: AutoencodeRecipe, accelerator: Accelerator, _: Path) -> AutoencodingTask:
    """Load the data and build the network."""
    with accelerator.local_main_process_first():  # the main process decodes, the others read its result
        datasets = [
            CroppedImages(
                section,
                recipe.preprocess,
                recipe.train.batch_size,
                recipe.seed,
                process=accelerator.process_index,
                processes=accelerator.num_processes,
            )
            for section in recipe.data
        ]
    return AutoencodingTask(recipe, datasets, accelerator)


cli = command(
    AutoencodeRecipe,
    setup,
    export_and_summarise,
    "Train an autoencoder or a denoiser by its recipe; the model and its card are written to the run's export/.",
)

if __name__ == "__main__":
    cli()
