"""`vestibule import`: make a served model of published weights, or of a network from elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from app.cli.terminal import fail, read_settings

if TYPE_CHECKING:
    from models.card import ModelCard
    from models.network_import import Report

# Commands must start without importing torch: functions import what they need.
networks_cli = typer.Typer()

Source = Annotated[
    str,
    typer.Argument(
        help="As package:efficientnet-lite0, torchvision:resnet50, onnx:FILE, openvino:FILE.xml, or tflite:FILE.",
        show_default=False,
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Read this file instead of downloading: a .tflite, or one of torchvision's .pth files.",
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
    is_file = source not in SOURCES and source.partition(":")[0] in get_args(NetworkFormat)
    try:
        if is_file:
            card = _import_file(source, folder, task, options, report)
        else:
            if task or options:
                fail("options beside --from are for onnx:, openvino: and tflite: files")
            card = import_weights(source, folder, file, report)
    except ImportWeightsError as error:
        fail(str(error))
    typer.echo(f"{card.name} {card.version} is in {folder / card.name}")


def _import_file(
    source: str, folder: Path, task: Literal["classify", "embed"] | None, options: dict[str, Any], report: Report
) -> ModelCard:
    from models.network_import import NetworkOptions, import_network, name_of, read_classes

    format, _, path = source.partition(":")
    if task is None:
        fail("pass --task classify or --task embed")
    if (labels := options.pop("labels", None)) is not None:
        options["classes"] = read_classes(labels)
    network = NetworkOptions(task, **{"name": name_of(Path(path))} | options)
    return import_network(Path(path), format, folder, network, report)  # type: ignore[arg-type]  # checked before


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
