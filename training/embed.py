"""Train an embedder: `python -m training.embed training/recipes/face-embedder.toml`.

A recipe uses the same loss for the whole run. Training in several stages (for example distillation, then triplets)
needs one recipe per stage, whose `model.init` names the previous stage. Several processes are started as described in
`training.classify`; each mines in the embeddings of all processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.matching_fit import MIN_IMPOSTORS, fit_matching
from models.registry import build, configure
from models.runtime import Runtime, TorchRuntime
from training.core.errors import DataError, RunError
from training.core.export import TrainedModel, command, export_and_summarise
from training.core.seeds import derive, generator
from training.core.trainer import Learner, gather_rows
from training.datasets.augment import augment, channel_statistics
from training.datasets.batches import IdentityBatches, positive_labels
from training.datasets.faces import draw_pairs, rows_of
from training.datasets.images import ImageSet, Indices, load
from training.losses import metric_learning, mining
from training.losses.recipe_losses import contrastive_loss, triplet_loss
from training.metrics.classification import evaluation_runtime
from training.metrics.embedding import embed_rows
from training.metrics.verification import Scores, cross_validated_accuracy
from training.recipe.config import exported, teacher_files
from training.recipe.embed_config import EmbedRecipe


class EmbedderWithProxies(nn.Module):
    """An embedder in training, with the learned vector of each identity (proxy) that margin softmax needs."""

    proxies: nn.Parameter | None

    def __init__(self, embedder: nn.Module, identities: int, dimensions: int):
        super().__init__()
        self.embedder = embedder
        self.proxies = nn.Parameter(torch.randn(identities, dimensions) * 0.01) if identities else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return embeddings [N, D] and the proxies [K, D], which DistributedDataParallel must see in the outputs."""
        return self.embedder(images), self.proxies


class TeacherVectors:
    """Another network's vectors [images of the data set, D], as `training.teach` writes them.

    The file is VESTIBULE_RUNS/teachers/<name>.npy or VESTIBULE_DATASETS/<name>/<data set>-vectors.npy.

    Raises:
        DataError: neither file exists, or it has another shape.
    """

    def __init__(self, name: str, dataset: str, shape: tuple[int, int], rows: Indices):
        written, supplied = teacher_files(name, dataset)
        path = next((file for file in (written, supplied) if file.is_file()), None)
        if path is None:
            raise DataError(f"{written} is missing, and so is {supplied}: write it with `python -m training.teach`")
        self._vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        if self._vectors.shape != shape:
            raise DataError(f"{path} has the shape {list(self._vectors.shape)}, expected {list(shape)}")
        self._centre = torch.from_numpy(np.asarray(self._vectors[rows], np.float32).mean(axis=0))

    def loss(self, embeddings: Tensor, rows: Indices, relations: float) -> Tensor:
        """Return the distance of the embeddings [N, D] of `rows` from the teacher's; see `losses.distillation`."""
        vectors = torch.from_numpy(np.asarray(self._vectors[rows], np.float32)).to(embeddings.device)
        return metric_learning.distillation(
            embeddings, vectors, self._centre.to(embeddings.device), relations=relations
        )


class EmbeddingTask:
    """Train with a loss over batches of P identities; the best epoch has the highest TAR on the calibration split."""

    monitor = "tar"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: EmbedRecipe, images: ImageSet, accelerator: Accelerator):
        self.recipe = recipe
        self.images = images
        self.accelerator = accelerator
        self.config = configure(
            recipe.model.architecture, recipe.model.config | {"in_channels": recipe.preprocess.channels}
        )
        self._rows = rows_of(images, "train")
        _, identities = np.unique(images.labels[self._rows], return_inverse=True)
        self._labels = positive_labels(identities.astype(np.int64), recipe.data.positives)
        self._batches = IdentityBatches(
            self._labels,
            recipe.train.batch_size // recipe.data.images,
            recipe.data.images,
            recipe.seed,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        self._held_out = rows_of(images, "calibrate")
        self._pairs = draw_pairs(images, self._held_out, recipe.data.mated, recipe.data.impostors, recipe.seed)
        if (impostors := int((~self._pairs.mated).sum())) < MIN_IMPOSTORS:
            raise DataError(
                f"calibration needs {MIN_IMPOSTORS} non-mated pairs; {recipe.data.name} has {impostors} in its split"
            )
        shape = (len(images.labels), self.config.dimensions)
        self._teacher = (
            TeacherVectors(recipe.loss.teacher, recipe.data.name, shape, self._rows) if recipe.loss.teacher else None
        )
        torch.manual_seed(derive(recipe.seed, "weights"))
        proxies = int(self._labels.max()) + 1 if recipe.loss.kind == "margin-softmax" else 0
        embedder = _initial_embedder(recipe, self.config)
        blocks = list(embedder.get_submodule("features").children())
        if recipe.model.freeze > len(blocks):
            raise RunError(f"freeze is {recipe.model.freeze}, and the network has {len(blocks)} blocks of features")
        self._frozen = [block.requires_grad_(False) for block in blocks[: recipe.model.freeze]]
        module = EmbedderWithProxies(embedder, proxies, self.config.dimensions)
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"embedder": self._learner}
        self._statistics = channel_statistics(images.images, self._rows, recipe.augment, recipe.preprocess)

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `TrainingTask`."""
        positions = self._batches(epoch, index)
        rows, device = self._rows[positions], self.accelerator.device
        pixels = torch.from_numpy(np.asarray(self.images.images[rows])).to(device)  # uint8 [N, H, W, C]
        images = augment(pixels.movedim(-1, 1).float(), self.recipe.augment, generator, self._statistics)
        images = self._learner.arrange(self.recipe.preprocess.normalise(images.movedim(1, -1)))
        self._learner.model.train()
        for block in self._frozen:
            block.eval()  # batch norms keep their statistics
        embeddings, proxies = self._learner.model(images)
        labels = torch.from_numpy(self._labels[positions]).to(device)
        loss, active = self._loss(embeddings.float(), labels, proxies, (epoch, index))
        if self._teacher:
            weight = 1.0 if self.recipe.loss.kind == "distillation" else self.recipe.loss.distillation
            loss = loss + weight * self._teacher.loss(embeddings.float(), rows, self.recipe.loss.relations)
        self._learner.update(loss)
        return {"loss": loss.detach(), "active": active.detach()}

    def _loss(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor | None, batch: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the loss without distillation, and the share of active triplets, 0 where there are none."""
        loss, zero = self.recipe.loss, torch.zeros((), device=embeddings.device)
        if loss.kind == "distillation":
            return zero, zero
        if proxies is not None:
            return metric_learning.margin_softmax(
                embeddings, proxies, labels, margin=loss.margin, scale=loss.scale
            ), zero
        embeddings, labels = mining.gather_embeddings(self.accelerator, embeddings, labels)
        # The same generator on every process, since all of them mine in the same batch.
        draw = generator(self.recipe.seed, "mine", *batch)
        if loss.kind == "triplet":
            return triplet_loss(loss, embeddings, labels, draw)
        return contrastive_loss(loss, embeddings, labels, draw), zero

    def validate(self) -> Mapping[str, float]:
        """See `TrainingTask`."""
        network = self._learner.network.get_submodule("embedder")
        scores = Scores.of(self.similarities(TorchRuntime(network, self.accelerator.device)), self._pairs.mated)
        return {"tar": scores.tar(0.01), "eer": scores.eer()}

    def similarities(self, runtime: Runtime) -> npt.NDArray[np.float64]:
        """Return the cosines [P] of the calibration split's pairs, vectors averaged over flips as in serving.

        Every process returns all of them.
        """

        def compute(rows: Indices) -> Tensor:
            return embed_rows(runtime, self.images, self._held_out[rows], self.recipe.preprocess, tta="flip")

        vectors = gather_rows(self.accelerator, len(self._held_out), compute).double().numpy()
        return self._pairs.similarities(vectors, self._held_out)

    def best_model(self, networks: Mapping[str, Any]) -> TrainedModel:
        """Measure and calibrate on the calibration split; see `ExportTask`."""
        recipe, states = self.recipe, networks["embedder"]
        network = build(recipe.model.architecture, asdict(self.config))
        state = {
            name.removeprefix("embedder."): value for name, value in states.items() if name.startswith("embedder.")
        }
        if recipe.model.trained < 1:
            state = interpolate(_initial_embedder(recipe, self.config).state_dict(), state, recipe.model.trained)
        network.load_state_dict(state)
        similarities = self.similarities(evaluation_runtime(network, self.accelerator.device))
        mated = self._pairs.mated
        scores = Scores.of(similarities, mated)
        # Over ten folds, with as many non-mated pairs as mated ones.
        kept = np.concatenate([np.flatnonzero(mated), np.flatnonzero(~mated)[: int(mated.sum())]])
        accuracy, _ = cross_validated_accuracy(similarities[kept], mated[kept])
        data = f"{recipe.data.name}, calibrate: {len(scores.mated):,} mated, {len(scores.impostor):,} non-mated pairs"
        return TrainedModel(
            network,
            self.config,
            figures={
                "accuracy": accuracy,
                "tar@fmr=0.01": scores.tar(0.01),
                "tar@fmr=0.001": scores.tar(0.001),
                "eer": scores.eer(),
            },
            data=data,
            card={"tta": "flip", "matching": fit_matching(scores.mated, scores.impostor, data)},
        )


def _initial_embedder(recipe: EmbedRecipe, config: Any) -> nn.Module:
    """Build a network with random weights, or with those of the model that `model.init` names."""
    module = build(recipe.model.architecture, asdict(config))
    if name := recipe.model.init:
        try:
            initial, _ = checkpoint.load(exported(name))
            module.load_state_dict(_resampled(initial.state_dict(), module.state_dict()))
        except (checkpoint.CheckpointError, RuntimeError) as error:
            raise RunError(f"cannot start from {name}: {error}") from error
    return module


def _resampled(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Resample the global depthwise weights [C, S, S] of `state` to the sides in `target`, keeping their sum.

    A network that was trained on small images continues with larger ones (progressive resizing).
    """
    resampled = dict(state)
    for name, value in state.items():
        if name in target and value.ndim == 3 and value.shape[0] == target[name].shape[0]:
            sides = target[name].shape[1:]
            resized = F.interpolate(value[None], tuple(sides), mode="bilinear", align_corners=True)[0]
            resampled[name] = resized * (value.shape[1:].numel() / sides.numel())
    return resampled


def interpolate(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights at `share` (0..1) of the way from one state to another; integers are those of `end`."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def setup(recipe: EmbedRecipe, accelerator: Accelerator, _: Path) -> EmbeddingTask:
    """Load the data and build the network."""
    with accelerator.local_main_process_first():  # the main process decodes, the others read its result
        images = load(recipe.data.name, "train", recipe.preprocess)
    return EmbeddingTask(recipe, images, accelerator)


cli = command(
    EmbedRecipe,
    setup,
    export_and_summarise,
    "Train an embedder by its recipe; the model and its card are written to the run's export/.",
)

if __name__ == "__main__":
    cli()
