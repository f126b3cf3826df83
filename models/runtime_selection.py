"""Which runtime answers for a network: the fastest whose answers are those of torch in float32, on real pictures.

That takes seconds, so it is done while torch serves, and the verdict is kept in a file, whose name says all it depends
on.
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

from models import cuda_graph_runtime, openvino_runtime
from models.card import Tolerance
from models.checkpoint import write_atomically
from models.cuda_graph_runtime import GraphRuntime
from models.openvino_runtime import AnySizeRuntime, OpenVinoRuntime
from models.runtime import Runtime, default_device, signature
from models.runtime_names import Wanted
from models.timing import Turn, at_once, interleaved_medians

# What answers mean: logits are compared as probabilities, vectors by direction, maps value by value. Pictures may have
# any size where answers are maps, else they have one.
Kind = Literal["logits", "vectors", "maps"]

WINDOWS = 12  # of each picture
ROUNDS, TIMED = 5, (1, 16)
AT_ONCE = 16  # pictures compared, so that who waits for an answer gets it in between
MAPS_TIMED = 4  # pictures, each by itself


# Makes of a picture what a network takes: float32 [C, H, W].
Prepare = Callable[[Image.Image], Tensor]


class Verdict(BaseModel):
    """Seconds a picture of each runtime that agrees with torch, by name, and why others do not."""

    seconds: dict[str, float]
    refused: dict[str, str]

    @property
    def fastest(self) -> str:
        """Its name."""
        return min(self.seconds, key=lambda name: self.seconds[name])


def windows(folder: Path, prepare: Prepare) -> list[Tensor]:
    """Each picture of the folder whole, and windows of it, as a network takes them: always the same, maybe none."""
    lots = random.Random(0)  # noqa: S311  not a secret
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as picture:
            found.append(prepare(picture))
            for _ in range(WINDOWS):
                side = round(min(picture.size) * lots.uniform(0.3, 1.0))
                left, top = (lots.randrange(length - side + 1) for length in picture.size)
                found.append(prepare(picture.crop((left, top, left + side, top + side))))
    return found


def disagreement(expected: Tensor, answers: Tensor, kind: Kind, tolerance: Tolerance) -> str | None:
    """How answers [N, D], or maps [N], are not those expected; None: they are, within what is tolerated."""
    if not answers.isfinite().all():
        return "an answer is not finite"
    if kind == "maps":
        furthest = float((expected - answers).abs().max())
        return f"a value differs by {furthest:.5f}" if furthest > tolerance.maps else None
    if kind == "logits":
        same = float((expected.argmax(dim=1) == answers.argmax(dim=1)).float().mean())
        if same < tolerance.top1:
            return f"the likeliest class is the same in {same:.2%} of the pictures"
        furthest = float((expected.softmax(dim=1) - answers.softmax(dim=1)).abs().max())
        return f"a probability differs by {furthest:.4f}" if furthest > tolerance.probability else None
    cosine = float(torch.cosine_similarity(expected, answers).min())
    return f"a vector has a cosine of {cosine:.5f} to torch's" if cosine < 1 - tolerance.direction else None


@dataclass(frozen=True)
class Choice:
    """Of a runtime for `module`, whose answers are of a `kind`.

    `prepare` makes its input of a photo, [C, H, W] of this `shape`; where answers are maps that is a large one's.
    `key` names the network's numbers and what of it `module` is; `folder` is where verdicts and what OpenVINO makes are
    kept. What is `wanted` is refused, too, where it does not agree.
    """

    module: nn.Module
    prepare: Prepare
    shape: tuple[int, ...]
    kind: Kind
    tolerance: Tolerance
    key: str
    folder: Path
    wanted: Wanted = "auto"

    @property
    def is_open(self) -> bool:
        """Whether anything but torch may serve."""
        return self.wanted == "auto" or (self.wanted != "torch" and default_device().type == "cpu")

    def made(self, reference: Runtime, pictures: Path, turn: Turn = at_once) -> tuple[Runtime, Verdict | None]:
        """The runtime chosen, `reference` or another, and why; None where there was nothing to compare.

        `pictures` is a folder of photos to compare answers on, without which the reference serves. All that runs a
        network waits for its `turn`; what makes one ready does not.
        """
        candidates = self.candidates() if self.is_open else {}
        if not candidates:
            return reference, None
        path = self._path(turn(torch.get_num_threads))
        if (known := _known(path)) is not None:
            return candidates.get(known.fastest, lambda: reference)(), known
        shown = windows(pictures, self.prepare)
        if not shown:
            return reference, None
        runtimes = {name: make() for name, make in candidates.items()}
        own = self.wanted == "auto"
        verdict = compare(reference, runtimes, shown, self.kind, self.tolerance, own=own, turn=turn)
        write_atomically(path, verdict.model_dump_json(indent=1).encode())
        return runtimes.get(verdict.fastest, reference), verdict

    def candidates(self) -> dict[str, Callable[[], Runtime]]:
        """What makes each runtime that may be chosen here beside torch, by its name."""
        device = default_device()
        if device.type == "cuda":
            # What is recorded there is one size of picture.
            recorded = () if self.kind == "maps" else cuda_graph_runtime.precisions(device)
            return {
                f"torch-cuda-graph-{precision}": partial(GraphRuntime, self.module, self.shape, precision, device)
                for precision in recorded
            }

        def make(precision: openvino_runtime.Precision) -> Runtime:
            kind = AnySizeRuntime if self.kind == "maps" else OpenVinoRuntime
            # A copy: while it is converted the network itself answers.
            return kind(copy.deepcopy(self.module), self.shape, precision, key=self.key, folder=self.folder)

        return {
            f"openvino-cpu-{precision}": partial(make, precision)
            for precision in openvino_runtime.precisions()
            if self.wanted in {"auto", f"openvino-{precision}"}
        }

    def _path(self, threads: int) -> Path:
        asked = f"{self.key} {self.wanted} {self.kind} {self.tolerance.model_dump_json()}"
        runs_on = openvino_runtime.signature() if default_device().type == "cpu" else ""
        about = f"{asked} {signature()} {runs_on} {threads}"
        return self.folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"


def compare(
    reference: Runtime,
    candidates: Mapping[str, Runtime],
    shown: Sequence[Tensor],
    kind: Kind,
    tolerance: Tolerance,
    *,
    own: bool = True,
    turn: Turn = at_once,
) -> Verdict:
    """Which candidates agree with the reference on pictures [C, H, W], and how fast they are.

    The reference itself competes if it is `own` or if nothing else agrees.
    """
    batches = _batches(shown, 1 if kind == "maps" else AT_ONCE)
    expected, refused, agreeing = _answers(reference, batches, turn), {}, {}
    for name, runtime in candidates.items():
        reason = disagreement(expected, _answers(runtime, batches, turn), kind, tolerance)
        if reason is None:
            agreeing[name] = runtime
        else:
            refused[name] = reason
    if own or not agreeing:
        agreeing[reference.name] = reference
    timed = batches[:MAPS_TIMED] if kind == "maps" else [_repeated(shown, size) for size in TIMED]
    return Verdict(seconds=_timed(agreeing, timed, turn), refused=refused)


def _batches(pictures: Sequence[Tensor], size: int) -> list[Tensor]:
    return [torch.stack(list(pictures[first : first + size])) for first in range(0, len(pictures), size)]


def _repeated(pictures: Sequence[Tensor], count: int) -> Tensor:
    return torch.stack([pictures[place % len(pictures)] for place in range(count)])


def _answers(runtime: Runtime, batches: Sequence[Tensor], turn: Turn) -> Tensor:
    """[N, D]; maps, of any sizes, one after the other: [all their values]."""
    answers = [turn(partial(runtime, batch)) for batch in batches]
    return torch.cat(answers) if answers[0].ndim == 2 else torch.cat([answer.flatten() for answer in answers])


def _timed(runtimes: Mapping[str, Runtime], batches: Sequence[Tensor], turn: Turn) -> dict[str, float]:
    """Seconds a picture of each, added up over batches."""
    calls = {
        (name, place): partial(runtime, batch)
        for place, batch in enumerate(batches)
        for name, runtime in runtimes.items()
    }
    taken = interleaved_medians(calls, ROUNDS, turn)
    return {name: sum(taken[name, place] / len(batch) for place, batch in enumerate(batches)) for name in runtimes}


def _known(path: Path) -> Verdict | None:
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
