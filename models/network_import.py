"""Import a network from elsewhere as a served model: a graph for OpenVINO with a card."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from models import checkpoint
from models.card import ModelCard
from models.checkpoint import read_file
from models.imported_network import OUTPUT, ImportedClassifierConfig, ImportedConfig, ImportedEmbedderConfig
from models.imported_runtime import deserialise, select_output, serialise
from models.network_files import NetworkFile, NetworkFormat, read_network
from models.network_graph import ImportedTask, NetworkGraph, SourceInput, network_graph
from models.openvino_runtime import GraphRuntime, run_in_batches
from models.preprocess import Preprocess
from models.weight_files import ImportWeightsError

# ImageNet's, which most published classifiers were trained with, on the scale 0..255.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
UNKNOWN_LICENSE = "unknown: see the source of the file"

_COMPARED_IMAGES = 8
# How much outputs may differ from those of onnxruntime, of the largest output or 1; float16 has three digits.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 2e-2
_MIN_STD = 1.0  # of pixels 0..255

Report = Callable[[str], object]


@dataclass(frozen=True)
class NetworkOptions:
    """What a network's file does not say: its task, name, class names, preprocessing and origin.

    `size` is height and width in pixels, None: the file's; `mean` and `std` are on the scale 0..255, one value for
    each channel or one for all; None: ImageNet's, for classifiers of colour images only. `bgr`: the network takes the
    colours blue first.
    """

    task: ImportedTask
    name: str
    classes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_fraction: float = 1.0
    bgr: bool = False
    description: str = ""
    data: str = "unknown"
    license: str = UNKNOWN_LICENSE


def model_name(text: str) -> str:
    """Return a model's name made from a text: lower-case letters, digits, dots, hyphens and underscores."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:64]


def read_classes(file: Path) -> tuple[str, ...]:
    """Return the class names in a text file, one in each line, in the order of the network's outputs.

    Raises:
        ImportWeightsError: the file cannot be read, is not UTF-8, or has an empty line before its last.
    """
    try:
        lines = read_file(file, ImportWeightsError).decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ImportWeightsError(f"{file} is not a text in UTF-8") from error
    classes = tuple(line.strip() for line in lines)
    if empty := [number for number, line in enumerate(classes, 1) if not line]:
        raise ImportWeightsError(f"{file}: line {empty[0]} is empty; expected the name of a class in each line")
    return classes


def import_network(
    file: Path, format: NetworkFormat, folder: Path, options: NetworkOptions, report: Report
) -> ModelCard:
    """Write the network in `file` to `folder`/<its name> and return its card. The bytes are the same every time.

    The outputs of an ONNX file are compared with those of onnxruntime, if that is installed; `report` is called with
    the result.

    Raises:
        ImportWeightsError: the file is refused, see `read_network` and `network_graph`; the options do not fit it; a
            model of this name exists; or the outputs differ from onnxruntime's.
    """
    source = read_network(file, format)
    digest = hashlib.sha256(read_file(file, ImportWeightsError)).hexdigest()
    return save_network(source, folder, options, f"{format}:{file.name} (sha256 {digest})", report)


def save_network(source: NetworkFile, folder: Path, options: NetworkOptions, origin: str, report: Report) -> ModelCard:
    """Write a network to `folder`/<its name> and return its card, whose source is `origin`.

    Raises:
        ImportWeightsError: see `import_network`.
    """
    if (folder / options.name / checkpoint.CARD_FILE).exists():
        raise ImportWeightsError(f"{folder / options.name} exists already: delete it, or choose another --name")
    graph = network_graph(source.graph, options.task, options.size, bgr=options.bgr)
    config = _config(graph, options)
    data = serialise(graph.model)
    try:
        preprocess = _preprocess(graph, options, report)
        _check_outputs(data, graph, options.task, preprocess, source.onnx, report)
        return checkpoint.save_bytes(
            folder / options.name,
            data,
            name=options.name,
            description=options.description or f"imported from {origin.partition(' (')[0]}",
            task=options.task,
            architecture="imported-classifier" if options.task == "classify" else "imported-embedder",
            config=asdict(config),
            preprocess=preprocess,
            classes=options.classes,
            parameters=graph.parameters,
            data=options.data,
            source=origin,
            license=options.license,
        )
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, row['loc']))} {row['msg']}".strip() for row in error.errors()]
        raise ImportWeightsError("; ".join(reason.removeprefix("Value error, ") for reason in reasons)) from error


def _config(graph: NetworkGraph, options: NetworkOptions) -> ImportedConfig:
    """Return the config of the card.

    Raises:
        ImportWeightsError: the number of class names is not that of the outputs.
    """
    if options.task == "embed":
        if options.classes:
            raise ImportWeightsError("an embedder has no classes: --labels is a classifier's")
        return ImportedEmbedderConfig(graph.width, graph.channels, graph.batch)
    if not options.classes:
        raise ImportWeightsError(f"the network has {graph.width} outputs: pass their class names with --labels")
    if len(options.classes) != graph.width:
        raise ImportWeightsError(f"{len(options.classes)} class names for a network with {graph.width} outputs")
    if graph.width == 1:
        raise ImportWeightsError("the network has one output: a classifier has one for each of two classes or more")
    return ImportedClassifierConfig(graph.width, graph.channels, graph.features, graph.batch)


def _preprocess(graph: NetworkGraph, options: NetworkOptions, report: Report) -> Preprocess:
    mean, std = options.mean, options.std
    if mean is None and std is None and options.task == "classify" and graph.channels == 3:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        report("mean and std are ImageNet's: pass --mean and --std if the network was trained with others")
    if mean is None or std is None:
        raise ImportWeightsError("pass --mean and --std of the network's training, on the scale 0..255")
    if min(std) < _MIN_STD:
        scaled = ",".join(f"{255 * value:g}" for value in std)
        raise ImportWeightsError(f"--std is on the scale 0..255, as --mean: 255 times these values are {scaled}")
    mean, std = (values * graph.channels if len(values) == 1 else values for values in (mean, std))
    return Preprocess(
        mode="L" if graph.channels == 1 else "RGB",
        size=graph.size,
        crop_fraction=options.crop_fraction,
        interpolation=options.interpolation,
        mean=mean,
        std=std,
    )


def _check_outputs(
    data: bytes, graph: NetworkGraph, task: ImportedTask, preprocess: Preprocess, onnx: bytes | None, report: Report
) -> None:
    """Run the stored graph on synthetic images, and compare its outputs with those of onnxruntime.

    Raises:
        ImportWeightsError: an output is not finite or differs.
    """
    random = np.random.default_rng(0)
    shape = (8, 8, 3)  # enlarged, so that neighbouring pixels are similar, as in photos
    pixels = random.integers(0, 256, (_COMPARED_IMAGES, *shape), np.uint8)
    images = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    model = select_output(deserialise(data), OUTPUT)
    runtime = GraphRuntime(model, preprocess.shape, "f32", None, (graph.batch or 1,))
    outputs = runtime(images)
    if not outputs.isfinite().all():
        raise ImportWeightsError("the network's outputs have NaN or infinity")
    if onnx is None:
        report("the outputs were not compared with another runtime, which is done for ONNX files only")
        return
    expected = run_onnx(onnx, graph.source, images)
    if expected is None:
        report("the outputs were not compared with onnxruntime, which is not installed: pip install onnxruntime")
        return
    if graph.softmax:
        outputs = outputs.softmax(dim=1)
    if task == "embed":
        expected = F.normalize(expected)
    difference = float((outputs - expected).abs().max())
    tolerance = _HALF_TOLERANCE if graph.source.type == "f16" else _TOLERANCE
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise ImportWeightsError(f"the outputs differ from onnxruntime's by {difference:.2g}, which is too much")
    report(f"the outputs differ from onnxruntime's by at most {difference:.2g} on {len(images)} synthetic images")


def run_onnx(onnx: bytes, source: SourceInput, images: Tensor) -> Tensor | None:
    """Return onnxruntime's outputs [N, D] for images [N, C, H, W], float32; None if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(rows: Tensor) -> Tensor:
        (output,) = session.run(None, {name: source.convert(rows).numpy()})
        return torch.from_numpy(output).float().reshape(len(rows), -1)

    return run_in_batches(images, tuple(images.shape[1:]), run, (source.batch or 1,))
