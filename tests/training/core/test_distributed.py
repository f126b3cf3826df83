"""Agreement between processes, which are threads here; tests/training/test_nodes.py has real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.core import distributed
from training.core.distributed import on_main, require_agreement
from training.core.errors import RunError


class Processes:
    """Two processes as threads, with the collective operations of accelerate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._barrier = threading.Barrier(2)
        self._rank = threading.local()
        self._values: list[Any] = [None, None]
        monkeypatch.setattr(distributed, "broadcast_object_list", lambda values: self._exchange(values)[0])
        monkeypatch.setattr(distributed, "gather_object", lambda values: [*chain(*self._exchange(values))])
        monkeypatch.setattr(distributed, "APPEARS_S", 0.2)

    def _exchange(self, value: Any) -> list[Any]:
        self._values[self._rank.number] = value
        self._barrier.wait(30)
        values = [*self._values]
        self._barrier.wait(30)
        return values

    def run(self, work: Callable[[Any, int], object]) -> list[object]:
        """Return the result of `work(accelerator, rank)` in each process, or its RunError."""

        def process(rank: int) -> object:
            self._rank.number = rank
            accelerator = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=rank == 0)
            try:
                return work(accelerator, rank)
            except RunError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(process, range(2)))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    return Processes(monkeypatch)


def test_only_the_main_process_computes(processes: Processes) -> None:
    ranks: list[int] = []

    def work(accelerator: Any, rank: int) -> object:
        def read() -> str:
            ranks.append(rank)
            return f"read by {rank}"

        return on_main(accelerator, read)

    assert processes.run(work) == ["read by 0"] * 2
    assert ranks == [0]


def test_all_processes_get_the_error_of_the_main_process(processes: Processes) -> None:
    def fail() -> None:
        raise RunError("there is no run to resume")

    errors = processes.run(lambda accelerator, rank: on_main(accelerator, fail))
    assert [str(error) for error in errors] == ["there is no run to resume"] * 2


def test_processes_with_one_folder_and_the_same_arguments_agree(processes: Processes, tmp_path: Path) -> None:
    runs = tmp_path / "runs"  # the main process creates it
    assert processes.run(lambda accelerator, rank: require_agreement(accelerator, runs, "recipe")) == [None, None]
    assert list(runs.iterdir()) == []


def test_a_process_with_another_folder_stops_all(processes: Processes, tmp_path: Path) -> None:
    folders = [tmp_path / "runs", tmp_path / "elsewhere"]
    errors = processes.run(lambda accelerator, rank: require_agreement(accelerator, folders[rank], "recipe"))
    for error in errors:
        assert isinstance(error, RunError)
        assert "process 1" in str(error)
        assert f"{folders[1]} there is not {folders[0]} here" in str(error)
    assert list(folders[0].iterdir()) == []


def test_a_process_with_other_arguments_stops_all(processes: Processes, tmp_path: Path) -> None:
    errors = processes.run(lambda accelerator, rank: require_agreement(accelerator, tmp_path, f"seed {rank}"))
    for error in errors:
        assert "another recipe or other options than process 0" in str(error)


def test_a_folder_that_cannot_be_written_stops_all(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    errors = processes.run(lambda accelerator, rank: require_agreement(accelerator, tmp_path / "file", ""))
    for error in errors:
        assert "VESTIBULE_RUNS: no file can be created" in str(error)
