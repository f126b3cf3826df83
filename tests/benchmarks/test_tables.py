"""CSV files of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.tables import read, write


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.csv"
    assert read(path) == []
    write(path, ["loss", "active"], [{"loss": "a, b", "active": 0.5}])
    assert read(path) == [{"loss": "a, b", "active": "0.5"}]
    assert path.read_bytes() == b'loss,active\n"a, b",0.5\n'


def test_a_column_too_many_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write(path, ["a"], [{"a": 1}])
    with pytest.raises(ValueError, match="b"):
        write(path, ["a"], [{"a": 2, "b": 3}])
    assert read(path) == [{"a": "1"}]
