"""Write a calibration into a trained model's card: `python -m training.calibrate WEIGHTS --data DATA`.

An embedder: thresholds and match probabilities (`models.matching.Matching`) are fitted to the identities of the
calibration split, for two faces, and for the fused frames of a passage (`models.passages`). A classifier: the rejection
of images of no class (`models.rejection`) is fitted to images on which it was not trained. The weights, and so the
fingerprints of collections, do not change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from models import checkpoint
from models.card import Metric, ModelCard
from models.detector import Pixels
from models.matching_fit import fit_matching
from models.preprocess import Preprocess
from models.tta import Tta
from training.core.errors import exit_on_error
from training.datasets import images
from training.datasets.faces import draw_pairs, rows_of
from training.datasets.passages import draw_burst_rows
from training.metrics.embedding import embed_faces, embed_rows, load_embedder
from training.metrics.passages import BURSTS, People, WeightedFaces, crop_weight, embed_bursts, fit_passages
from training.metrics.rejection import calibrate_rejection
from training.metrics.verification import Floats, Scores

cli = typer.Typer(add_completion=False)

# The size in which faces are aligned and their quality is measured, whatever size an embedder takes.
ALIGNED = Preprocess(size=(112, 112), mean=(127.5,) * 3, std=(127.5,) * 3)


def calibrate(
    folder: Path, dataset: str, *, tta: Tta = "flip", mated: int = 10, impostors: int = 500_000, seed: int = 0
) -> ModelCard:
    """Fit the matching of the embedder in `folder` to the calibration split, and return the card, updated on disk.

    Compares at most `mated` pairs of each identity, and `impostors` non-mated pairs whose images are from one source;
    for passages as many for each number of frames.
    Vectors are averaged over the views of `tta`, which becomes the card's test-time augmentation.

    Raises:
        CheckpointError: see `checkpoint.load`.
        DataError: if the model is not an embedder; see also `images.load` and `draw_pairs`.
        ValueError: if there are too few pairs, or mated pairs are not more similar than others.
    """
    runtime, card = load_embedder(folder)
    faces = images.load(dataset, "train", card.preprocess)
    rows = rows_of(faces, "calibrate")
    vectors = embed_rows(runtime, faces, rows, card.preprocess, tta=tta).double().numpy()
    pairs = draw_pairs(faces, rows, mated, impostors, seed)
    scores = Scores.of(pairs.similarities(vectors, rows), pairs.mated)
    where = f"{dataset}, calibrate: {len(scores.mated):,} mated, {len(scores.impostor):,} non-mated pairs"
    matching = fit_matching(scores.mated, scores.impostor, where)
    figures = {"tar@fmr=0.01": scores.tar(0.01), "tar@fmr=0.001": scores.tar(0.001), "eer": scores.eer()}
    metrics = [Metric(name=name, value=value, data=where) for name, value in figures.items()]
    kept = [metric for metric in card.metrics if not metric.data.startswith(f"{dataset}, calibrate: ")]
    card = card.model_copy(update={"matching": matching, "tta": tta, "metrics": (*kept, *metrics)})
    aligned = images.load(dataset, "train", ALIGNED)
    crop_weights = np.array([crop_weight(np.asarray(aligned.images[row])) for row in rows])
    people = People.of(aligned, rows, WeightedFaces(vectors, crop_weights))
    burst_rows = draw_burst_rows(aligned, rows, BURSTS, seed)

    def embed(crops: Pixels) -> Floats:
        return np.asarray(embed_faces(runtime, crops, card.preprocess, tta=tta).double().numpy())

    bursts = embed_bursts(aligned, burst_rows, embed, "calibrate", seed)
    passages = fit_passages(
        aligned, people, burst_rows, bursts, impostors=impostors, seed=seed, data=f"{dataset}, calibrate"
    )
    card = card.model_copy(update={"passages": passages})
    checkpoint.write_card(folder, card)
    return card


@cli.command()
def main(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS: faces, or images.")],
    flip: Annotated[bool, typer.Option(help="An embedder: average the vectors of a face and its mirror image.")] = True,
) -> None:
    """Write an embedder's thresholds and probabilities, or the rejection of a classifier, into the card."""
    with exit_on_error(ValueError):
        if checkpoint.read_card(folder).task == "classify":
            for quantile in calibrate_rejection(folder, dataset).quantiles:
                typer.echo(f"reject {quantile.share:<9g} energy above {quantile.energy:.4f}")
            return
        card = calibrate(folder, dataset, tta="flip" if flip else "none")
    for metric in card.metrics:
        typer.echo(f"{metric.name:16} {metric.value:.4f}  {metric.data}")


if __name__ == "__main__":
    cli()
