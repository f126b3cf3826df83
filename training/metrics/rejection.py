"""Calibrate the rejection of images of no class (`models.rejection`), and measure it on foreign images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from models import checkpoint
from models.card import Metric, ModelCard
from models.preprocess import Preprocess
from models.rejection import Rejection, energies, fit_rejection
from models.runtime import Runtime
from training.core import weights
from training.core.errors import DataError
from training.datasets.batches import stratified_sample, stratified_split
from training.datasets.images import ImageSet, Indices, load
from training.metrics.classification import evaluation_runtime, predict

Floats = npt.NDArray[np.float64]

MAX_IMAGES = 5000  # for the calibration
REPORTED_SHARE = 0.05


def held_out_rows(card: ModelCard, dataset: str, images: ImageSet) -> Indices:
    """Return at most `MAX_IMAGES` rows of the data set's `train` split on which the model was not trained, ascending.

    These are the rows that its training held out for validation. For a model whose card has no recipe for this data
    set, these are all rows.

    Raises:
        DataError: if the data set has a class that the card does not have.
    """
    if not set(images.classes) <= set(card.classes):
        raise DataError(f"{dataset} has the classes {images.classes}, the card {card.classes}")
    rows = np.arange(len(images.labels))
    recipe = card.training.recipe if card.training else {}
    if recipe.get("data", {}).get("name") == dataset:
        _, rows = stratified_split(images.labels, recipe["data"]["validation"], recipe["seed"])
    return stratified_sample(images.labels, rows, MAX_IMAGES, seed=0)


def calibrate_rejection(folder: Path, dataset: str) -> Rejection:
    """Fit the rejection of the classifier in `folder` to held-out images, and write it into the card.

    Raises:
        CheckpointError: see `checkpoint.load`.
        DataError: the model is not a classifier; see also `images.load` and `held_out_rows`.
        ValueError: there are too few images, see `fit_rejection`.
    """
    module, card = weights.load(folder, "classify")
    images = load(dataset, "train", card.preprocess)
    rows = held_out_rows(card, dataset, images)
    logits = predict(evaluation_runtime(module), images, rows, card.preprocess)[0].numpy()
    rejection = fit_rejection(logits, f"{dataset} train ({len(rows):,} not trained on)")
    checkpoint.write_card(folder, card.model_copy(update={"rejection": rejection}))
    return rejection


def separation(own: Floats, foreign: Floats) -> float:
    """Return the area under the ROC curve: the share of pairs of whom the foreign image has the higher score."""
    labels = np.repeat([0, 1], [len(own), len(foreign)])
    return float(roc_auc_score(labels, np.concatenate([own, foreign])))


def scores(logits: Floats, temperature: float) -> dict[str, Floats]:
    """Return the scores of images, higher for foreign ones, from logits [N, K].

    "auroc" is the energy; "auroc_softmax", the baseline, is 1 - the largest probability (Hendrycks, Gimpel, "A Baseline
    for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017).
    """
    shifted = (logits - logits.max(axis=1, keepdims=True)) / temperature
    return {"auroc": energies(logits), "auroc_softmax": 1 - 1 / np.exp(shifted).sum(axis=1)}


def measure_rejection(folder: Path, dataset: str, foreign: Sequence[str]) -> list[Metric]:
    """Return the share of the data set's test images that the classifier accepts, and how it separates foreign ones.

    `foreign` names data sets whose test images show none of the classifier's classes.

    Raises:
        CheckpointError: see `checkpoint.load`.
        DataError: the model is not a classifier, or is not calibrated; see also `images.load`.
    """
    module, card = weights.load(folder, "classify")
    if card.rejection is None:
        raise DataError(f"{folder} is not calibrated: run python -m training.calibrate {folder} --data {dataset}")
    runtime = evaluation_runtime(module)
    own, where = _test_logits(runtime, dataset, card.preprocess)
    accepted = float((energies(own) <= card.rejection.threshold(REPORTED_SHARE)).mean())
    metrics = [Metric(name=f"accepted@reject={REPORTED_SHARE}", value=accepted, data=where)]
    own_scores = scores(own, card.temperature)
    for name in foreign:
        logits, foreign_where = _test_logits(runtime, name, card.preprocess)
        for score, values in scores(logits, card.temperature).items():
            area = separation(own_scores[score], values)
            metrics.append(Metric(name=score, value=area, data=f"{where} against {foreign_where}"))
    return metrics


def _test_logits(runtime: Runtime, dataset: str, preprocess: Preprocess) -> tuple[Floats, str]:
    """Return the logits [N, K] of the data set's test images, and what they are."""
    images = load(dataset, "test", preprocess)
    logits = predict(runtime, images, np.arange(len(images.labels)), preprocess)[0]
    return logits.double().numpy(), f"{dataset} test ({len(images.labels):,})"
