"""Give a network from elsewhere the input and the outputs that the service expects of an imported graph.

The input becomes float32 [N, C, H, W] in RGB or grey, whatever layout, type and order of colours the file has; the
output becomes [N, D]. A softmax at the end of a classifier is removed, since the service applies its own to logits;
an embedder's vectors are divided by their length. `N` is any number where the graph allows that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models import openvino_runtime
from models.imported_network import FEATURES, OUTPUT
from models.imported_runtime import select_output
from models.network_files import reason
from models.openvino_runtime import GraphRuntime
from models.weight_files import ImportWeightsError

ImportedTask = Literal["classify", "embed"]
Layout = Literal["NCHW", "NHWC"]

_CHANNELS: dict[Layout, int] = {"NCHW": 1, "NHWC": 3}  # the position of the channels in a shape
# Operations between the last layer and the output that change neither the values' order nor their number.
_RESHAPING = frozenset({"Convert", "Reshape", "Squeeze", "Unsqueeze"})
_TESTED_BATCH = 3  # images of which the outputs must be the same one by one
_TOLERANCE = 1e-3  # of the largest output
_INTEGERS = frozenset({"boolean", "i32", "i64"})


@dataclass(frozen=True)
class SourceInput:
    """The input as the file has it: its layout, OpenVINO's element type, the number of images (0: any) and colours."""

    layout: Layout
    type: str
    batch: int
    bgr: bool

    def convert(self, images: Tensor) -> Tensor:
        """Return images [N, C, H, W] in RGB or grey, float32, in this layout, type and order of colours."""
        images = images.flip(1) if self.bgr else images
        images = images if self.layout == "NCHW" else images.movedim(1, -1)
        return images.to(torch.float16 if self.type == "f16" else torch.float32).contiguous()


@dataclass(frozen=True)
class NetworkGraph:
    """A graph with the outputs OUTPUT, of length `width`, and FEATURES, of length `features`, if that is not 0.

    `size`: height and width of the input in pixels. `batch`: the number of images; 0: any. `softmax`: the graph in the
    file ends with a softmax. `source`: the input in the file.
    """

    model: Any
    width: int
    features: int
    channels: int
    size: tuple[int, int]
    batch: int
    softmax: bool
    source: SourceInput

    @property
    def parameters(self) -> int:
        """The number of values of the graph's constants, without scalars and integers, which are shapes and indices."""
        constants = [op.output(0) for op in self.model.get_ops() if op.get_type_name() == "Constant"]
        return sum(
            torch.Size(value.get_shape()).numel()
            for value in constants
            if value.get_shape() and value.get_element_type().get_type_name() not in _INTEGERS
        )


def network_graph(model: Any, task: ImportedTask, size: tuple[int, int] | None, *, bgr: bool = False) -> NetworkGraph:
    """Return a graph as the service expects it; `size`: the input's height and width where the file leaves them open.

    Raises:
        ImportWeightsError: several inputs or outputs, an input that is not of images, another size, a size that is
            neither fixed nor given, or an output that is not one vector for each image.
    """
    inputs, outputs = model.inputs, model.outputs
    for ports, kind in ((inputs, "inputs"), (outputs, "outputs")):
        if len(ports) != 1:
            names = ", ".join(str(port.get_any_name()) if port.get_names() else "unnamed" for port in ports)
            raise ImportWeightsError(f"the network has {len(ports)} {kind} ({names}): exactly one is supported")
    source = _source_input(inputs[0], bgr=bgr)
    channels = inputs[0].get_partial_shape()[_CHANNELS[source.layout]].get_length()
    side = _input_size(inputs[0], source.layout, size)
    for batch in dict.fromkeys((0, source.batch or 1)):
        try:
            graph = _converted(model.clone(), task, source, channels, side, batch)
            if batch or _is_independent_of_batch(graph):
                return graph
        except RuntimeError as error:
            if batch:
                raise ImportWeightsError(
                    f"the network does not accept images of {side[0]}x{side[1]}: {reason(error)}"
                ) from error
    raise AssertionError("the last number of images is not 0")


def _source_input(port: Any, *, bgr: bool) -> SourceInput:
    shape, type_name = port.get_partial_shape(), port.get_element_type().get_type_name()
    layouts = [
        layout
        for layout, position in _CHANNELS.items()
        if shape.rank.is_static
        and len(shape) == 4
        and shape[position].is_static
        and shape[position].get_length() in {1, 3}
    ]
    if not layouts:
        raise ImportWeightsError(
            f"the input has the shape {shape}: images are [N, C, H, W] or [N, H, W, C] with 1 or 3 channels"
        )
    if type_name not in {"f32", "f16"}:
        raise ImportWeightsError(f"the input has the type {type_name}: float32 and float16 are supported")
    if bgr and shape[_CHANNELS[layouts[0]]].get_length() != 3:
        raise ImportWeightsError("the order of colours of a network for grey images cannot be BGR")
    return SourceInput(layouts[0], type_name, shape[0].get_length() if shape[0].is_static else 0, bgr)


def _input_size(port: Any, layout: Layout, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the input's height and width: the file's, or those given."""
    first = layout.index("H")
    sides = [port.get_partial_shape()[position] for position in (first, first + 1)]
    fixed = [side.get_length() if side.is_static else 0 for side in sides]
    height, width = size or fixed
    if not (height and width):
        raise ImportWeightsError("the network accepts images of several sizes: pass the size with --size")
    if any(own and own != given for own, given in zip(fixed, (height, width), strict=True)):
        own_size = "x".join(str(own or "any") for own in fixed)
        raise ImportWeightsError(f"the network's input is {own_size}, not {height}x{width} pixels (height x width)")
    return height, width


def _converted(
    model: Any, task: ImportedTask, source: SourceInput, channels: int, size: tuple[int, int], batch: int
) -> NetworkGraph:
    """Return the graph for `batch` images (0: any number).

    Raises:
        RuntimeError: the graph does not accept the shape. ImportWeightsError: see `network_graph`.
    """
    ov = openvino_runtime.package()
    item = [channels, *size] if source.layout == "NCHW" else [*size, channels]
    model.reshape([batch or -1, *item])
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.f32).set_layout(ov.Layout("NCHW"))
    steps.input().model().set_layout(ov.Layout(source.layout))
    if source.bgr:
        steps.input().preprocess().reverse_channels()
    steps.output().tensor().set_element_type(ov.Type.f32)
    model = steps.build()
    last = model.get_results()[0].input_value(0)
    logits, softmax = _without_softmax(last) if task == "classify" else (last, False)
    output = _flattened(logits, batch)
    if task == "embed":
        ops = ov.opset13
        axes = ops.constant([1], ov.Type.i64)
        output = ops.normalize_l2(output, axes, eps=1e-12, eps_mode="max").output(0)
    features = _features(output, batch, _varying(model)) if task == "classify" else None
    named = {OUTPUT: output} | ({FEATURES: features} if features is not None else {})
    model = _with_names(model, named)
    widths = {name: _width(port, batch) or 0 for name, port in named.items()}
    return NetworkGraph(
        model, widths[OUTPUT], widths.get(FEATURES, 0), channels, size, batch, softmax=softmax, source=source
    )


def _without_softmax(port: Any) -> tuple[Any, bool]:
    """Return the logits of a classifier's output, and whether a softmax follows them.

    Raises:
        ImportWeightsError: the classifier ends with a sigmoid, so that its classes do not exclude each other.
    """
    last = port
    while last.get_node().get_type_name() in _RESHAPING:
        last = last.get_node().input_value(0)
    if last.get_node().get_type_name() == "Sigmoid":
        raise ImportWeightsError(
            "the network ends with a sigmoid: classes that do not exclude each other are not supported"
        )
    if last.get_node().get_type_name() != "Softmax":
        return port, False
    return last.get_node().input_value(0), True


def _width(port: Any, batch: int) -> int | None:
    """Return the length of an output's vector of an image; None if it is not one vector for each of `batch` images."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) < 2 or any(side.is_dynamic for side in list(shape)[1:]):
        return None
    sides = [side.get_length() for side in list(shape)[1:]]
    if sum(side != 1 for side in sides) > 1 or (shape[0].get_length() if shape[0].is_static else 0) != batch:
        return None
    return torch.Size(sides).numel()


def _flattened(port: Any, batch: int) -> Any:
    """Return an output as [N, D].

    Raises:
        RuntimeError: the graph does not keep the number of images. ImportWeightsError: an image has more than a vector.
    """
    shape = port.get_partial_shape()
    if _width(port, batch) is None:
        message = f"the output has the shape {shape}: one vector for each image, [N, D], is supported"
        raise ImportWeightsError(message) if batch else RuntimeError(message)
    if len(shape) == 2:
        return port
    ov = openvino_runtime.package()
    return ov.opset13.reshape(port, ov.opset13.constant([0, -1], ov.Type.i64), special_zero=True).output(0)


def _varying(model: Any) -> Callable[[Any], bool]:
    """Return a function that returns whether a value depends on the graph's input."""
    names = set()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Parameter" or any(
            value.get_node().get_name() in names for value in op.input_values()
        ):
            names.add(op.get_name())
    return lambda port: port.get_node().get_name() in names


def _features(port: Any, batch: int, varies: Callable[[Any], bool]) -> Any:
    """Return the input of the last layer, [N, D]: a matrix product, or a convolution of a single position.

    None if another operation computes the logits.
    """
    node = port.get_node()
    while (kind := node.get_type_name()) not in {"MatMul", "Convolution"}:
        inputs = [value for value in node.input_values() if varies(value)]
        if kind not in _RESHAPING | {"Add", "Multiply"} or (kind not in _RESHAPING and len(inputs) != 1):
            return None
        node = inputs[0].get_node()
    first, second = node.input_values()
    if varies(second) or _width(first, batch) is None:
        return None
    return _flattened(first, batch)


def _with_names(model: Any, outputs: dict[str, Any]) -> Any:
    """Return a model with these outputs; operations are named by their order, so that its bytes can be reproduced."""
    ov = openvino_runtime.package()
    results = [ov.opset13.result(port) for port in outputs.values()]
    model = ov.Model(results, model.get_parameters(), "network")
    for number, op in enumerate(model.get_ordered_ops()):
        op.set_friendly_name(f"{op.get_type_name()}_{number}")
        for port in op.outputs():
            port.get_tensor().set_names(set())
    for name, result in zip(outputs, results, strict=True):
        result.get_input_tensor(0).set_names({name})
    return model


def _is_independent_of_batch(graph: NetworkGraph) -> bool:
    """Return whether an image's output is the same in a batch and alone: a graph may have a fixed number inside."""
    item = graph.channels, *graph.size
    images = torch.randn(_TESTED_BATCH, *item, generator=torch.Generator().manual_seed(0))
    alone, together = (
        GraphRuntime(select_output(graph.model, OUTPUT), item, "f32", None, (size,))(images)
        for size in (1, _TESTED_BATCH)
    )
    difference = float((alone - together).abs().max())
    return difference <= _TOLERANCE * max(1.0, float(alone.abs().max()))
