"""Which runtime answers for a network: the fastest whose answers are those of torch in float32, on real pictures.

That takes seconds, so the verdict is kept in a file, whose name says all it depends on.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from models import compiled
from models.checkpoint import write_atomically
from models.compiled import OpenVinoRuntime
from models.preprocess import Preprocess
from models.runtime import Runtime, TorchRuntime, default_device

Wanted = Literal["auto", "torch", "openvino-f32", "openvino-bf16"]
# What answers mean: logits are compared as probabilities, all else by direction.
Kind = Literal["logits", "vectors"]

WINDOWS = 12  # of each picture
# How far an answer may be from torch's: of a class's probability, and of 1 - cosine of a vector.
PROBABILITY, DIRECTION = 0.02, 0.001
TOP1 = 0.995  # the share of pictures whose likeliest class is the same, at least
ROUNDS, TIMED = 5, (1, 16)


class Verdict(BaseModel):
    """Seconds a picture of each runtime that agrees with torch, by name, and why others do not."""

    seconds: dict[str, float]
    refused: dict[str, str]

    @property
    def fastest(self) -> str:
        """Its name."""
        return min(self.seconds, key=lambda name: self.seconds[name])


def windows(folder: Path, preprocess: Preprocess) -> Tensor:
    """Each picture of the folder whole, and windows of it: float32 [N, C, H, W], always the same; N may be 0."""
    lots = random.Random(0)  # noqa: S311  not a secret
    found = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as picture:
            found.append(preprocess(picture))
            for _ in range(WINDOWS):
                side = round(min(picture.size) * lots.uniform(0.3, 1.0))
                left, top = (lots.randrange(length - side + 1) for length in picture.size)
                found.append(preprocess(picture.crop((left, top, left + side, top + side))))
    return torch.stack(found) if found else torch.empty(0, *preprocess.shape)


def disagreement(expected: Tensor, answers: Tensor, kind: Kind) -> str | None:
    """How answers [N, D] are not those expected; None: they are, within what is tolerated."""
    if not answers.isfinite().all():
        return "an answer is not finite"
    if kind == "logits":
        same = float((expected.argmax(dim=1) == answers.argmax(dim=1)).float().mean())
        if same < TOP1:
            return f"the likeliest class is the same in {same:.2%} of the pictures"
        furthest = float((expected.softmax(dim=1) - answers.softmax(dim=1)).abs().max())
        return f"a probability differs by {furthest:.4f}" if furthest > PROBABILITY else None
    cosine = float(torch.cosine_similarity(expected, answers).min())
    return f"a vector has a cosine of {cosine:.5f} to torch's" if cosine < 1 - DIRECTION else None


def prepare(
    module: nn.Module, preprocess: Preprocess, kind: Kind, key: str, pictures: Path, folder: Path, wanted: Wanted
) -> tuple[Runtime, Verdict | None]:
    """The runtime for `module`, and why it is that; None where there was nothing to choose.

    `key` names the network's numbers and what of it `module` is. `pictures` is a folder of photos to compare answers
    on, without which torch serves; `folder` is where verdicts and what OpenVINO makes are kept. What is `wanted` is
    refused, too, where it does not agree.
    """
    device = default_device()
    reference = TorchRuntime(module, device)
    if wanted == "torch" or device.type != "cpu":
        return reference, None
    make = partial(OpenVinoRuntime, module, preprocess.shape, key=key, folder=folder)
    candidates: dict[str, Callable[[], Runtime]] = {
        f"openvino-cpu-{precision}": partial(make, precision=precision)
        for precision in compiled.precisions()
        if wanted in {"auto", f"openvino-{precision}"}
    }
    about = f"{key} {wanted} {kind} torch-{torch.__version__} {compiled.signature()} {torch.get_num_threads()}"
    path = folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"
    if (known := _known(path)) is not None:
        return candidates.get(known.fastest, lambda: reference)(), known
    shown = windows(pictures, preprocess)
    made = {name: runtime() for name, runtime in candidates.items()} if len(shown) else {}
    verdict = compare(reference, made, shown, kind, own=wanted == "auto")
    if made:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, verdict.model_dump_json(indent=1).encode())
    return made.get(verdict.fastest, reference), verdict


def compare(
    reference: Runtime, candidates: Mapping[str, Runtime], shown: Tensor, kind: Kind, *, own: bool = True
) -> Verdict:
    """Which candidates agree with the reference on pictures [N, C, H, W], and how fast they are.

    The reference itself competes if it is `own` or if nothing else agrees.
    """
    if not candidates:
        return Verdict(seconds={reference.name: 0}, refused={})
    expected, refused, agreeing = reference(shown), {}, {}
    for name, runtime in candidates.items():
        reason = disagreement(expected, runtime(shown), kind)
        if reason is None:
            agreeing[name] = runtime
        else:
            refused[name] = reason
    if own or not agreeing:
        agreeing[reference.name] = reference
    return Verdict(seconds=_timed(agreeing, shown), refused=refused)


def _timed(runtimes: Mapping[str, Runtime], shown: Tensor) -> dict[str, float]:
    """Seconds a picture, in turn so that what else the machine does hits all alike: of each batch size the median."""
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for size in TIMED:
            batch = shown.repeat(-(-size // len(shown)), 1, 1, 1)[:size]
            for name, runtime in runtimes.items():
                clock = perf_counter()
                runtime(batch)
                taken.setdefault((name, size), []).append((perf_counter() - clock) / size)
    return {name: sum(statistics.median(taken[name, size]) for size in TIMED) for name in runtimes}


def _known(path: Path) -> Verdict | None:
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
