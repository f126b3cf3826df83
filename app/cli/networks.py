"""`vestibule import` and `export`: make a model of a network from elsewhere, and write one of ours as an ONNX file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from app.cli.terminal import fail, read_settings

if TYPE_CHECKING:
    from models.card import ModelCard
    from models.network_files import NetworkFormat
    from models.network_import import Report

# Commands must start without importing torch: functions import what they need.
networks_cli = typer.Typer()

Source = Annotated[
    str,
    typer.Argument(
        help="As package:efficientnet-lite0, torchvision:resnet50, onnx:FILE, openvino:FILE.xml, tflite:FILE or"
        " timm:resnet18.",
        show_default=False,
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Read this file instead of downloading: one of torchvision's .pth files, timm's .safetensors or .pth.",
        show_default=False,
    ),
]
NetworkTask = Annotated[
    Literal["classify", "embed"] | None,
    typer.Option(help="What a network from a file does.", show_default=False),
]
Name = Annotated[
    str | None, typer.Option(help="The model's name; by default made from the file's.", show_default=False)
]
Labels = Annotated[
    Path | None,
    typer.Option(help="A classifier's class names: a text file with one in each line.", show_default=False),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIDE|HxW",
        help="The input's height and width in pixels, where the file leaves them open.",
        show_default=False,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="The mean of pixels that training subtracted, 0..255; ImageNet's for a classifier of colour images.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="The deviation that training divided by, as --mean.", show_default=False),
]
Interpolation = Annotated[
    Literal["bilinear", "bicubic"] | None,
    typer.Option(help="How images are resized; bilinear by default.", show_default=False),
]
Crop = Annotated[
    float | None,
    typer.Option(min=0.01, max=1, help="The share of an image's shorter side that is kept.", show_default=False),
]
Bgr = Annotated[bool, typer.Option("--bgr", help="The network takes blue first, not red.")]
License = Annotated[str | None, typer.Option(help="The licence of the weights, for the card.", show_default=False)]


@networks_cli.command("import")
def import_model(  # noqa: PLR0913  options of a command
    source: Source,
    *,
    file: From = None,
    task: NetworkTask = None,
    name: Name = None,
    labels: Labels = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_fraction: Crop = None,
    bgr: Bgr = False,
    license: License = None,
) -> None:
    """Convert published weights, or a network from a file, into a model in the weights folder."""
    from models.importers import SOURCES, ImportWeightsError, import_weights
    from models.network_files import NetworkFormat

    folder, report = read_settings().weights, partial(typer.echo, err=True)
    options: dict[str, Any] = {
        "name": name,
        "labels": labels,
        "size": None if size is None else _size(size),
        "mean": None if mean is None else _values("--mean", mean),
        "std": None if std is None else _values("--std", std),
        "interpolation": interpolation,
        "crop_fraction": crop_fraction,
        "bgr": bgr or None,
        "license": license,
    }
    options = {key: value for key, value in options.items() if value is not None}
    kind = "" if source in SOURCES else source.partition(":")[0]
    try:
        if kind == "timm" or kind in get_args(NetworkFormat):
            card = _import_network(source, folder, file, {"task": task or _default_task(kind)} | options, report)
        elif task or options:
            fail("options beside --from are for onnx:, openvino:, tflite: and timm:")
        else:
            card = import_weights(source, folder, file, report)
    except ImportWeightsError as error:
        fail(str(error))
    typer.echo(f"{card.name} {card.version} is in {folder / card.name}")


@networks_cli.command("export")
def export_model(
    name: Annotated[str, typer.Argument(help="A model of the weights folder.", show_default=False)],
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file, the only format.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The file; by default NAME.onnx in this folder.", show_default=False)
    ] = None,
) -> None:
    """Write a network as a file for other frameworks."""
    from app.inference.onnx_export import write_onnx
    from models.checkpoint import CheckpointError

    if not onnx:
        fail("pass --onnx, the only format")
    file = output or Path(f"{name}.onnx")
    if file.exists():
        fail(f"{file} exists already: delete it, or choose another --output")
    try:
        card = write_onnx(read_settings().weights / name, file)
    except (CheckpointError, OSError) as error:
        fail(str(error))
    preprocess = card.preprocess
    typer.echo(f"{card.name} {card.version} is in {file}")
    typer.echo(f"input: {preprocess.mode} of {preprocess.size}, mean {preprocess.mean}, std {preprocess.std}, 0..255")


def _default_task(kind: str) -> str:
    if kind != "timm":
        fail("pass --task classify or --task embed")
    return "classify"


def _import_network(source: str, folder: Path, file: Path | None, options: dict[str, Any], report: Report) -> ModelCard:
    from models.network_import import NetworkOptions, import_network, model_name, read_classes
    from models.timm_import import import_timm

    kind, _, where = source.partition(":")
    if (labels := options.pop("labels", None)) is not None:
        options["classes"] = read_classes(labels)
    default_name = model_name(where if kind == "timm" else Path(where).stem)
    network = NetworkOptions(**{"name": default_name} | options)
    if kind != "timm":
        if file is not None:
            fail(f"{kind}: is followed by the file's path; --from is for other sources")
        return import_network(Path(where), cast("NetworkFormat", kind), folder, network, report)
    if file is None:
        fail("timm's networks are read from a file: pass it with --from")
    if unused := sorted(options.keys() - {"task", "name", "classes", "license"}):
        fail(f"timm has the preprocessing of its networks: --{unused[0].replace('_', '-')} is not used")
    return import_timm(where, file, folder, network, report)


def _size(text: str) -> tuple[int, int]:
    """Return the height and width that a text such as 224 or 224x160 gives."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        fail(f"--size {text}: expected a number of pixels, or height and width as 224x160")
    return int(sides[0]), int(sides[-1])


def _values(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers of a text in which commas separate them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        fail(f"{option} {text}: expected numbers separated by commas, as 123.675,116.28,103.53")
