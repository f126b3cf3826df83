"""Fit an embedder's thresholds and probabilities (`models.matching.Matching`) to the identities that calibrate.

`python -m training.calibrate WEIGHTS --data faces` does so for a model that was not trained here, and writes them into
its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit, log_expit, logit  # type: ignore[import-untyped]
from scipy.stats import genpareto  # type: ignore[import-untyped]

from models import checkpoint
from models.card import Metric, ModelCard
from models.matching import Matching, OperatingPoint, Tail
from models.runtime import prepare
from models.tta import Tta
from training.core.errors import DataError, TrainingError
from training.datasets import images as data
from training.datasets.faces import impostor_pairs, mated_pairs, rows_of
from training.losses.metric_learning import unit
from training.metrics.classification import predict
from training.metrics.verification import Scores

cli = typer.Typer(add_completion=False)

Floats = npt.NDArray[np.float64]

RATES = tuple(m * 10.0**-e for e in range(1, 8) for m in (1.0, 0.5, 0.2))
# A rate is counted when this many strangers reach its threshold: their number is then known to about a third.
FEWEST = 10
FEWEST_IMPOSTORS = 1000
# The share of strangers whose similarities the tail is fitted to.
TAIL = 0.02


def fit_matching(scores: Scores, data: str, prior: float = 0.5) -> Matching:
    """Thresholds, impostor tail and probability, from the mated and the non-mated pairs of `data`.

    Raises:
        ValueError: fewer than `FEWEST_IMPOSTORS` non-mated pairs, or similarities that tell nothing apart.
    """
    count = len(scores.impostor)
    if count < FEWEST_IMPOSTORS:
        raise ValueError(f"calibration needs {FEWEST_IMPOSTORS} non-mated pairs or more, got {count}")
    counted = [rate for rate in RATES if rate * count >= FEWEST]
    points = [OperatingPoint(fmr=rate, similarity=scores.threshold_at(rate)) for rate in counted]
    slope, intercept = _logistic(scores, prior)
    return Matching(
        points=tuple(points),
        tail=_tail(scores.impostor),
        slope=slope,
        intercept=intercept,
        prior=prior,
        impostors=count,
        data=data,
    )


def _tail(impostor: Floats) -> Tail:
    start = float(np.quantile(impostor, 1 - TAIL))
    excesses = impostor[impostor > start] - start
    shape, _, scale = genpareto.fit(excesses, floc=0)
    return Tail(start=start, rate=len(excesses) / len(impostor), shape=float(shape), scale=float(scale))


def _logistic(scores: Scores, prior: float) -> tuple[float, float]:
    """Slope and intercept of the most likely logistic curve, mated pairs weighing `prior` and the others the rest."""
    values = np.concatenate([scores.mated, scores.impostor])
    sign = np.repeat([1.0, -1.0], [len(scores.mated), len(scores.impostor)])
    weight = np.where(sign > 0, prior / len(scores.mated), (1 - prior) / len(scores.impostor))
    centre, spread = values.mean(), values.std()
    if not spread:
        raise ValueError("all similarities are equal")
    scaled = (values - centre) / spread

    def loss(x: Floats) -> tuple[float, Floats]:
        margin = sign * (x[0] * scaled + x[1])
        pull = -weight * sign * expit(-margin)
        # A slight pull to zero keeps the slope finite where the pairs do not overlap.
        gradient = np.array([pull @ scaled, pull.sum()]) + 1e-6 * x * np.array([1.0, 0.0])
        return float(-weight @ log_expit(margin) + 0.5e-6 * x[0] ** 2), gradient

    best = minimize(loss, np.array([1.0, float(logit(prior))]), jac=True, method="BFGS").x
    if best[0] <= 0:
        raise ValueError("mated pairs are not more alike than others")
    return float(best[0] / spread), float(best[1] - best[0] * centre / spread)


def calibrate(
    folder: Path, dataset: str, *, tta: Tta = "flip", mated: int = 10, impostors: int = 500_000, seed: int = 0
) -> ModelCard:
    """Fit the matching of the embedder in `folder` to the calibration identities and write it into the card.

    At most `mated` pairs of each identity and `impostors` pairs of strangers of one source are compared, with the views
    of `tta` averaged, which the card then asks for.

    Raises:
        CheckpointError: see `checkpoint.load`.
        DataError: another task; see `data.load` and `rows_of`; too few pairs, or similarities that tell nothing apart.
    """
    module, card = checkpoint.load(folder)
    if card.task != "embed":
        raise DataError(f"{folder} is a network to {card.task}, not to embed")
    images = data.load(dataset, "train", card.preprocess)
    rows = rows_of(images, "calibrate")
    pairs = np.concatenate([mated_pairs(images, rows, mated, seed), impostor_pairs(images, rows, impostors, seed)])
    runtime = prepare(module.to(memory_format=torch.channels_last))  # a third of the time on a CPU
    vectors = unit(predict(runtime, images, rows, card.preprocess, tta=tta).sum(dim=0)).double().numpy()
    first, second = np.searchsorted(rows, pairs).T
    same = images.labels[pairs[:, 0]] == images.labels[pairs[:, 1]]
    try:
        scores = Scores.of((vectors[first] * vectors[second]).sum(axis=1), same)
        where = f"{dataset}, calibrate: {len(scores.mated):,} mated, {len(scores.impostor):,} non-mated pairs"
        matching = fit_matching(scores, where)
    except ValueError as error:
        raise DataError(f"{dataset}: {error}") from error
    figures = {"tar@fmr=0.01": scores.tar(0.01), "tar@fmr=0.001": scores.tar(0.001), "eer": scores.eer()}
    metrics = [Metric(name=name, value=value, data=where) for name, value in figures.items()]
    kept = [metric for metric in card.metrics if not metric.data.startswith(f"{dataset}, calibrate: ")]
    card = card.model_copy(update={"matching": matching, "tta": tta, "metrics": (*kept, *metrics)})
    checkpoint.write_card(folder, card)
    return card


@cli.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    flip: Annotated[bool, typer.Option(help="Average the vectors of a face and of its mirror image.")] = True,
) -> None:
    """Write thresholds and probabilities into an embedder's card."""
    try:
        card = calibrate(folder, dataset, tta="flip" if flip else "none")
    except (TrainingError, checkpoint.CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for metric in card.metrics:
        typer.echo(f"{metric.name:16} {metric.value:.4f}  {metric.data}")


if __name__ == "__main__":
    cli()
