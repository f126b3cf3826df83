"""Train a name encoder: `python -m training.words training/recipes/names.toml`; `training.evaluate words` measures it.

Loss, mining and training loop are the same as in `training.embed`. Two spellings of one name are positives of each
other, all other names are negatives. The best epoch has the highest recall@1: the share of misspelt names whose nearest
neighbour in a gallery of correct names is the name itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from models.name_encoder import VARIANTS, WordEncoder, encode
from training.core.export import command
from training.core.run_folder import Progress, Run
from training.core.seeds import derive
from training.core.trainer import Learner
from training.datasets.batches import IdentityBatches, positive_labels
from training.datasets.misspellings import misspell
from training.datasets.names import Names, read_names
from training.losses import mining
from training.losses.recipe_losses import triplet_loss
from training.recipe.words_config import WordsRecipe

_AT_ONCE = 512
_CALIBRATION_PROBES = 4


@torch.inference_mode()
def vectors(network: nn.Module, names: Sequence[str], device: torch.device | str = "cpu") -> npt.NDArray[np.float32]:
    """Return the vectors [N, D] of names, computed in evaluation mode."""
    network.eval()
    parts = [names[first : first + _AT_ONCE] for first in range(0, len(names), _AT_ONCE)]
    return np.concatenate([network(encode(part).to(device)).cpu().numpy() for part in parts])


class SpellingTask:
    """Train with triplets in batches of P names in K spellings; the best epoch has the highest recall@1."""

    monitor = "recall"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: WordsRecipe, names: Names, accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.names = names
        self._train = names.train + names.synthetic
        labels = positive_labels(np.arange(len(self._train)), "augment")
        self._batches = IdentityBatches(
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
        """See `TrainingTask`."""
        section, device = self.recipe.data, self.accelerator.device
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        rows = self._batches(epoch, index)
        edits = random.integers(section.edits + 1, size=len(rows))
        spellings = [
            misspell(self._train[row], section.trained, count, random) for row, count in zip(rows, edits, strict=True)
        ]
        self._learner.model.train()
        embeddings = self._learner.model(encode(spellings).to(device))
        labels = torch.from_numpy(rows).to(device)
        embeddings, labels = mining.gather_embeddings(self.accelerator, embeddings.float(), labels)
        loss, active = triplet_loss(self.recipe.loss, embeddings, labels, generator)
        self._learner.update(loss)
        return {"loss": loss.detach(), "active": active.detach()}

    def validate(self) -> Mapping[str, float]:
        """See `TrainingTask`."""
        gallery = self.names.calibrate + self.names.train
        embedded = vectors(self._learner.network, gallery, self.accelerator.device)
        probes = vectors(self._learner.network, self._probes, self.accelerator.device)
        nearest = (probes @ embedded.T).argmax(axis=1)
        return {"recall": float((nearest == np.arange(len(probes)) % len(self.names.calibrate)).mean())}


def setup(recipe: WordsRecipe, accelerator: Accelerator, _: Path) -> SpellingTask:
    """Read the names and build the network."""
    return SpellingTask(recipe, read_names(recipe.data, recipe.seed), accelerator)


def summarise(task: SpellingTask, run: Run, progress: Progress) -> str | None:
    """Return a summary line on the main process and None on the others. The weights stay in best.pt."""
    if not run.main:
        return None
    return (
        f"{run.folder}: epoch {progress.best_epoch}, recall@1 {progress.best_value:.4f} of "
        f"{len(task.names.calibrate)} names in {progress.wall_time_s:.0f} s"
    )


cli = command(
    WordsRecipe, setup, summarise, "Train a name encoder by its recipe; its weights are written to the run's best.pt."
)

if __name__ == "__main__":
    cli()
