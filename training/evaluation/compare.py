"""Compare all classifiers of a data set: accuracy, calibration and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

from models import checkpoint
from models.card import ModelCard
from models.checkpoint import write_atomically
from models.openvino_runtime import OpenVinoRuntime
from models.runtime import Runtime, TorchRuntime, default_device
from models.timing import interleaved_medians
from models.tta import VIEWS
from training.core.errors import DataError, exit_on_error
from training.core.run_folder import hardware, versions
from training.datasets import images
from training.evaluation.markdown import put, table
from training.evaluation.plots import COLOURS, INK, Dot, blank, place_labels, png
from training.metrics.classification import measure_classifier
from training.metrics.flops import macs
from training.recipe.config import runs_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCHES = (1, 32)

RuntimeFactory = Callable[[nn.Module, ModelCard], Runtime]
Timing = tuple[str, int]  # runtime, batch size


def _openvino(module: nn.Module, card: ModelCard) -> Runtime:
    return OpenVinoRuntime(module, card.preprocess.shape, "f32", card.sha256, runs_folder() / "cache" / "compiled")


# The plot shows the latency of the first.
RUNTIMES: dict[str, RuntimeFactory] = {
    "OpenVINO float32": _openvino,
    "torch float32": lambda module, _: TorchRuntime(module, default_device()),
}


@dataclass(frozen=True)
class Entry:
    """One model. Accuracies and ECE are 0..1, `file_size` is in bytes, latencies are in milliseconds per image."""

    card: ModelCard
    accuracy: float
    accuracy_tta: float | None
    ece: float
    macs: int
    file_size: int
    latency: Mapping[Timing, float]


def compare(
    dataset: Annotated[str, typer.Option("--data", help="A data set under VESTIBULE_DATASETS.")],
    weights: Annotated[Path, typer.Option(help="A folder of models.")] = Path("weights"),
    write: Annotated[Path | None, typer.Option(help="Put zoo.md and pictures/zoo.png into this folder.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each latency is taken.")] = 30,
) -> None:
    """Compare accuracy, calibration and cost of all models with the data set's classes in a table and a plot."""
    with exit_on_error():
        entries = measure(fitting(weights, dataset), dataset, rounds)
        text = markdown(entries, dataset, rounds)
        typer.echo(text)
        if write is not None:
            put(write / "zoo.md", "compare", text, heading="The zoo")
            write_atomically(write / "pictures" / "zoo.png", draw(entries, dataset))


def fitting(weights: Path, dataset: str) -> list[Path]:
    """Return the folders in `weights` with a classifier of the data set's classes, sorted by name.

    Raises:
        DataError: there is none, or no such data set. CheckpointError: an invalid card.
    """
    classes = images.find(dataset, "test").classes
    paths = sorted(weights.glob(f"*/{checkpoint.CARD_FILE}"))
    cards = {path.parent: checkpoint.read_card(path.parent) for path in paths}
    fit = [folder for folder, card in cards.items() if card.task == "classify" and card.classes == classes]
    if not fit:
        raise DataError(f"none of the {len(cards)} models in {weights} has the classes of {dataset}: {classes}")
    return fit


def measure(folders: Sequence[Path], dataset: str, rounds: int) -> list[Entry]:
    """Measure the models in `folders` and return them by descending accuracy.

    Raises:
        CheckpointError, DataError: see `measure_classifier`.
    """
    latencies = _latencies(folders, dataset, rounds)
    entries = []
    for folder in folders:
        module, card = checkpoint.load(folder)
        figures = _figures(folder, card, dataset)
        entries.append(
            Entry(
                card=card,
                accuracy=figures["accuracy"],
                accuracy_tta=figures.get("accuracy_tta"),
                ece=figures["ece"],
                macs=macs(module, card.preprocess.shape),
                file_size=(folder / checkpoint.WEIGHTS_FILE).stat().st_size,
                latency=latencies[folder],
            )
        )
    return sorted(entries, key=lambda entry: -entry.accuracy)


def _figures(folder: Path, card: ModelCard, dataset: str) -> dict[str, float]:
    """Return the figures on the test split: those of the card (`training.evaluate classify --write`), or new ones."""
    known = {metric.name: metric.value for metric in card.metrics if metric.data.startswith(f"{dataset} test (")}
    if "accuracy" in known:
        return known
    return {metric.name: metric.value for metric in measure_classifier(folder, dataset)[1]}


def _latencies(folders: Sequence[Path], dataset: str, rounds: int) -> dict[Path, dict[Timing, float]]:
    """Return the milliseconds per image of each model with each runtime at each batch size."""
    calls: dict[tuple[Path, Timing], Callable[[], Tensor]] = {}
    for folder in folders:
        for name, factory in RUNTIMES.items():
            module, card = checkpoint.load(folder)
            runtime, test = factory(module, card), images.load(dataset, "test", card.preprocess)
            for size in BATCHES:
                pixels = np.asarray(test.images[np.arange(size) % len(test.labels)])
                batch = card.preprocess.normalise(torch.from_numpy(pixels))
                calls[folder, (name, size)] = partial(runtime, batch)
    seconds = interleaved_medians(calls, rounds)
    return {
        folder: {timing: 1000 * seconds[of, timing] / timing[1] for of, timing in calls if of == folder}
        for folder in folders
    }


def markdown(entries: Sequence[Entry], dataset: str, rounds: int) -> str:
    """Return the table after an explanation."""
    heads = ["model", "accuracy", "with TTA", "ECE", "parameters", "MACs", "file"]
    heads += [f"{runtime}, batch {size}" for runtime, size in entries[0].latency]
    rows = [_row(entry) for entry in entries]
    about = (
        f"On the test split of {dataset}, by `python -m training.evaluate compare --data {dataset}`. Accuracy and ECE\n"
        "are the cards'; ECE is without test-time augmentation (TTA). Latencies are per image of a batch,\n"
        f"without TTA: medians of {rounds} rounds in which the models run in turns, on {hardware(default_device())},\n"
        f"torch {versions()['torch']}."
    )
    return f"{about}\n\n{table(heads, rows)}"


def _row(entry: Entry) -> list[str]:
    card = entry.card
    tta = entry.accuracy_tta
    return [
        card.name,
        f"{100 * entry.accuracy:.2f} %",
        "" if tta is None else f"{100 * tta:.2f} % ({card.tta}, {VIEWS[card.tta]} views)",
        f"{entry.ece:.4f}",
        f"{card.parameters / 1e6:.2f} M",
        f"{entry.macs / 1e6:.1f} M",
        f"{entry.file_size / 1e6:.2f} MB",
        *(f"{latency:.2f} ms" for latency in entry.latency.values()),
    ]


def draw(entries: Sequence[Entry], dataset: str) -> bytes:
    """Return a PNG of accuracy over latency at batch 1.

    The area of a dot shows the parameters; an arrow points to the accuracy with TTA.
    """
    runtime = next(iter(RUNTIMES))
    figure, axes = blank(
        f"Accuracy against latency on {dataset}",
        "dot area: parameters; arrow: test-time augmentation, which takes as many times longer as it has views",
        f"milliseconds per image ({runtime}, one at a time, {hardware(default_device())})",
        "test accuracy, %",
    )
    most = max(entry.card.parameters for entry in entries)
    colours = dict(zip(sorted(entry.card.name for entry in entries), COLOURS * len(entries), strict=False))
    dots = [
        Dot(
            x=entry.latency[runtime, 1],
            y=100 * entry.accuracy,
            area=max(25.0, 480 * entry.card.parameters / most),
            label=f"{entry.card.name.removesuffix(f'-{dataset}')}\n{entry.card.parameters / 1e6:.2g} M",
            colour=colours[entry.card.name],
            top=None if entry.accuracy_tta is None else 100 * entry.accuracy_tta,
        )
        for entry in entries
    ]
    for dot in dots:
        axes.scatter(dot.x, dot.y, dot.area, color=dot.colour, alpha=0.6, linewidth=0)
        if dot.top is not None:
            axes.annotate(
                "",
                (dot.x, dot.top),
                (dot.x, dot.y),
                arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0},
            )
    _limits(axes, dots)
    place_labels(axes, dots)
    return png(figure)


def _limits(axes: Axes, dots: Sequence[Dot]) -> None:
    """Set a logarithmic x axis with plain numbers, and limits with room for the labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(0.7 * min(dot.x for dot in dots), 1.8 * max(dot.x for dot in dots))
    lowest, highest = min(dot.y for dot in dots), max(dot.top or dot.y for dot in dots)
    room = 0.18 * (highest - lowest) + 0.3
    axes.set_ylim(lowest - room, highest + room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
