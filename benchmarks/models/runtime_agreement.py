"""Every shipped classifier and embedder on each runtime that may serve it, against torch in float32, on real pictures.

    python -m benchmarks.models.runtime_agreement [--only vgg-cifar10]

2,000 test pictures of the set that the network is for: of MNIST, CIFAR-10 or the faces; LFW's development view, whole
and mirrored, for the network of a thousand things. A row for each network and runtime is written to
benchmarks/results/runtime_agreement.csv. Nothing is fitted to these pictures: the service compares on others, those in
examples/.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks import tables
from models import checkpoint, runtime
from models.card import ModelCard
from models.runtime import Runtime
from models.runtime_selection import OutputKind, RuntimeSelector, disagreement
from training.datasets import images as data
from training.datasets.faces import rows_of
from training.datasets.protocols import read_lfw
from training.prepare.face_photos import read_photo
from training.recipe.config import datasets_folder

RESULTS = Path("benchmarks/results/runtime_agreement.csv")
COLUMNS = ("model", "version", "runtime", "pictures", "top1_same", "probability_off", "cosine_least", "refused")
PICTURES, AT_ONCE = 2_000, 32

cli = typer.Typer(add_completion=False, help=__doc__)


def _split(dataset: str, card: ModelCard) -> Tensor:
    return _laid_out(data.load(dataset, "test", card.preprocess), slice(PICTURES), card)


def _faces(card: ModelCard) -> Tensor:
    """Of people that the network was not trained on."""
    faces = data.load("faces", "train", card.preprocess)
    return _laid_out(faces, rows_of(faces, "test")[:PICTURES], card)


def _laid_out(images: data.ImageSet, rows: slice | data.Indices, card: ModelCard) -> Tensor:
    return card.preprocess.normalise(torch.from_numpy(np.array(images.images[rows])))


def _photos(card: ModelCard) -> Tensor:
    found = map(read_photo, read_lfw(datasets_folder() / "lfw-view1").paths)
    photos = [photo for photo in found if isinstance(photo, Image.Image)]
    shown = [*photos, *map(ImageOps.mirror, photos)][:PICTURES]
    return torch.stack([card.preprocess(photo) for photo in shown])


def shown_to(card: ModelCard) -> Tensor:
    """The pictures for a network, as it takes them: float32 [N, C, H, W]."""
    if card.task == "embed":
        return _faces(card)
    for dataset in ("mnist", "cifar10"):
        if card.name.endswith(dataset):
            return _split(dataset, card)
    return _photos(card)


def answers(ready: Runtime, pictures: Tensor) -> Tensor:
    """Of the runtime, [N, D]."""
    return torch.cat([ready(part) for part in torch.split(pictures, AT_ONCE)])


def measure(folder: Path, card: ModelCard, compiled: Path) -> list[dict[str, object]]:
    """A row for each runtime."""
    network, _ = checkpoint.load(folder)
    pictures = shown_to(card)
    kind: OutputKind = "logits" if card.task == "classify" else "vectors"
    choice = RuntimeSelector(
        network, card.preprocess, card.preprocess.shape, kind, card.tolerance, card.sha256, compiled
    )
    expected = answers(runtime.prepare(network), pictures)
    rows = []
    for name, make in choice.candidates().items():
        found = answers(make(), pictures)
        rows.append(
            {
                "model": card.name,
                "version": card.version,
                "runtime": name,
                "pictures": len(pictures),
                **_figures(expected, found, kind),
                "refused": disagreement(expected, found, kind, card.tolerance) or "",
            }
        )
    return rows


def _figures(expected: Tensor, found: Tensor, kind: OutputKind) -> dict[str, str]:
    cosine = f"{float(torch.cosine_similarity(expected, found).min()):.6f}"
    if kind == "vectors":
        return {"top1_same": "", "probability_off": "", "cosine_least": cosine}
    same = float((expected.argmax(dim=1) == found.argmax(dim=1)).double().mean())
    furthest = float((expected.softmax(dim=1) - found.softmax(dim=1)).abs().max())
    return {"top1_same": f"{same:.4f}", "probability_off": f"{furthest:.5f}", "cosine_least": cosine}


@cli.command()
def run(
    weights: Annotated[Path, typer.Option(help="A folder of models.")] = Path("weights"),
    only: Annotated[list[str] | None, typer.Option(help="Names of models; default: all.")] = None,
    results: Annotated[Path, typer.Option(help="A CSV file.")] = RESULTS,
) -> None:
    """Measure, and write the CSV."""
    cards = [checkpoint.read_card(path.parent) for path in sorted(weights.glob(f"*/{checkpoint.CARD_FILE}"))]
    chosen = [card for card in cards if card.task in ("classify", "embed") and (not only or card.name in only)]
    for card in chosen:
        with tempfile.TemporaryDirectory() as compiled:
            new = measure(weights / card.name, card, Path(compiled))
        kept = [row for row in tables.read(results) if row["model"] != card.name]
        tables.write(results, COLUMNS, [*kept, *new])
        for row in new:
            typer.echo("  ".join(str(row[column]) for column in COLUMNS))


if __name__ == "__main__":
    cli()
