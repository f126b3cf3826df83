"""Write the figures of generators as tables, and a contact sheet of the samples of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from models import checkpoint
from models.checkpoint import write_atomically
from training.core.weights import update_metrics
from training.evaluation.markdown import put, table
from training.evaluation.measure_generators import IMPORTANCE_SAMPLES, SEED, Figures, Group, Quality, card_metrics, draw
from training.metrics.contact_sheet import sheet

_SHEET = 10  # images in a row
_UNLABELLED = 8  # the same without classes, and as many rows
_SHEET_WIDTH = 600  # approximately, in pixels


def markdown(judged: Sequence[Figures]) -> str:
    """Return an explanation, and for each judge of the same images a table for each image size."""
    measured = [quality.name for figures in judged for group in figures.groups for quality in group.generators]
    names = list(dict.fromkeys(measured))
    command = f"python -m training.evaluate generate {' '.join(f'weights/{name}' for name in names)}"
    judges = " ".join(f"--judge weights/{figures.extractor.card.name}" for figures in judged)
    about = f"""\
By `{command} --data {judged[0].dataset} {judges}`: {judged[0].samples:,} images of each,
against the real test images. The first row is real images of the training split,
which no generator can exceed by much; the last is a Gaussian with the mean and the covariance of the training images'
pixels. Distance within a class: between two images classified as the same class, divided by that between two real
images; the mean over classes, and the minimum. Precision is the share of generated images inside the manifold of real
images, recall the share of real images inside the manifold of generated ones (3 neighbours)."""
    tables = [_table(figures, group) for figures in judged for group in figures.groups]
    return "\n\n".join([about, *tables, _sheets(names)])


def _table(figures: Figures, group: Group) -> str:
    rows = [group.floor, *group.generators, group.ceiling]
    columns: dict[str, list[str]] = {
        figures.extractor.frechet_name: [f"{row.frechet:.4g}" for row in rows],
        "kernel distance": [f"{row.kernel:.4g}" for row in rows],
        "precision": [f"{row.manifolds.precision:.3f}" for row in rows],
        "recall": [f"{row.manifolds.recall:.3f}" for row in rows],
        "distance within a class": [_spread(row) for row in rows],
        "classified as requested": ["" if row.asked is None else f"{100 * row.asked:.2f} %" for row in rows],
        "shares of classes": [_shares(row) for row in rows],
        "Inception score": ["" if row.inception is None else f"{row.inception:.2f}" for row in rows],
        "ELBO": ["" if row.bounds is None else f"{row.bounds[0]:.2f}" for row in rows],
        f"IWAE-{IMPORTANCE_SAMPLES}": ["" if row.bounds is None else f"{row.bounds[1]:.2f}" for row in rows],
    }
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    height, width = group.preprocess.size
    card = figures.extractor.card
    about = f"By `{card.name}`, version {card.version}: images of {width}x{height} against {group.test:,} real ones"
    if any(row.bounds for row in rows):
        about += f"; ELBO and IWAE-{IMPORTANCE_SAMPLES} of {group.held_out:,} of them, in nats an image"
    cells = zip([row.name for row in rows], *kept.values(), strict=True)
    return f"{about}:\n\n" + table(["images", *kept], [list(row) for row in cells])


def _spread(row: Quality) -> str:
    lowest = "" if row.shares is None else f", minimum {100 * row.spread.lowest:.1f}"
    return f"{100 * row.spread.mean:.1f}{lowest} %"


def _shares(row: Quality) -> str:
    return "" if row.shares is None else f"{100 * row.shares[0]:.1f} to {100 * row.shares[1]:.1f} %"


def _sheets(names: Sequence[str]) -> str:
    links = [f"![Samples of {name}](pictures/samples-{name}.png)" for name in names]
    return "\n\n".join([f"The first samples of seed {SEED}; for conditional models, a row for each class.", *links])


def publish(dataset: str, text: str, weights: Mapping[str, Path], folder: Path) -> None:
    """Write the data set's part of generators.md, and pictures/samples-*.png; `weights` by name.

    Raises:
        DataError: see `put`.
    """
    put(folder / "generators.md", f"generators-{dataset}", text, heading="Generators")
    for name, path in weights.items():
        write_atomically(folder / "pictures" / f"samples-{name}.png", draw_sheet(path))


def draw_sheet(weights: Path) -> bytes:
    """Return a PNG of the first samples of a generator, with a row for each class, if any."""
    network, card = checkpoint.load(weights)
    columns, rows = (_SHEET, len(card.classes)) if card.classes else (_UNLABELLED, _UNLABELLED)
    labels = torch.arange(rows).repeat_interleave(columns) if card.classes else None
    pixels = draw(network, card, rows * columns, SEED, labels).pixels
    return sheet(pixels, columns, scale=max(1, _SHEET_WIDTH // (columns * card.preprocess.size[1])))


def write_cards(judged: Sequence[Figures], weights: Mapping[str, Path]) -> None:
    """Write the figures into the generators' cards; `weights` by name."""
    for figures in judged:
        for group in figures.groups:
            for quality in group.generators:
                update_metrics(weights[quality.name], card_metrics(figures, group, quality))
