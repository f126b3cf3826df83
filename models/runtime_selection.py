"""Select the runtime of a network: the fastest whose outputs agree with torch in float32 on real images.

The comparison takes seconds, so it runs while torch serves. Its result is stored in a file, whose name is a hash of
everything that the result depends on.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from models import cuda_graph_runtime, detection_agreement, openvino_runtime
from models.card import Tolerance
from models.checkpoint import QuantisedNetwork, write_atomically
from models.cuda_graph_runtime import CudaGraphRuntime
from models.openvino_runtime import (
    INT8,
    OpenVinoAnySizeRuntime,
    OpenVinoInt8AnySizeRuntime,
    OpenVinoInt8Runtime,
    OpenVinoRuntime,
)
from models.runtime import Runtime, default_device, signature
from models.runtime_names import RuntimeSetting
from models.timing import RunWork, interleaved_medians, run_directly

# How outputs are compared: logits as probabilities, vectors by direction, maps value by value; faces are maps of a
# detector, whose faces are compared where the tolerance says so. Only networks with maps accept images of any size.
OutputKind = Literal["logits", "vectors", "maps", "faces"]
_MAPS: tuple[OutputKind, ...] = ("maps", "faces")

CROPS = 12  # of each image
ROUNDS, TIMED_BATCHES = 5, (1, 16)
COMPARED_BATCH = 16  # images per run, so that waiting requests run in between
TIMED_MAPS = 4  # images, one by one

# The tolerance of a runtime by its name.
ToleranceOf = Callable[[str], Tolerance]
# Converts an image to the network's input: float32 [C, H, W].
PrepareImage = Callable[[Image.Image], Tensor]


class RuntimeComparison(BaseModel):
    """Seconds per image of each runtime that agrees with torch, by name, and the reasons against the others."""

    seconds: dict[str, float]
    refused: dict[str, str]

    @property
    def fastest(self) -> str:
        """The name of the fastest runtime that agrees."""
        return min(self.seconds, key=lambda name: self.seconds[name])


def sample_inputs(folder: Path, prepare: PrepareImage) -> list[Tensor]:
    """Return the inputs for each JPEG in `folder` and for `CROPS` random crops of it: deterministic, possibly empty."""
    rng = random.Random(0)  # noqa: S311  not a secret
    inputs = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            inputs.append(prepare(image))
            for _ in range(CROPS):
                side = round(min(image.size) * rng.uniform(0.3, 1.0))
                left, top = (rng.randrange(length - side + 1) for length in image.size)
                inputs.append(prepare(image.crop((left, top, left + side, top + side))))
    return inputs


def disagreement(expected: Tensor, outputs: Tensor, kind: OutputKind, tolerance: Tolerance) -> str | None:
    """The difference of outputs [N, D], or maps [N], from those expected; None within the tolerance."""
    if not outputs.isfinite().all():
        return "an output is not finite"
    if kind in _MAPS:
        difference = float((expected - outputs).abs().max())
        return f"a value differs by {difference:.5f}" if difference > tolerance.maps else None
    if kind == "logits":
        same = float((expected.argmax(dim=1) == outputs.argmax(dim=1)).float().mean())
        if same < tolerance.top1:
            return f"the most probable class is the same for {same:.2%} of the images"
        difference = float((expected.softmax(dim=1) - outputs.softmax(dim=1)).abs().max())
        return f"a probability differs by {difference:.4f}" if difference > tolerance.probability else None
    cosine = float(torch.cosine_similarity(expected, outputs).min())
    return f"the cosine of a vector with torch's is {cosine:.5f}" if cosine < 1 - tolerance.direction else None


def int8_runtime(network: QuantisedNetwork, kind: OutputKind, shape: tuple[int, ...], folder: Path) -> Runtime:
    """Return the runtime of a quantised network whose outputs are of `kind`; see `OpenVinoInt8Runtime`."""
    runtime = OpenVinoInt8AnySizeRuntime if kind in _MAPS else OpenVinoInt8Runtime
    return runtime(*network, shape, folder)


def disagreement_of_batches(
    expected: Sequence[Tensor], outputs: Sequence[Tensor], kind: OutputKind, tolerance: Tolerance
) -> str | None:
    """The difference of the outputs of all batches from those expected; None within the tolerance."""
    if kind == "faces" and tolerance.faces is not None:
        return detection_agreement.disagreement(expected, outputs, tolerance)
    return disagreement(_joined(expected), _joined(outputs), kind, tolerance)


@dataclass(frozen=True)
class RuntimeSelector:
    """Selects a runtime for `module`, whose outputs are of `kind`.

    `prepare` converts an image to the module's input, [C, H, W] of `shape`; for maps, `shape` is that of a large image.
    `key` identifies the weights and the submodel that `module` is. `folder` stores comparisons and OpenVINO's files. A
    `requested` runtime is refused, too, if it does not agree. `int8` is the quantised network, whose runtime has a
    tolerance of its own.
    """

    module: nn.Module
    prepare: PrepareImage
    shape: tuple[int, ...]
    kind: OutputKind
    tolerance: Tolerance
    key: str
    folder: Path
    requested: RuntimeSetting = "auto"
    int8: tuple[QuantisedNetwork, Tolerance] | None = None

    @property
    def has_alternatives(self) -> bool:
        """Whether a runtime other than torch may serve."""
        return self.requested == "auto" or (self.requested != "torch" and default_device().type == "cpu")

    def select(
        self, reference: Runtime, images: Path, run: RunWork = run_directly
    ) -> tuple[Runtime, RuntimeComparison | None]:
        """Return the runtime to use, `reference` or another, and the comparison; None if nothing was compared.

        `images` is a folder of photos on which outputs are compared; without photos the reference is used. Every
        inference runs by `run`; conversion and compilation do not.
        """
        candidates = self.candidates() if self.has_alternatives else {}
        if not candidates:
            return reference, None
        path = self._path(run(torch.get_num_threads))
        if (stored := _read(path)) is not None:
            return candidates.get(stored.fastest, lambda: reference)(), stored
        inputs = sample_inputs(images, self.prepare)
        if not inputs:
            return reference, None
        runtimes = {name: create() for name, create in candidates.items()}
        comparison = compare(
            reference,
            runtimes,
            inputs,
            self.kind,
            self._tolerance_of,
            include_reference=self.requested == "auto",
            run=run,
        )
        write_atomically(path, comparison.model_dump_json(indent=1).encode())
        return runtimes.get(comparison.fastest, reference), comparison

    def candidates(self) -> dict[str, Callable[[], Runtime]]:
        """A function that creates the runtime, for each runtime that may replace torch on this device, by its name."""
        device = default_device()
        if device.type == "cuda":
            # A graph is recorded for one size of image.
            precisions = () if self.kind in _MAPS else cuda_graph_runtime.precisions(device)
            return {
                f"torch-cuda-graph-{precision}": partial(CudaGraphRuntime, self.module, self.shape, precision, device)
                for precision in precisions
            }

        def create(precision: openvino_runtime.Precision) -> Runtime:
            runtime = OpenVinoAnySizeRuntime if self.kind in _MAPS else OpenVinoRuntime
            # A copy, since the module serves while it is converted.
            return runtime(copy.deepcopy(self.module), self.shape, precision, key=self.key, folder=self.folder)

        runtimes: dict[str, Callable[[], Runtime]] = {
            f"openvino-cpu-{precision}": partial(create, precision) for precision in openvino_runtime.precisions()
        }
        if self.int8 is not None:
            runtimes[INT8] = partial(int8_runtime, self.int8[0], self.kind, self.shape, self.folder)
        names = runtimes.keys() if self.requested == "auto" else {self.requested.replace("openvino", "openvino-cpu")}
        return {name: create_runtime for name, create_runtime in runtimes.items() if name in names}

    def _tolerance_of(self, runtime: str) -> Tolerance:
        return self.int8[1] if self.int8 is not None and runtime == INT8 else self.tolerance

    def _path(self, threads: int) -> Path:
        int8 = f" {self.int8[0].sha256} {self.int8[1].model_dump_json()}" if self.int8 is not None else ""
        question = f"{self.key} {self.requested} {self.kind} {self.tolerance.model_dump_json()}{int8}"
        openvino = openvino_runtime.signature() if default_device().type == "cpu" else ""
        identity = f"{question} {signature()} {openvino} {threads}"
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def compare(
    reference: Runtime,
    candidates: Mapping[str, Runtime],
    inputs: Sequence[Tensor],
    kind: OutputKind,
    tolerance_of: ToleranceOf,
    *,
    include_reference: bool = True,
    run: RunWork = run_directly,
) -> RuntimeComparison:
    """Compare the candidates' outputs with the reference's on `inputs` [C, H, W], and measure those that agree.

    The reference is measured with `include_reference`, or if no candidate agrees.
    """
    batches = _batches(inputs, 1 if kind in _MAPS else COMPARED_BATCH)
    expected, refused, agreeing = _outputs(reference, batches, run), {}, {}
    for name, runtime in candidates.items():
        reason = disagreement_of_batches(expected, _outputs(runtime, batches, run), kind, tolerance_of(name))
        if reason is None:
            agreeing[name] = runtime
        else:
            refused[name] = reason
    if include_reference or not agreeing:
        agreeing[reference.name] = reference
    timed = batches[:TIMED_MAPS] if kind in _MAPS else [_repeated(inputs, size) for size in TIMED_BATCHES]
    return RuntimeComparison(seconds=_seconds_per_image(agreeing, timed, run), refused=refused)


def _batches(inputs: Sequence[Tensor], size: int) -> list[Tensor]:
    return [torch.stack(list(inputs[first : first + size])) for first in range(0, len(inputs), size)]


def _repeated(inputs: Sequence[Tensor], count: int) -> Tensor:
    """A batch of `count` inputs, repeated as needed."""
    return torch.stack([inputs[index % len(inputs)] for index in range(count)])


def _outputs(runtime: Runtime, batches: Sequence[Tensor], run: RunWork) -> list[Tensor]:
    return [run(partial(runtime, batch)) for batch in batches]


def _joined(outputs: Sequence[Tensor]) -> Tensor:
    """The outputs of all batches, [N, D]; the values of maps, whose sizes may differ, one after the other."""
    return torch.cat(list(outputs) if outputs[0].ndim == 2 else [output.flatten() for output in outputs])


def _seconds_per_image(runtimes: Mapping[str, Runtime], batches: Sequence[Tensor], run: RunWork) -> dict[str, float]:
    """Seconds per image of each runtime, summed over the batches."""
    calls = {
        (name, index): partial(runtime, batch)
        for index, batch in enumerate(batches)
        for name, runtime in runtimes.items()
    }
    medians = interleaved_medians(calls, ROUNDS, run)
    return {name: sum(medians[name, index] / len(batch) for index, batch in enumerate(batches)) for name in runtimes}


def _read(path: Path) -> RuntimeComparison | None:
    """The stored comparison; None if there is none that can be read."""
    try:
        return RuntimeComparison.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
