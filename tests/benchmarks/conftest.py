"""Helpers of the benchmarks' tests: photos of two people in the layouts of data sets, and a service to send them to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import pytest
import typer
from PIL import Image, ImageEnhance
from typer.testing import CliRunner, Result

from tests.app.face_pictures import grace_hopper
from tests.app.face_service import serving_faces
from tests.conftest import photo

PEOPLE = {
    "Astronaut": photo("astronaut").crop((100, 0, 350, 250)),
    "Grace_Hopper": grace_hopper().resize((250, 293)).crop((0, 0, 250, 250)),
}


def invoke(cli: typer.Typer, *arguments: str | Path) -> Result:
    """Run a command and return its result."""
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders for data sets and for runs, `data` and `runs`."""
    monkeypatch.setenv("VESTIBULE_DATASETS", str(tmp_path / "data"))
    monkeypatch.setenv("VESTIBULE_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with a face embedder of random weights. A busy machine misses no deadline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VESTIBULE_DEADLINE_S", "600")
        with serving_faces(tmp_path_factory) as url:
            yield url


@pytest.fixture
def lfw(folders: Path) -> Path:
    """LFW's layout as a data set: five photos each of two people, ten mated and ten non-mated pairs."""
    root = folders / "data/lfw-view1"
    for name, image in PEOPLE.items():
        (root / "lfw" / name).mkdir(parents=True)
        for number in range(1, 6):
            brighter: Image.Image = ImageEnhance.Brightness(image).enhance(0.6 + 0.08 * number)
            brighter.save(root / "lfw" / name / f"{name}_{number:04d}.jpg", quality=95)
    mated = [f"Astronaut\t{a}\t{b}" for a, b in combinations(range(1, 6), 2)]
    others = [f"Astronaut\t{a}\tGrace_Hopper\t{b}" for a, b in product(range(1, 6), (1, 2))]
    (root / "pairsDevTest.txt").write_text("\n".join(["10", *mated, *others]) + "\n")
    return root
