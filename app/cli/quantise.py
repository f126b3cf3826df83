"""`vestibule quantise NAME --images DIR`: quantise a classifier, a face embedder or a detector to 8-bit integers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.terminal import fail, read_settings

if TYPE_CHECKING:
    from PIL import Image

quantise_cli = typer.Typer()

# By the model's task, what is printed of the agreement and the number of compared images.
_AGREEMENTS = {
    "classify": "the same class as torch for {:.2%} of {} images",
    "embed": "a cosine of at least {:.4f} with torch for {} images",
    "detect": "the same faces as torch in {:.2%} of {} images",
}


@quantise_cli.command()
def quantise(
    name: Annotated[
        str,
        typer.Argument(help="A classifier, a face embedder or a detector in the weights folder.", show_default=False),
    ],
    *,
    images: Annotated[
        Path,
        typer.Option(
            help="A folder of images as those to classify, or of photos of faces, also in subfolders; up to 1,300 are"
            " used, for a detector 300.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ],
    aligned: Annotated[
        bool,
        typer.Option(help="For an embedder: the images are aligned faces of 112x112 pixels, as a collection stores."),
    ] = False,
    agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="A classifier's least share of images with the same most probable class, by default 0.97; an"
            " embedder's least cosine of a vector with torch's, by default 0.95; a detector's least share of images"
            " with the same faces, by default 0.95.",
        ),
    ] = None,
) -> None:
    """Write a quantised network beside a model's weights, which OpenVINO runs with 8-bit integers.

    The service then chooses it if it is the fastest runtime that agrees with torch on the service's own photos; an
    embedder's only for collections that allow it.
    """
    from models import checkpoint, image_decoder, quantisation

    settings = read_settings()
    folder = settings.weights / name
    try:
        card = checkpoint.read_card(folder)
        files = (path for path in images.rglob("*") if path.is_file())
        paths = sorted(path for path in files if image_decoder.why_not_supported(path) is None)
        random.Random(0).shuffle(paths)  # noqa: S311  not a secret
        del paths[quantisation.MAX_SAMPLES.get(card.task, 0) + quantisation.MAX_COMPARED.get(card.task, 0) :]
        prepare = quantisation.input_of(card)
        photos = (image_decoder.read(path) for path in paths)
        if card.task == "embed" and not aligned:
            crop = _face_cropper(settings.weights / settings.default_detector)
            photos = (face for face in map(crop, photos) if face is not None)
        int8 = quantisation.quantise_model(
            folder, [prepare(photo) for photo in photos], settings.state / "compiled", agreement
        )
    except (checkpoint.CheckpointError, image_decoder.DecodeError, quantisation.QuantisationError) as error:
        fail(str(error))
    typer.echo(f"{name}: {_AGREEMENTS[card.task].format(int8.agreement, int8.compared)}")


def _face_cropper(folder: Path) -> Callable[[Image.Image], Image.Image | None]:
    """Return a function that aligns a photo's most prominent face, None without one; `folder` is the detector's.

    Raises:
        CheckpointError: see `checkpoint.load`.
    """
    from PIL import Image

    from models import align, checkpoint, runtime
    from models.detection_scale import CenterFaceDetector
    from models.detector import prominence

    module, card = checkpoint.load(folder)
    detect = CenterFaceDetector(runtime.prepare(module), card.preprocess)

    def crop(photo: Image.Image) -> Image.Image | None:
        rgb = photo.convert("RGB")
        face = max(detect(rgb), key=lambda face: prominence(face, rgb.size), default=None)
        try:
            return None if face is None else Image.fromarray(align.align(rgb, face.landmarks))
        except align.NoAlignmentError:
            return None

    return crop
