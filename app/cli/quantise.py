"""`vestibule quantise NAME --images DIR`: quantise a classifier to 8-bit integers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from app.cli.terminal import fail, read_settings

quantise_cli = typer.Typer()


@quantise_cli.command()
def quantise(
    name: Annotated[str, typer.Argument(help="A classifier in the weights folder.", show_default=False)],
    *,
    images: Annotated[
        Path,
        typer.Option(
            help="A folder of images as those to classify, also in subfolders; up to 1,300 are used.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ],
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="The least share of images with the same most probable class.")
    ] = 0.97,
) -> None:
    """Write a quantised network beside a classifier's weights, which OpenVINO runs with 8-bit integers.

    The service then chooses it if it is the fastest runtime that agrees with torch on the service's own photos.
    """
    from models import checkpoint, image_decoder, quantisation

    settings = read_settings()
    folder = settings.weights / name
    try:
        preprocess = checkpoint.read_card(folder).preprocess
        files = (path for path in images.rglob("*") if path.is_file())
        paths = sorted(path for path in files if image_decoder.why_not_supported(path) is None)
        random.Random(0).shuffle(paths)  # noqa: S311  not a secret
        del paths[quantisation.MAX_SAMPLES + quantisation.MAX_COMPARED :]
        int8 = quantisation.quantise_model(
            folder,
            [preprocess(image_decoder.read(path)) for path in paths],
            settings.state / "compiled",
            agreement,
        )
    except (checkpoint.CheckpointError, image_decoder.DecodeError, quantisation.QuantisationError) as error:
        fail(str(error))
    typer.echo(f"{name}: the same class as torch for {int8.agreement:.2%} of {int8.compared} images")
