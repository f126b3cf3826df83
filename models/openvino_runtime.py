"""OpenVINO on the CPU: a network converted as it is, then compiled for a few sizes of batch.

What OpenVINO makes of a network is kept in a folder, since that takes seconds; a file's name says all it depends on.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

if TYPE_CHECKING:
    import openvino

Precision = Literal["f32", "bf16"]

# Batches run at these sizes only, filled up with zeros: each is planned and laid out ahead.
SIZES = (1, 2, 4, 8, 16, 32)
# From this share of a size on it is cheaper to fill it up than to run what is there in smaller ones.
FULL_ENOUGH = 0.75
# How long one process waits for others that compile, before it does without what they keep.
PATIENCE_S = 60.0
# The side in pixels of pictures that a network of any size is shown when it is converted: a multiple that all take.
EXAMPLE = 64


def pieces(count: int) -> Iterator[tuple[int, int]]:
    """How so many items run: each time (items, size of their batch)."""
    while count > 0:
        below = max(size for size in SIZES if size <= count)
        above = min((size for size in SIZES if size >= count), default=below)
        size = above if count >= FULL_ENOUGH * above else below
        yield min(count, size), size
        count -= size


def in_pieces(batch: Tensor, shape: tuple[int, ...], run: Callable[[Tensor], Tensor]) -> Tensor:
    """What `run` answers to the items [N, *shape], in batches of `SIZES` filled up with zeros: float32 on the CPU.

    An answer need only last until the next call.

    Raises:
        ValueError: items of another shape.
    """
    if batch.shape[1:] != shape:
        raise ValueError(f"expected items of the shape {list(shape)}, got {list(batch.shape[1:])}")
    outputs, start = [], 0
    for count, size in pieces(len(batch)):
        rows = batch[start : start + count]
        if count < size:
            rows = torch.cat([rows, torch.zeros(size - count, *shape)])
        outputs.append(run(rows)[:count].to("cpu", torch.float32, copy=True))
        start += count
    return torch.cat(outputs)


class OpenVinoRuntime:
    """A network on the CPU's OpenVINO at a named precision; see `Runtime`.

    `shape` is that of an item, [C, H, W]. `key` names the network's numbers and what of it `module` is: what was made
    of them before is found again in `folder`.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], precision: Precision, key: str, folder: Path):
        self.name = f"openvino-cpu-{precision}"
        self._shape = shape
        model = _converted(module, shape, key, folder)
        sized = {size: _of_size(model, (size, *shape)) for size in SIZES}
        self.size = sum(_room(one, 2 if precision == "bf16" else 4) for one in sized.values())
        self._requests = {size: _compiled(one, precision, folder) for size, one in sized.items()}

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`.

        Raises:
            ValueError: items of another shape.
        """
        return in_pieces(batch, self._shape, self._infer)

    def _infer(self, rows: Tensor) -> Tensor:
        # Shared: OpenVINO writes the next answer where this one is, which `in_pieces` has copied by then.
        (answer,) = self._requests[len(rows)].infer([rows.numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(answer)


class AnySizeRuntime:
    """The same for a network whose answers are maps [N, ...] of pictures of any size; see `Runtime`.

    `largest` is the shape of a large picture, [C, H, W]: so much room is reckoned with. OpenVINO plans a size when it
    first comes, in about the time of an inference, and keeps the plan.
    """

    def __init__(self, module: nn.Module, largest: tuple[int, ...], precision: Precision, key: str, folder: Path):
        self.name = f"openvino-cpu-{precision}"
        model = _converted(module, (largest[0], -1, -1), key, folder)
        self.size = _room(_of_size(model, (1, *largest)), 2 if precision == "bf16" else 4)
        self._request = _compiled(model, precision, folder)

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`."""
        (answer,) = self._request.infer([batch.contiguous().numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(answer).to(torch.float32, copy=True)


def precisions() -> tuple[Precision, ...]:
    """Those that this processor has instructions for, the fastest first."""
    capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "f32") if "BF16" in capabilities else ("f32",)


def signature() -> str:
    """What a compiled network depends on beside its numbers: OpenVINO's version and the processor."""
    ov = _openvino()
    flags = ",".join(sorted(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return f"openvino-{ov.__version__} {_core().get_property('CPU', 'FULL_DEVICE_NAME').strip()} {flags}"


def _openvino() -> Any:
    """The package, without what tells its makers over the network that it is used: a stub stands in for that."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # cannot be imported then
    import openvino

    return openvino


@cache
def _core() -> Any:
    """One for all: each would look for the processor and its plugins anew."""
    return _openvino().Core()


def _converted(module: nn.Module, shape: tuple[int, ...], key: str, folder: Path) -> openvino.Model:
    """The network for items of that shape; -1: of any size."""
    ov = _openvino()
    name = hashlib.sha256(f"{key} {shape} torch-{torch.__version__} openvino-{ov.__version__}".encode()).hexdigest()
    path = folder / f"{name[:32]}.xml"
    if path.is_file():
        return _core().read_model(path)
    with torch.inference_mode(), warnings.catch_warnings():
        # The checks of shapes are traced as what they find; every batch has the shape that they find good.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit.trace is OpenVINO's way in so far
        example = torch.zeros(2, *(EXAMPLE if side < 0 else side for side in shape))
        model = ov.convert_model(module.eval(), example_input=example, input=[-1, *shape])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name[:32]}.{os.getpid()}.xml"
    ov.save_model(model, temporary, compress_to_fp16=False)
    # The weights first: where the .xml is, all of it is.
    temporary.with_suffix(".bin").rename(path.with_suffix(".bin"))
    temporary.rename(path)
    return _core().read_model(path)


def _of_size(model: openvino.Model, shape: tuple[int, ...]) -> openvino.Model:
    fixed = model.clone()
    fixed.reshape(list(shape))
    return fixed


def _room(model: openvino.Model, width: int) -> int:
    """Bytes that it takes once compiled, about: all weights, and the largest answer of an operation.

    `width` is that of a number. Of efficientnet-lite0, all sizes together: 0.41 GB, where the process grew by 0.42; at
    half the width 0.21, for 0.27.
    """
    weights, most = 0, 0
    for operation in model.get_ops():
        numbers = sum(math.prod(output.get_shape()) for output in operation.outputs())
        if operation.get_type_name() == "Constant":
            weights += numbers
        else:
            most = max(most, numbers)
    return (weights + most) * width


def _compiled(model: openvino.Model, precision: Precision, folder: Path) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # never its default, which differs from processor to processor
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,  # one batch at a time, on all cores
        # Without the weights, which lie beside it once and are laid out anew when it is read: for efficientnet-lite0
        # 1 MB instead of 112, and a second more until it can take over from torch.
        "CACHE_MODE": "OPTIMIZE_SIZE",
    }
    kept = settings | {"CACHE_DIR": str(folder)}
    try:
        # One process at a time: what one finds half written it takes away, under the hands of who writes it.
        with FileLock(folder / "compiling.lock", timeout=PATIENCE_S):
            return _core().compile_model(model, "CPU", kept).create_infer_request()
    except Timeout:  # who has it may be stopped
        return _core().compile_model(model, "CPU", settings).create_infer_request()
