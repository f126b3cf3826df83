"""Options of the soak tests. Each test has a small default size; the docs name the size of each published result.

pytest -m slow -s tests/soak/test_gallery_kills.py --soak-size 300 --soak-results benchmarks/results
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Soak:
    """The options: the size of a run (None: each test's default), the folder of CSV files, and a seed."""

    size: int | None
    results: Path
    seed: int


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soak", "tests/soak")
    group.addoption("--soak-size", type=int, help="How many requests, kills, vectors or clients; small by default.")
    group.addoption("--soak-results", type=Path, help="Folder of the CSV files; a temporary folder by default.")
    group.addoption("--soak-seed", type=int, default=0, help="Seed of what is drawn at random.")


@pytest.fixture
def soak(pytestconfig: pytest.Config, tmp_path: Path) -> Soak:
    """The options, or the defaults where this file was loaded too late to define them (pytest without a path)."""
    results = pytestconfig.getoption("--soak-results", None) or tmp_path / "results"
    return Soak(pytestconfig.getoption("--soak-size", None), results, pytestconfig.getoption("--soak-seed", 0))
