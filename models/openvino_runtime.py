"""Run a network on the CPU with OpenVINO: converted once, then compiled for a few batch sizes.

Converted networks are cached in a folder, since a conversion takes seconds. A file's name is a hash of everything that
its content depends on.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

if TYPE_CHECKING:
    import openvino

Precision = Literal["f32", "bf16"]

# The name of the runtimes of quantised networks.
INT8 = "openvino-cpu-int8"

# The compiled batch sizes; batches are padded with zeros to one of them.
SIZES = (1, 2, 4, 8, 16, 32)
# If the items fill more than this share of a size, padding to it is faster than several smaller batches.
MIN_FILL = 0.75
# Seconds that a process waits for another process's compilation before it compiles without the cache.
LOCK_TIMEOUT_S = 60.0
# The side in pixels of the example with which a network for images of any size is converted.
EXAMPLE_SIDE = 64


def split_batch(count: int, sizes: Sequence[int] = SIZES) -> Iterator[tuple[int, int]]:
    """Divide `count` items into batches of the `sizes`: yield (items, padded size) of each batch."""
    while count > 0:
        smaller = max((size for size in sizes if size <= count), default=min(sizes))
        larger = min((size for size in sizes if size >= count), default=smaller)
        size = larger if count >= MIN_FILL * larger else smaller
        yield min(count, size), size
        count -= size


def run_in_batches(
    batch: Tensor, shape: tuple[int, ...], run: Callable[[Tensor], Tensor], sizes: Sequence[int] = SIZES
) -> Tensor:
    """The outputs of `run` for the items [N, *shape], in batches padded with zeros to `sizes`: float32 on the CPU.

    The outputs are copied, so `run` may reuse their memory in its next call.

    Raises:
        ValueError: if items have another shape.
    """
    if batch.shape[1:] != shape:
        raise ValueError(f"expected items of the shape {list(shape)}, got {list(batch.shape[1:])}")
    outputs, start = [], 0
    for count, size in split_batch(len(batch), sizes):
        rows = batch[start : start + count]
        if count < size:
            rows = torch.cat([rows, torch.zeros(size - count, *shape)])
        outputs.append(run(rows)[:count].to("cpu", torch.float32, copy=True))
        start += count
    return torch.cat(outputs)


class GraphRuntime:
    """A `Runtime` on OpenVINO's CPU plugin at a given precision for a graph, compiled for batches of the `sizes`.

    `shape` is that of an item, [C, H, W]. `folder` caches compiled networks; None: they are not cached.
    """

    def __init__(
        self,
        model: openvino.Model,
        shape: tuple[int, ...],
        precision: Precision,
        folder: Path | None,
        sizes: Sequence[int] = SIZES,
    ):
        self.name = f"openvino-cpu-{precision}"
        self._shape, self._sizes = shape, sizes
        sized = {size: _of_size(model, (size, *shape)) for size in sizes}
        self.size = sum(_memory_bytes(fixed, 2 if precision == "bf16" else 4) for fixed in sized.values())
        self._requests = {size: _compiled(fixed, precision, folder) for size, fixed in sized.items()}

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`.

        Raises:
            ValueError: if items have another shape.
        """
        return run_in_batches(batch, self._shape, self._infer, self._sizes)

    def _infer(self, rows: Tensor) -> Tensor:
        # Memory is shared: OpenVINO overwrites the output in the next call, after `run_in_batches` copied it.
        (output,) = self._requests[len(rows)].infer([rows.numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(output)


class OpenVinoRuntime(GraphRuntime):
    """A `GraphRuntime` for a network, which it converts.

    `key` identifies the weights and the submodel that `module` is; the cached conversion in `folder` is found by it.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], precision: Precision, key: str, folder: Path):
        super().__init__(_converted(module, shape, key, folder), shape, precision, folder)


class OpenVinoInt8Runtime(GraphRuntime):
    """A `GraphRuntime` for a quantised network, whose other operations are in float32.

    `network` and `constants` are the contents of the .xml and the .bin file that `serialise` returned, for items of
    `shape`.
    """

    def __init__(self, network: bytes, constants: bytes, shape: tuple[int, ...], folder: Path):
        super().__init__(_deserialised(network, constants), shape, "f32", folder)
        self.name = INT8


class AnySizeGraphRuntime:
    """A `Runtime` like `GraphRuntime` for a graph whose outputs are maps [N, ...] of images of any size.

    `largest` is the shape of a large image, [C, H, W], by which `size` is estimated. OpenVINO plans an image size at
    its first call, in about the time of an inference, and keeps the plan.
    """

    def __init__(self, model: openvino.Model, largest: tuple[int, ...], precision: Precision, folder: Path):
        self.name = f"openvino-cpu-{precision}"
        self.size = _memory_bytes(_of_size(model, (1, *largest)), 2 if precision == "bf16" else 4)
        self._request = _compiled(model, precision, folder)

    def __call__(self, batch: Tensor) -> Tensor:
        """See `Runtime`."""
        (output,) = self._request.infer([batch.contiguous().numpy()], share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(output).to(torch.float32, copy=True)


class OpenVinoAnySizeRuntime(AnySizeGraphRuntime):
    """An `AnySizeGraphRuntime` for a network, which it converts; `key` as in `OpenVinoRuntime`."""

    def __init__(self, module: nn.Module, largest: tuple[int, ...], precision: Precision, key: str, folder: Path):
        super().__init__(_converted(module, any_size(largest), key, folder), largest, precision, folder)


class OpenVinoInt8AnySizeRuntime(AnySizeGraphRuntime):
    """An `AnySizeGraphRuntime` for a quantised network, as `OpenVinoInt8Runtime`."""

    def __init__(self, network: bytes, constants: bytes, largest: tuple[int, ...], folder: Path):
        super().__init__(_deserialised(network, constants), largest, "f32", folder)
        self.name = INT8


def any_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with which `convert` converts a network for images of any size with the channels of `shape`."""
    return shape[0], -1, -1


def convert(module: nn.Module, shape: tuple[int, ...]) -> openvino.Model:
    """Convert the network for items of `shape`; -1 stands for any size."""
    with torch.inference_mode(), warnings.catch_warnings():
        # Tracing replaces checks of shapes by their results, which are valid, since every batch has this shape.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", FutureWarning)  # OpenVINO still uses torch.jit.trace
        example = torch.zeros(2, *(EXAMPLE_SIDE if side < 0 else side for side in shape))
        return package().convert_model(module.eval(), example_input=example, input=[-1, *shape])


def serialise(model: openvino.Model) -> tuple[bytes, bytes]:
    """Return the contents of the network's .xml and .bin file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        package().save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _deserialised(network: bytes, constants: bytes) -> openvino.Model:
    """The network whose .xml and .bin file have these contents."""
    return core().read_model(network.decode(), package().Tensor(np.frombuffer(constants, np.uint8)))


def precisions() -> tuple[Precision, ...]:
    """The precisions that the processor supports, the fastest first."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "f32") if "BF16" in capabilities else ("f32",)


def signature() -> str:
    """OpenVINO's version and the processor, on which a compiled network depends beside its weights."""
    ov = package()
    flags = ",".join(sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
    return f"openvino-{ov.__version__} {core().get_property('CPU', 'FULL_DEVICE_NAME').strip()} {flags}"


def package() -> Any:
    """The package without its telemetry, which would send usage events over the network; a stub replaces it."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # prevents the import
    import openvino

    return openvino


@cache
def core() -> Any:
    """The shared core; a new one would detect the processor and load its plugins again."""
    return package().Core()


def _converted(module: nn.Module, shape: tuple[int, ...], key: str, folder: Path) -> openvino.Model:
    """The converted network for items of `shape`; -1 stands for any size. Cached in `folder`."""
    ov = package()
    name = hashlib.sha256(f"{key} {shape} torch-{torch.__version__} openvino-{ov.__version__}".encode()).hexdigest()
    path = folder / f"{name[:32]}.xml"
    if path.is_file():
        return core().read_model(path)
    model = convert(module, shape)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name[:32]}.{os.getpid()}.xml"
    ov.save_model(model, temporary, compress_to_fp16=False)
    # The weights first, so that an .xml is never without them.
    temporary.with_suffix(".bin").rename(path.with_suffix(".bin"))
    temporary.rename(path)
    return core().read_model(path)


def _of_size(model: openvino.Model, shape: tuple[int, ...]) -> openvino.Model:
    fixed = model.clone()
    fixed.reshape(list(shape))
    return fixed


def _memory_bytes(model: openvino.Model, width: int) -> int:
    """Estimated memory of the compiled network: all weights, and the largest output of an operation.

    `width` is the number of bytes of a value. For efficientnet-lite0 and all batch sizes the estimate is 0.41 GB, and
    the process grew by 0.42; at half the width, 0.21 and 0.27.
    """
    weights, largest_output = 0, 0
    for operation in model.get_ops():
        values = sum(math.prod(output.get_shape()) for output in operation.outputs())
        if operation.get_type_name() == "Constant":
            weights += values
        else:
            largest_output = max(largest_output, values)
    return (weights + largest_output) * width


def _compiled(model: openvino.Model, precision: Precision, folder: Path | None) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": precision,  # the default depends on the processor
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,  # one batch at a time, on all cores
        # Cached without the weights, which are stored once and laid out again at loading: for efficientnet-lite0 1 MB
        # instead of 112, and a second more before it can replace torch.
        "CACHE_MODE": "OPTIMIZE_SIZE",
    }
    if folder is None:
        return core().compile_model(model, "CPU", settings).create_infer_request()
    folder.mkdir(parents=True, exist_ok=True)
    cached = settings | {"CACHE_DIR": str(folder)}
    try:
        # One process at a time, because OpenVINO deletes cache files that another process has written in part.
        with FileLock(folder / "compiling.lock", timeout=LOCK_TIMEOUT_S):
            return core().compile_model(model, "CPU", cached).create_infer_request()
    except Timeout:  # the process with the lock may hang
        return core().compile_model(model, "CPU", settings).create_infer_request()
