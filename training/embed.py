"""Train an embedder: `python -m training.embed training/recipes/face-embedder.toml`.

One recipe is one loss from beginning to end. What takes several stages (a teacher's vectors first, triplets last) is a
recipe for each, whose `model.init` names the one before. Several processes are started as `training.classify` says;
they mine in what all of them have embedded together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from models import checkpoint
from models.card import Metric, ModelCard, Training
from models.registry import build, configure
from models.runtime import TorchRuntime
from training.calibrate import FEWEST_IMPOSTORS, fit_matching
from training.core.errors import DataError, RunError, TrainingError
from training.core.run_folder import Progress, Run, hardware, versions
from training.core.seeds import derive, generator
from training.core.trainer import Learner, fit, gather_rows, make_accelerator
from training.datasets import images as data
from training.datasets.augment import Colours, augment, colour_basis
from training.datasets.faces import impostor_pairs, mated_pairs, rows_of
from training.losses import metric_learning, mining
from training.metrics.classification import predict
from training.metrics.verification import Scores, cross_validated_accuracy
from training.recipe.config import EmbedRecipe, LossSection, exported, read_recipe, runs_folder, teacher_files

cli = typer.Typer(add_completion=False)


class WithProxies(nn.Module):
    """An embedder in training, with the vector of each identity that margin softmax learns beside it."""

    proxies: nn.Parameter | None

    def __init__(self, embedder: nn.Module, identities: int, dimensions: int):
        super().__init__()
        self.embedder = embedder
        self.proxies = nn.Parameter(torch.randn(identities, dimensions) * 0.01) if identities else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings [N, D] and, for DistributedDataParallel to see that they are used, the proxies."""
        return self.embedder(images), self.proxies


class Teacher:
    """Another network's vectors [pictures of the data set, D], as `training.teach` writes them.

    They are VESTIBULE_RUNS/teachers/<name>.npy or come with the data: VESTIBULE_DATASETS/<name>/<data set>-vectors.npy.

    Raises:
        DataError: neither file exists, or it has another shape.
    """

    def __init__(self, name: str, dataset: str, shape: tuple[int, int], rows: data.Indices):
        written, supplied = teacher_files(name, dataset)
        path = next((file for file in (written, supplied) if file.is_file()), None)
        if path is None:
            raise DataError(f"{written} is missing, and so is {supplied}: write it with `python -m training.teach`")
        self._vectors: npt.NDArray[Any] = np.load(path, mmap_mode="r")
        if self._vectors.shape != shape:
            raise DataError(f"{path} has the shape {list(self._vectors.shape)}, expected {list(shape)}")
        self._centre = torch.from_numpy(np.asarray(self._vectors[rows], np.float32).mean(axis=0))

    def loss(self, embeddings: Tensor, rows: data.Indices, relations: float) -> Tensor:
        """How far the embeddings [N, D] of those rows are from the teacher's, see `losses.distillation`."""
        vectors = torch.from_numpy(np.asarray(self._vectors[rows], np.float32)).to(embeddings.device)
        return metric_learning.distillation(
            embeddings, vectors, self._centre.to(embeddings.device), relations=relations
        )


class Embedding:
    """The task: a loss over batches of P identities; the best epoch by TAR on the identities that calibrate."""

    monitor = "tar"
    mode: Literal["max", "min"] = "max"

    def __init__(self, recipe: EmbedRecipe, images: data.ImageSet, accelerator: Accelerator):
        self.recipe = recipe
        self.images = images
        self.accelerator = accelerator
        self.config = configure(
            recipe.model.architecture, recipe.model.config | {"in_channels": recipe.preprocess.channels}
        )
        self._rows = rows_of(images, "train")
        _, identities = np.unique(images.labels[self._rows], return_inverse=True)
        self._labels = data.positive_labels(identities.astype(np.int64), recipe.data.positives)
        self._batches = data.IdentityBatches(
            self._labels,
            recipe.train.batch_size // recipe.data.images,
            recipe.data.images,
            recipe.seed,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.steps_per_epoch = self._batches.per_epoch
        self._held_out = rows_of(images, "calibrate")
        self._pairs, self._same = _pairs(recipe, images, self._held_out)
        shape = (len(images.labels), self.config.dimensions)
        self._teacher = (
            Teacher(recipe.loss.teacher, recipe.data.name, shape, self._rows) if recipe.loss.teacher else None
        )
        torch.manual_seed(derive(recipe.seed, "weights"))
        proxies = int(self._labels.max()) + 1 if recipe.loss.kind == "margin-softmax" else 0
        embedder = _begin(recipe, self.config)
        self._frozen = [block.requires_grad_(False) for block in _first_blocks(embedder, recipe.model.freeze)]
        module = WithProxies(embedder, proxies, self.config.dimensions)
        self._learner = Learner(module, recipe.train, self.steps_per_epoch, accelerator)
        self.learners = {"embedder": self._learner}
        no_basis = torch.zeros(recipe.preprocess.channels, recipe.preprocess.channels)
        basis = colour_basis(images.images, self._rows) if recipe.augment.colour_pca else no_basis
        self._colours = Colours(recipe.preprocess.mean, basis)

    def step(self, epoch: int, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """See `Task`."""
        places = self._batches(epoch, index)
        rows, device = self._rows[places], self.accelerator.device
        pixels = torch.from_numpy(np.asarray(self.images.images[rows])).to(device)  # uint8 [N, H, W, C]
        images = augment(pixels.movedim(-1, 1).float(), self.recipe.augment, generator, self._colours)
        images = self.recipe.preprocess.normalise(images.movedim(1, -1))
        if self.recipe.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self._learner.model.train()
        for block in self._frozen:
            block.eval()  # its batch norms keep their statistics
        embeddings, proxies = self._learner.model(images)
        labels = torch.from_numpy(self._labels[places]).to(device)
        loss, active = self._loss(embeddings.float(), labels, proxies, (epoch, index))
        if self._teacher:
            weight = 1.0 if self.recipe.loss.kind == "distillation" else self.recipe.loss.distillation
            loss = loss + weight * self._teacher.loss(embeddings.float(), rows, self.recipe.loss.relations)
        self._learner.update(loss)
        return {"loss": loss.detach(), "active": active.detach()}

    def _loss(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor | None, place: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The loss but for distillation, and the share of triplets that are active."""
        loss, none = self.recipe.loss, torch.zeros((), device=embeddings.device)
        if loss.kind == "distillation":
            return none, none
        if proxies is not None:
            return metric_learning.margin_softmax(
                embeddings, proxies, labels, margin=loss.margin, scale=loss.scale
            ), none
        embeddings, labels = mining.gather_embeddings(self.accelerator, embeddings, labels)
        distances = metric_learning.pairwise_distances(embeddings, loss.metric)
        # The same on every process, since all of them mine in the same batch.
        draw = generator(self.recipe.seed, "mine", *place)
        if loss.kind == "contrastive":
            pairs = _mined_pairs(loss, distances, labels, draw).of(distances)
            return metric_learning.contrastive(*pairs, loss.margin, squared=loss.squared), none
        triplets = _mined_triplets(loss, distances, labels, draw).of(distances)
        value = metric_learning.triplet(*triplets, loss.margin, squared=loss.squared, active_only=loss.active_only)
        positive, negative = (part.square() if loss.squared else part for part in triplets)
        return value, mining.active_fraction(positive, negative, loss.margin)

    def validate(self) -> Mapping[str, float]:
        """See `Task`."""
        scores = self.scores(self.similarities(self._learner.network.get_submodule("embedder")))
        return {"tar": scores.tar(0.01), "eer": scores.eer()}

    def scores(self, similarities: npt.NDArray[np.float64]) -> Scores:
        """The similarities [P] of the calibration split's pairs, as mated and non-mated ones."""
        return Scores.of(similarities, self._same)

    def similarities(self, network: nn.Module) -> npt.NDArray[np.float64]:
        """Cosines [P] of the calibration split's pairs, flips averaged as serving does; the same on all processes."""
        if self.recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)
        runtime = TorchRuntime(network, self.accelerator.device)

        def compute(rows: data.Indices) -> Tensor:
            views = predict(runtime, self.images, self._held_out[rows], self.recipe.preprocess, tta="flip")
            return metric_learning.unit(views.sum(dim=0))

        vectors = gather_rows(self.accelerator, len(self._held_out), compute).double().numpy()
        first, second = np.searchsorted(self._held_out, self._pairs).T
        return np.asarray((vectors[first] * vectors[second]).sum(axis=1))

    def accuracy(self, similarities: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Pairs decided rightly by ten folds, with the standard error; as many non-mated pairs as mated ones."""
        count = int(self._same.sum())
        kept = np.concatenate([np.flatnonzero(self._same), np.flatnonzero(~self._same)[:count]])
        return cross_validated_accuracy(similarities[kept], self._same[kept])


def _pairs(
    recipe: EmbedRecipe, images: data.ImageSet, rows: data.Indices
) -> tuple[data.Indices, npt.NDArray[np.bool_]]:
    mated = mated_pairs(images, rows, recipe.data.mated, recipe.seed)
    impostor = impostor_pairs(images, rows, recipe.data.impostors, recipe.seed)
    if len(impostor) < FEWEST_IMPOSTORS:
        raise DataError(
            f"calibration needs {FEWEST_IMPOSTORS} non-mated pairs; {recipe.data.name} has {len(impostor)} in its split"
        )
    return np.concatenate([mated, impostor]), np.arange(len(mated) + len(impostor)) < len(mated)


def _mined_pairs(loss: LossSection, distances: Tensor, labels: Tensor, draw: torch.Generator) -> mining.Pairs:
    if loss.mining == "random":
        return mining.random_pairs(distances, labels, draw)
    return mining.hard_pairs(distances, labels) if loss.mining == "batch-hard" else mining.all_pairs(distances, labels)


def _mined_triplets(loss: LossSection, distances: Tensor, labels: Tensor, draw: torch.Generator) -> mining.Triplets:
    if loss.mining == "random":
        return mining.random_triplets(distances, labels, draw)
    if loss.mining == "semi-hard":
        return mining.semi_hard(distances, labels, loss.margin)
    return mining.batch_hard(distances, labels) if loss.mining == "batch-hard" else mining.batch_all(distances, labels)


def _begin(recipe: EmbedRecipe, config: Any) -> nn.Module:
    """A network with random weights, or with those of the model that `model.init` names."""
    module = build(recipe.model.architecture, asdict(config))
    if recipe.model.init:
        name = recipe.model.init
        try:
            before, _ = checkpoint.load(exported(name))
            module.load_state_dict(_fitted(before.state_dict(), module.state_dict()))
        except (checkpoint.CheckpointError, RuntimeError) as error:
            raise RunError(f"cannot start from {name}: {error}") from error
    return module


def _fitted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state whose global depthwise weights [C, S, S] are resampled to the sides of `wanted`, their sum kept.

    So a network that was trained on small pictures goes on with larger ones (progressive resizing).
    """
    fitted = dict(state)
    for name, value in state.items():
        if name in wanted and value.ndim == 3 and value.shape[0] == wanted[name].shape[0]:
            sides = wanted[name].shape[1:]
            resized = F.interpolate(value[None], tuple(sides), mode="bilinear", align_corners=True)[0]
            fitted[name] = resized * (value.shape[1:].numel() / sides.numel())
    return fitted


def _between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights a `share` of the way from one state to another; counters are those of `end`."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def _first_blocks(embedder: nn.Module, count: int) -> list[nn.Module]:
    """The first `count` blocks of the embedder's features.

    Raises:
        RunError: it has fewer.
    """
    blocks = list(embedder.get_submodule("features").children())
    if count > len(blocks):
        raise RunError(f"freeze is {count}, and the network has {len(blocks)} blocks of features")
    return blocks[:count]


def setup(recipe: EmbedRecipe, run_name: str | None, *, resume: bool, overwrite: bool) -> tuple[Embedding, Run]:
    """The run's folder with the resolved recipe in it, the data, the network."""
    accelerator = make_accelerator(recipe.train)
    run = Run(runs_folder() / (run_name or recipe.name), main=accelerator.is_main_process)
    run.begin(recipe, resume=resume, overwrite=overwrite)
    with accelerator.local_main_process_first():  # one decodes, the others find it done
        images = data.load(recipe.data.name, "train", recipe.preprocess)
    return Embedding(recipe, images, accelerator), run


def export(task: Embedding, run: Run, progress: Progress) -> ModelCard | None:
    """Calibrate the best epoch's network on the identities that calibrate and write it as the service reads it."""
    recipe = task.recipe
    best = run.load_best()["networks"]["embedder"]
    network = build(recipe.model.architecture, asdict(task.config))
    state = {name.removeprefix("embedder."): value for name, value in best.items() if name.startswith("embedder.")}
    if recipe.model.trained < 1:
        state = _between(_begin(recipe, task.config).state_dict(), state, recipe.model.trained)
    network.load_state_dict(state)
    similarities = task.similarities(network)
    scores = task.scores(similarities)
    accuracy, _ = task.accuracy(similarities)
    if not run.main:
        return None
    where = f"{recipe.data.name}, calibrate: {len(scores.mated):,} mated, {len(scores.impostor):,} non-mated pairs"
    figures = {"accuracy": accuracy, "tar@fmr=0.01": scores.tar(0.01), "tar@fmr=0.001": scores.tar(0.001)}
    figures["eer"] = scores.eer()
    return checkpoint.save(
        run.folder / "export" / recipe.name,
        network,
        name=recipe.name,
        description=recipe.description,
        task="embed",
        architecture=recipe.model.architecture,
        config=asdict(task.config),
        preprocess=recipe.preprocess,
        tta="flip",
        matching=fit_matching(scores, where),
        metrics=[Metric(name=name, value=value, data=where) for name, value in figures.items()],
        training=Training(
            recipe=recipe.model_dump(mode="json"),
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
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="As training/recipes/face-embedder.toml.")],
    run: Annotated[str | None, typer.Option(help="The run's folder under VESTIBULE_RUNS; default: its name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in the folder.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=1; repeatable.")] = None,
) -> None:
    """Train an embedder by its recipe; the model and its card end up in the run's export/."""
    try:
        recipe = read_recipe(EmbedRecipe, path, overrides or ())
        task, folder = setup(recipe, run, resume=resume, overwrite=overwrite)
        progress = fit(task, folder, recipe.train, seed=recipe.seed, accelerator=task.accelerator, resume=resume)
        card = export(task, folder, progress)
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    task.accelerator.end_training()
    if card is not None:
        figures = ", ".join(f"{metric.name} {metric.value:.4f}" for metric in card.metrics)
        typer.echo(f"{folder.folder / 'export' / card.name}: epoch {progress.best_epoch}, {figures}")


if __name__ == "__main__":
    cli()
