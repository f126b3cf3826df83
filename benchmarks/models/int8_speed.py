"""Milliseconds of processor time of quantised networks beside float32, both on OpenVINO with one thread.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.models.int8_speed

For each shipped model with a quantised network: classifiers and embedders in batches of 1 and 8, detectors for one
image of 320x240, 640x480 and 1280x720. Rounds are interleaved, medians go into benchmarks/results/int8_speed.csv.
Processor time is not wall time: other processes on the same core do not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import tables
from models import checkpoint
from models.card import ModelCard
from models.detector import COARSEST
from models.openvino_runtime import (
    OpenVinoAnySizeRuntime,
    OpenVinoInt8AnySizeRuntime,
    OpenVinoInt8Runtime,
    OpenVinoRuntime,
)
from models.runtime import Runtime

COLUMNS = ("model", "batch", "width", "height", "float32_ms", "int8_ms", "ratio")
BATCHES, DETECTED = (1, 8), ((320, 240), (640, 480), (1280, 720))
_WARM_UP, _CALLS = 2, 3


def runtimes(folder: Path, card: ModelCard, cache: Path) -> list[Runtime]:
    """The network in float32, and quantised."""
    module, int8 = checkpoint.load(folder)[0], checkpoint.load_int8(folder, card)
    assert int8 is not None, folder
    shape, key = card.preprocess.shape, card.sha256
    if card.task == "detect":
        exact = OpenVinoAnySizeRuntime(module, shape, "f32", key, cache)
        return [exact, OpenVinoInt8AnySizeRuntime(*int8, shape, cache)]
    return [OpenVinoRuntime(module, shape, "f32", key, cache), OpenVinoInt8Runtime(*int8, shape, cache)]


def shapes(card: ModelCard) -> Iterator[tuple[int, int, int, int]]:
    """The shapes of the inputs, [N, C, H, W]."""
    channels, height, width = card.preprocess.shape
    if card.task == "detect":
        yield from ((1, channels, height + -height % COARSEST, width + -width % COARSEST) for width, height in DETECTED)
    else:
        yield from ((batch, channels, height, width) for batch in BATCHES)


def measure(pair: list[Runtime], shape: tuple[int, ...], rounds: int) -> list[float]:
    """The median milliseconds of each runtime."""
    batch = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    seconds: list[list[float]] = [[], []]
    for number in range(_WARM_UP + rounds):
        for runtime, taken in zip(pair, seconds, strict=True):
            started = time.process_time()
            for _ in range(_CALLS):
                runtime(batch)
            if number >= _WARM_UP:
                taken.append((time.process_time() - started) / _CALLS)
    return [1000 * statistics.median(taken) for taken in seconds]


def main(
    weights: Annotated[Path, typer.Option(help="A folder of models.")] = Path("weights"),
    only: Annotated[list[str] | None, typer.Option(help="Names of models; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=5)] = 9,
    results: Annotated[Path, typer.Option(help="A CSV file.")] = Path("benchmarks/results/int8_speed.csv"),
) -> None:
    """Measure, and write the CSV."""
    rows: list[dict[str, object]] = []
    for path in sorted(weights.glob(f"*/{checkpoint.CARD_FILE}")):
        card = checkpoint.read_card(path.parent)
        if card.int8 is None or (only and card.name not in only):
            continue
        with tempfile.TemporaryDirectory() as cache:
            pair = runtimes(path.parent, card, Path(cache))
        for shape in shapes(card):
            exact, int8 = measure(pair, shape, rounds)
            figures = {"float32_ms": f"{exact:.2f}", "int8_ms": f"{int8:.2f}", "ratio": f"{exact / int8:.2f}"}
            rows.append({"model": card.name, "batch": shape[0], "width": shape[3], "height": shape[2], **figures})
            typer.echo("  ".join(str(rows[-1][column]) for column in COLUMNS))
    tables.write(results, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
