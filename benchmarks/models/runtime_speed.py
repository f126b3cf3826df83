"""Pictures a second of each runtime that may serve, beside torch as anybody calls it: eager, and compiled.

    python -m benchmarks.models.runtime_speed [--rounds 20] [--results benchmarks/results/runtime_speed.csv]

ResNet-18 at 224x224 and at 64x64 with random weights, in batches of 1, 8, 64 and 256; all calls in turn, medians.
Inputs begin and answers end in the processor's memory, as they do in the service. The eager and the compiled network
run channels last, in float32 and under autocast.
"""

from __future__ import annotations

import copy
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks import tables
from models.card import Tolerance
from models.registry import build
from models.runtime import default_device, prepare
from models.runtime_selection import RuntimeSelector
from models.timing import interleaved_medians

COLUMNS = ("hardware", "torch", "size", "runtime", "batch", "milliseconds", "pictures_per_second")
SIZES, BATCHES = (224, 64), (1, 8, 64, 256)

Call = Callable[[Tensor], Tensor]


def hardware() -> str:
    """What computes."""
    device = default_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def bare(module: nn.Module, *, compiled: bool, precision: torch.dtype) -> Call:
    """The network as torch runs it, from the processor's memory and back."""
    device = default_device()
    network = copy.deepcopy(module).eval().to(device)
    network.to(memory_format=torch.channels_last)
    run = torch.compile(network, mode="reduce-overhead") if compiled else network

    @torch.inference_mode()
    def call(batch: Tensor) -> Tensor:
        pictures = batch.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            answers: Tensor = run(pictures)
        return answers.float().cpu()

    return call


def engines(module: nn.Module, size: int, folder: Path) -> dict[str, Call]:
    """By name: torch's own ways, the service's reference, and what the service may choose instead."""
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found: dict[str, Call] = {
        f"torch {'compiled' if compiled else 'eager'} {name}": bare(module, compiled=compiled, precision=precision)
        for compiled in (False, True)
        for name, precision in precisions.items()
    }
    reference = prepare(copy.deepcopy(module))
    shape = (3, size, size)
    choice = RuntimeSelector(
        module, lambda _: torch.zeros(shape), shape, "logits", Tolerance(), f"speed {size}", folder
    )
    return found | {reference.name: reference} | {name: make() for name, make in choice.candidates().items()}


def measure(size: int, batches: tuple[int, ...], rounds: int) -> list[dict[str, object]]:
    """A row for each runtime and batch."""
    torch.manual_seed(0)
    module = build("resnet18", {}).eval()
    with tempfile.TemporaryDirectory() as folder:
        ready = engines(module, size, Path(folder))
        inputs = {batch: torch.randn(batch, 3, size, size) for batch in batches}
        calls = {(name, batch): partial(ready[name], inputs[batch]) for name in ready for batch in batches}
        seconds = interleaved_medians(calls, rounds)
    return [
        {
            "hardware": hardware(),
            "torch": torch.__version__,
            "size": size,
            "runtime": name,
            "batch": batch,
            "milliseconds": f"{1000 * taken:.3f}",
            "pictures_per_second": f"{batch / taken:.1f}",
        }
        for (name, batch), taken in seconds.items()
    ]


def run(
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    results: Annotated[Path, typer.Option(help="A CSV file.")] = Path("benchmarks/results/runtime_speed.csv"),
    most: Annotated[int, typer.Option(min=1, help="The largest batch.")] = BATCHES[-1],
) -> None:
    """Measure, and write the CSV."""
    batches = tuple(batch for batch in BATCHES if batch <= most)
    rows = [row for size in SIZES for row in measure(size, batches, rounds)]
    tables.write(results, COLUMNS, rows)
    for row in rows:
        typer.echo("  ".join(str(row[column]) for column in COLUMNS[2:]))


if __name__ == "__main__":
    typer.run(run)
