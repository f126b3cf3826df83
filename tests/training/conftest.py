"""Helpers of the training tests: data sets of simple strokes and of faces, untrained models, interrupted runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]
from matplotlib import cbook
from PIL import Image
from torch import nn
from typer.testing import Result

from models import checkpoint
from models.preprocess import Preprocess
from models.registry import build
from tests.conftest import photo
from training.recipe.config import runs_folder

CLASSES = ("across", "down", "slanted")
GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.3,), std=(78.6,))
TWO_PROCESSES = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)

RECIPE = """
name = "strokes"
description = "Strokes"
seed = 3
model = { architecture = "lenet5-relu", config = { dropout = 0.1 } }
data = { name = "strokes", validation = 30 }
preprocess = { mode = "L", size = [28, 28], pad = 2, mean = [33.3], std = [78.6] }
augment = { rotate = 5, translate = 0.05 }
train = { epochs = 4, batch_size = 10, optimizer = "adamw", lr = 0.002, weight_decay = 0.01, \
    warmup_epochs = 1, ema = 0.9, checkpoint_steps = 5 }
card = { data = "strokes", source = "a test", license = "Apache-2.0" }
"""


def strokes(count: int, seed: int = 0) -> tuple[list[Image.Image], list[int]]:
    """Return `count` grey 28x28 images of a noisy stroke, and the class of each."""
    numbers = np.random.default_rng(seed)
    pictures, labels = [], []
    for row in range(count):
        pixels = numbers.integers(0, 40, (28, 28))
        label, place = row % 3, int(numbers.integers(8, 20))
        along = np.arange(4, 24)
        across = {0: np.full(20, place), 1: along, 2: along}[label]
        pixels[across, {0: along, 1: np.full(20, place), 2: along}[label]] = 250
        pictures.append(Image.fromarray(pixels.astype(np.uint8)))
        labels.append(label)
    return pictures, labels


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, encoded: list[bytes], labels: list[int], classes: tuple[str, ...] = CLASSES) -> None:
    """Write a data set as the `datasets` library does, with class names in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [{"bytes": data, "path": None} for data in encoded]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), path)


def write_identities(path: Path, faces: Iterable[tuple[Image.Image, str | None]]) -> None:
    """Write a data set of images with identities."""
    rows = [{"image": {"bytes": png(image), "path": None}, "identity": identity} for image, identity in faces]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def save(folder: Path, architecture: str, config: Mapping[str, object], **card: object) -> Path:
    """Save an untrained model with a card; `card` replaces or adds fields."""
    torch.manual_seed(0)
    return save_network(folder, build(architecture, config), architecture, config, **card)


def save_network(
    folder: Path, network: nn.Module, architecture: str, config: Mapping[str, object], **card: object
) -> Path:
    defaults: dict[str, object] = {"preprocess": GREY, "description": "x", "data": "x", "source": "x", "license": "x"}
    card = {"name": folder.name, "architecture": architecture, "config": config} | defaults | card
    checkpoint.save(folder, network, **card)
    return folder


def sets(*overrides: str) -> list[str]:
    """Return command line options that override settings of a recipe."""
    return [part for override in overrides for part in ("--set", override)]


def assert_error(result: Result, message: str) -> None:
    """Check that a command has failed with one line, which contains `message`."""
    assert (result.exit_code, result.output[:7], result.output.count("\n")) == (1, "error: ", 1), result.output
    assert message in result.output


@contextmanager
def interrupted(task: type, call: int, method: str = "step") -> Iterator[None]:
    """Let the given call of a method of a task, counted from 1, raise KeyboardInterrupt."""
    original, calls = getattr(task, method), 0

    def counting(self: object, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, method, counting)
        yield
    assert calls == call


def check_resumed(invoke: Callable[..., Result], task: type, call: int, method: str = "step") -> None:
    """Check that a run that is interrupted in that call and resumed ends with the files of an unbroken run."""
    assert invoke("--run", "whole").exit_code == 0
    with interrupted(task, call, method):
        invoke("--run", "broken")
    assert invoke("--run", "broken", "--resume").exit_code == 0
    for name in ("best.pt", "history.json"):
        whole, broken = ((runs_folder() / run / name).read_bytes() for run in ("whole", "broken"))
        assert whole == broken, name


@cache
def head(name: str) -> Image.Image:
    """Return the head of the astronaut or of Grace Hopper, 192 x 192 pixels."""
    if name == "astronaut":
        return photo("astronaut").crop((128, 10, 320, 202))
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as file:
        return file.convert("RGB").crop((110, 20, 410, 320)).resize((192, 192))


def save_photo(picture: Image.Image, path: Path, exif: Image.Exif | bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif)


def shifted(name: str, pixels: int) -> Image.Image:
    """Another photo of the person: some pixels cut off at the left."""
    return head(name).crop((pixels, 0, 192, 192))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty VESTIBULE_DATASETS and VESTIBULE_RUNS in a folder of the test's own: `data` and `runs`."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for subprocesses, as `one_thread`
    return tmp_path


@pytest.fixture
def workshop(folders: Path) -> Path:
    """`folders` with a training set of 130 strokes, an unreadable test file, and the recipe."""
    pictures, labels = strokes(130)
    write_parquet(folders / "data/strokes/train.parquet", [png(p) for p in pictures], labels)
    (folders / "data/strokes/test.parquet").write_bytes(b"not parquet, so opening it fails")
    (folders / "recipe.toml").write_text(RECIPE)
    return folders


@pytest.fixture
def album(folders: Path) -> Path:
    """Two people with three photos each, one with a single photo; a cup, a file that is none, a copy."""
    album = folders / "album"
    for name in ("astronaut", "hopper"):
        for pixels in range(3):
            save_photo(shifted(name, pixels), album / name / f"{pixels}.png")
    (album / "hopper/copy.png").write_bytes((album / "hopper/1.png").read_bytes())
    save_photo(head("astronaut").transpose(Image.Transpose.FLIP_LEFT_RIGHT), album / "once/0.png")
    save_photo(photo("coffee").resize((128, 96)), album / "once/cup.png")
    save_photo(head("astronaut").point(lambda value: value // 8), album / "astronaut/night.png")
    (album / "astronaut/broken.jpg").write_bytes(b"\xff\xd8\xff hardly a photo")
    return album


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are too small for several threads, and idle OpenMP threads would take CPU time from other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Reset accelerate's settings, which are global."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
