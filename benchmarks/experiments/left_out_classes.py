"""Rejection of classes that were left out of training: `python -m benchmarks.experiments.left_out_classes RECIPE`.

Two of the data set's classes, drawn by the seed, are removed before training. The AUROC compares the test images of the
other classes with those of the two.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from accelerate import Accelerator  # type: ignore[import-untyped]

from models import checkpoint
from training.classify import ClassificationTask
from training.core.errors import exit_on_error
from training.core.export import begin, export
from training.core.trainer import fit
from training.datasets.images import ImageSet, load
from training.metrics.classification import evaluation_runtime, predict
from training.metrics.rejection import scores, separation
from training.recipe.config import Recipe, read_recipe


def without(images: ImageSet, left_out: list[int]) -> ImageSet:
    """The images of the other classes, which are numbered anew."""
    kept = [label for label in range(len(images.classes)) if label not in left_out]
    rows = np.flatnonzero(np.isin(images.labels, kept))
    labels = np.searchsorted(kept, images.labels[rows])
    return ImageSet(images.images[rows], labels, tuple(images.classes[label] for label in kept))


def main(
    path: Annotated[Path, typer.Argument(metavar="RECIPE")],
    seed: Annotated[int, typer.Option(help="Draws the two classes.")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="As train.epochs=4; repeatable.")] = None,
) -> None:
    """Train without two classes, and print the accuracy on the others and the AUROC of both scores."""
    with exit_on_error():
        recipe = read_recipe(Recipe, path, [*(overrides or ()), f"name='{path.stem}-left-out-{seed}'"])
        train, test = (load(recipe.data.name, split, recipe.preprocess) for split in ("train", "test"))
        left_out = sorted(random.Random(seed).sample(range(len(train.classes)), 2))

        def setup(recipe: Recipe, accelerator: Accelerator, _: Path) -> ClassificationTask:
            return ClassificationTask(recipe, without(train, left_out), accelerator)

        task, run = begin(setup, recipe, overwrite=True)
        progress = fit(task, run, recipe.train, recipe.seed)
        card = export(task, run, progress)
        assert card is not None
        module, _ = checkpoint.load(run.folder / "export" / recipe.name)
    runtime, is_foreign = evaluation_runtime(module), np.isin(test.labels, left_out)
    logits = predict(runtime, test, np.arange(len(test.labels)), recipe.preprocess)[0].double().numpy()
    own = without(test, left_out)
    accuracy = float((logits[~is_foreign].argmax(axis=1) == own.labels).mean())
    names = " and ".join(test.classes[label] for label in left_out)
    typer.echo(f"without {names}: accuracy {accuracy:.4f} on {len(own.labels):,} test images of the other classes")
    for name, values in scores(logits, card.temperature).items():
        typer.echo(f"{name:14} {separation(values[~is_foreign], values[is_foreign]):.4f}")


if __name__ == "__main__":
    typer.run(main)
