"""Train a name encoder: `python -m training.words training/recipes/names.toml`; `training.evaluate words` measures it.

The loss, the miner and the loop are those of `training.embed`: none of them cares what is embedded. Two spellings of
one name are positives of each other, all others negatives. What chooses the epoch is recall@1: how often a misspelt
name's nearest in a gallery of clean ones is the name itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from models.name_encoder import VARIANTS, WordEncoder, encode
from training.core.errors import RecipeError, TrainingError
from training.core.run_folder import Run
from training.core.seeds import derive
from training.core.trainer import Learner, fit, make_accelerator
from training.datasets import images as data
from training.datasets.misspellings import KINDS, misspell
from training.datasets.names import Names, read_names
from training.losses import metric_learning, mining
from training.recipe.config import LossSection, WordsRecipe, read_recipe, runs_folder

Integers = npt.NDArray[np.int64]

_AT_ONCE = 512
_CALIBRATION_PROBES = 4

cli = typer.Typer(add_completion=False)


@torch.inference_mode()
def vectors(network: nn.Module, names: Sequence[str], device: torch.device | str = "cpu") -> npt.NDArray[np.float32]:
    """Each name's vector: [N, D], in evaluation mode."""
    network.eval()
    parts = [names[first : first + _AT_ONCE] for first in range(0, len(names), _AT_ONCE)]
    return np.concatenate([network(encode(part).to(device)).cpu().numpy() for part in parts])


class Spelling:
    """The task: triplets in batches of P names in K spellings; the best epoch by recall@1 of the calibration split."""

    monitor = "recall"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: WordsRecipe, names: Names, accelerator: Accelerator):
        unknown = {*recipe.data.trained, *recipe.data.held_out} - KINDS.keys()
        if unknown:
            raise RecipeError(f"no kind of edit: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        self.recipe = recipe
        self.accelerator = accelerator
        self.names = names
        self._train = names.train + names.made
        labels = data.positive_labels(np.arange(len(self._train)), "augment")
        self._batches = data.IdentityBatches(
            labels,
            recipe.train.batch_size // recipe.data.spellings,
            recipe.data.spellings,
            recipe.seed,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        torch.manual_seed(derive(recipe.seed, "weights"))
        module = WordEncoder(VARIANTS[recipe.model.architecture])
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"encoder": self._learner}
        random, section = np.random.default_rng(derive(recipe.seed, "validate")), recipe.data
        probes = names.calibrate * _CALIBRATION_PROBES
        self._probes = [misspell(name, section.trained, section.edits, random) for name in probes]

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        section, device = self.recipe.data, self.accelerator.device
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        rows = self._batches(epoch, index)
        edits = random.integers(section.edits + 1, size=len(rows))
        spelt = [
            misspell(self._train[row], section.trained, count, random) for row, count in zip(rows, edits, strict=True)
        ]
        self._learner.model.train()
        embeddings = self._learner.model(encode(spelt).to(device))
        labels = torch.from_numpy(rows).to(device)
        embeddings, labels = mining.gather_embeddings(self.accelerator, embeddings.float(), labels)
        loss, active = triplet_loss(self.recipe.loss, embeddings, labels)
        self._learner.update(loss)
        return {"loss": loss.detach(), "active": active.detach()}

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        gallery = self.names.calibrate + self.names.train
        embedded = vectors(self._learner.network, gallery, self.accelerator.device)
        probes = vectors(self._learner.network, self._probes, self.accelerator.device)
        nearest = (probes @ embedded.T).argmax(axis=1)
        return {"recall": float((nearest == np.arange(len(probes)) % len(self.names.calibrate)).mean())}


def triplet_loss(loss: LossSection, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The recipe's triplet loss of a batch, embeddings [N, D] and labels [N], and the share of active triplets."""
    distances = metric_learning.pairwise_distances(embeddings, loss.metric)
    if loss.mining == "semi-hard":
        triplets = mining.semi_hard(distances, labels, loss.margin)
    else:
        triplets = mining.batch_hard(distances, labels)
    positive, negative = triplets.of(distances)
    value = metric_learning.triplet(positive, negative, loss.margin, squared=loss.squared, active_only=loss.active_only)
    if loss.squared:
        positive, negative = positive.square(), negative.square()
    return value, mining.active_fraction(positive, negative, loss.margin)


@cli.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/names.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train a name encoder by its recipe; its weights are the run's best.pt."""
    try:
        recipe = read_recipe(WordsRecipe, path, overrides or ())
        accelerator = make_accelerator(recipe.train)
        folder = Run(runs_folder() / (run or recipe.name), main=accelerator.is_main_process)
        task = Spelling(recipe, read_names(recipe.data, recipe.seed), accelerator)
        folder.begin(recipe, resume=resume, overwrite=overwrite)
        progress = fit(task, folder, recipe.train, seed=recipe.seed, accelerator=accelerator, resume=resume)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    accelerator.end_training()
    if folder.main:
        typer.echo(
            f"{folder.folder}: epoch {progress.best_epoch}, recall@1 {progress.best_value:.4f} of "
            f"{len(task.names.calibrate)} names in {progress.wall_time_s:.0f} s"
        )


if __name__ == "__main__":
    cli()
