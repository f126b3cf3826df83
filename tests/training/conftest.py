"""Small data sets that the tests make themselves: three kinds of strokes, easy to tell apart."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]
from PIL import Image

from models.preprocess import Preprocess

CLASSES = ("across", "down", "slanted")
GREY = Preprocess(mode="L", size=(28, 28), pad=2, mean=(33.3,), std=(78.6,))

RECIPE = """
name = "strokes"
description = "Strokes"
seed = 3

[model]
architecture = "lenet5-relu"
config = { dropout = 0.1 }

[data]
name = "strokes"
validation = 30

[preprocess]
mode = "L"
size = [28, 28]
pad = 2
mean = [33.3]
std = [78.6]

[augment]
rotate = 5
translate = 0.05

[train]
epochs = 4
batch_size = 10
optimizer = "adamw"
lr = 0.002
weight_decay = 0.01
warmup_epochs = 1
ema = 0.9
checkpoint_steps = 5

[card]
data = "strokes"
source = "a test"
license = "Apache-2.0"
"""


def strokes(count: int, seed: int = 0) -> tuple[list[Image.Image], list[int]]:
    """`count` grey 28x28 pictures of one noisy stroke, and the class of each."""
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
    """As the `datasets` library writes it, class names in the schema's metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [{"bytes": data, "path": None} for data in encoded]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), path)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty VESTIBULE_DATASETS and VESTIBULE_RUNS in a folder of the test's own: `data` and `runs`."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for subprocesses, as `one_thread`
    return tmp_path


@pytest.fixture
def workshop(folders: Path) -> Path:
    """`folders` with a training set of 130 strokes, a test file that nobody can read, and the recipe."""
    pictures, labels = strokes(130)
    write_parquet(folders / "data/strokes/train.parquet", [png(p) for p in pictures], labels)
    (folders / "data/strokes/test.parquet").write_bytes(b"not parquet: whoever opens this fails")
    (folders / "recipe.toml").write_text(RECIPE)
    return folders


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share out, and OpenMP's threads spin where others want the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """accelerate keeps its settings for the life of a process; a test begins without another's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
