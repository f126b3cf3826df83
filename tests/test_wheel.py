"""The wheel has every module and data file of the packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from app.settings import PROJECT

PACKAGES = ("app", "index", "models", "training")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def packaged(folder: Path) -> set[str]:
    """Return the modules and the console's files below a folder, relative to it."""
    paths = (path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in paths}
    return {name for name in names if name.endswith(".py") or name.startswith("app/console/static/")}


def test_the_wheel_has_all_modules(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    wheels.mkdir()
    for package in PACKAGES:  # copied, because a build writes beside its sources
        shutil.copytree(PROJECT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(wheels)], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "unpacked")
    expected = packaged(source)
    assert len(expected) > 250
    assert packaged(tmp_path / "unpacked") == expected
