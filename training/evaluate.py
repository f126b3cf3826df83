"""Measure exported weights on a test split, which no other training command opens.

`python -m training.evaluate classify weights/lenet5-mnist --data mnist --write`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from models import checkpoint
from models.card import Metric
from training.core.errors import exit_on_error
from training.core.run_folder import Run
from training.core.weights import update_metrics
from training.evaluation import (
    measure_faces,
    measure_generators,
    measure_int8,
    measure_int8_detector,
    report_faces,
    report_generators,
)
from training.evaluation.compare import compare
from training.evaluation.measure_words import draw_recall, evaluate_run, recall_table, times
from training.metrics.classification import measure_classifier
from training.metrics.rejection import measure_rejection
from training.recipe.config import runs_folder

cli = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


@cli.command()
def classify(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS.")],
    write: Annotated[bool, typer.Option("--write", help="Put the figures into the card.")] = False,
) -> None:
    """Print accuracy, NLL and ECE of a classifier at its card's temperature.

    `_tta`: with test-time augmentation; `_int8`: of the quantised network.
    """
    with exit_on_error():
        _, metrics = measure_classifier(folder, dataset)
    _report(folder, metrics, write=write)


@cli.command()
def rejection(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS with its classes.")],
    foreign: Annotated[list[str], typer.Option(help="A data set without any of its classes; repeatable.")],
    write: Annotated[bool, typer.Option("--write", help="Put the figures into the card.")] = False,
) -> None:
    """Print the share of test images that a classifier accepts, and how well it separates foreign ones (AUROC)."""
    with exit_on_error():
        metrics = measure_rejection(folder, dataset, foreign)
    _report(folder, metrics, write=write)


def _report(folder: Path, metrics: Sequence[Metric], *, write: bool) -> None:
    """Print figures, and with `write` put them into the card."""
    for metric in metrics:
        typer.echo(f"{metric.name:16} {metric.value:.4f}  {metric.data}")
    if write:
        update_metrics(folder, metrics)


@cli.command()
def faces(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    lfw: Annotated[Path | None, typer.Option(help="LFW's images with pairsDevTest.txt, pairs.txt or both.")] = None,
    orl: Annotated[Path | None, typer.Option(help="ORL's images, s1/1.pgm to s40/10.pgm.")] = None,
    detector: Annotated[Path, typer.Option(help="The weights folder of a detector.")] = Path("weights/centerface"),
    write: Annotated[Path | None, typer.Option(help="Put faces.md and its pictures into this folder.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Put the figures into the card.")] = False,
) -> None:
    """Measure verification, identification and calibration of a face embedder, as tables and plots."""
    with exit_on_error():
        figures = measure_faces.measure(folder, dataset, lfw, orl, detector)
        text = report_faces.markdown(figures)
        typer.echo(text)
        if write is not None:
            report_faces.publish(figures, text, write)
        if card:
            update_metrics(folder, report_faces.card_metrics(figures))


@cli.command("faces-int8")
def faces_int8(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A folder with model.safetensors and card.json.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    lfw: Annotated[Path | None, typer.Option(help="LFW's images with pairsDevTest.txt, pairs.txt or both.")] = None,
    detector: Annotated[Path, typer.Option(help="The weights folder of a detector.")] = Path("weights/centerface"),
    write: Annotated[bool, typer.Option("--write", help="Put the figures into the card.")] = False,
) -> None:
    """Print verification figures of a face embedder's quantised network beside those of torch.

    `_int8`: both vectors of a pair are the quantised network's; `_mixed`: only the second is.
    """
    with exit_on_error():
        metrics = measure_int8.measure(folder, dataset, lfw, detector)
    _report(folder, metrics, write=write)


@cli.command("detector-int8")
def detector_int8(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="The weights folder of a detector.")],
    lfw: Annotated[Path, typer.Option(help="LFW's images with pairsDevTest.txt, pairs.txt or both.")],
    embedder: Annotated[Path, typer.Option(help="The weights folder of a face embedder.")] = Path(
        "weights/mobilefacenet-triplet"
    ),
    write: Annotated[bool, typer.Option("--write", help="Put the figures into the detector's card.")] = False,
) -> None:
    """Compare the faces that a detector's quantised network finds with torch's, and verification with them.

    `_int8`: of the quantised network; `_mixed`: of pairs of photos of which it found the second one's face.
    """
    with exit_on_error():
        metrics = measure_int8_detector.measure(folder, lfw, embedder)
    _report(folder, metrics, write=write)


@cli.command()
def generate(
    folders: Annotated[list[Path], typer.Argument(metavar="WEIGHTS...", help="Folders of generators.")],
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS.")],
    judges: Annotated[
        list[Path],
        typer.Option("--judge", help="The extractor of features: a classifier or a face embedder; repeatable."),
    ],
    samples: Annotated[int, typer.Option(min=2, help="Images of each.")] = 10_000,
    held_out: Annotated[int, typer.Option(min=0, help="Test images for a VAE's bounds; 0 for all.")] = 0,
    write: Annotated[Path | None, typer.Option(help="Put generators.md and its pictures into this folder.")] = None,
    cards: Annotated[bool, typer.Option("--cards", help="Put the figures into the cards.")] = False,
) -> None:
    """Measure Frechet distance, precision, recall and diversity of generated images; bounds on a VAE's likelihood."""
    with exit_on_error():
        judged = measure_generators.measure(folders, dataset, judges, samples, held_out)
        text = report_generators.markdown(judged)
        typer.echo(text)
        weights = {checkpoint.read_card(folder).name: folder for folder in folders}
        if write is not None:
            report_generators.publish(dataset, text, weights, write)
        if cards:
            report_generators.write_cards(judged, weights)


@cli.command()
def words(
    run: Annotated[str, typer.Option(help="The run's folder under VESTIBULE_RUNS.")] = "names",
    relatives: Annotated[int, typer.Option(min=0, help="Recombined names in the gallery beside the real ones.")] = 7500,
    most: Annotated[int, typer.Option("--names", min=0, help="The largest number of test names; 0 for all.")] = 0,
) -> None:
    """Measure recall@1 compared with edit distances: tables on the terminal, plots in the run's folder."""
    folder = Run(runs_folder() / run)
    with exit_on_error():
        results, gallery = evaluate_run(folder, relatives, most)
    typer.echo(f"{recall_table(results)}\n\nprocessor time in a gallery of {gallery:,}, in the encoder's:")
    for method, ratio in times(results).items():
        typer.echo(f"{ratio:6.2f}  {method}")
    for kinds in ("trained", "held out"):
        path = folder.folder / f"names-{kinds.replace(' ', '-')}.png"
        checkpoint.write_atomically(path, draw_recall(results, kinds, gallery))
        typer.echo(path)


cli.command()(compare)


if __name__ == "__main__":
    cli()
