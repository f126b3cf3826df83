"""What tests of every package share: real pictures that travel in packages, and the data sets where there are some."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from tests.index.postgres_server import database_url, database_urls, postgres_server

__all__ = ["database_url", "database_urls", "postgres_server"]  # here, so that all tests of a process share one server

MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # bytes; the tests need less


def pytest_configure() -> None:
    """Place temporary files in memory unless TMPDIR is set, the system has no such folder, or it is small.

    Galleries are flushed to disk at each change and every test of PostgreSQL copies a database: on a disk the tests
    mostly wait for it.
    """
    if "TMPDIR" not in os.environ and _is_usable(MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)  # also for subprocesses


def _is_usable(folder: Path) -> bool:
    """Whether files can be written to the folder and programs run in it, and it has ROOM free."""
    return (
        os.access(folder, os.W_OK)
        and not os.statvfs(folder).f_flag & os.ST_NOEXEC
        and shutil.disk_usage(folder).free > ROOM
    )


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(name: str) -> Image.Image:
    """One of scikit-image's pictures: astronaut, chelsea, coffee, rocket."""
    return Image.fromarray(getattr(skimage.data, name)())


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes in test ids by their parameter: compressed bytes contain the time.

    Test processes that collect in different seconds would have different tests, and pytest-xdist would refuse them.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def _torch_serves() -> Iterator[None]:
    """Unless a test's settings say otherwise: to choose a runtime takes seconds a model, and torch is the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VESTIBULE_RUNTIME", "torch")
        yield


@pytest.fixture(scope="session")
def datasets() -> Callable[[str], Path]:
    """The folder of a data set. Without VESTIBULE_DATASETS the test skips; with it, a missing set is a failure."""
    root = os.environ.get("VESTIBULE_DATASETS")

    def folder(name: str) -> Path:
        if root is None:
            pytest.skip("VESTIBULE_DATASETS is not set")
        path = Path(root) / name
        assert path.is_dir(), f"VESTIBULE_DATASETS is {root}, and there is no {name} in it"
        return path

    return folder


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with the shipped weights, over real HTTP; its gallery is shared by all tests."""
    from app.settings import Settings
    from tests.app.threaded import serving_here

    with serving_here(Settings(state=tmp_path_factory.mktemp("live"), upkeep_s=0.25)) as url:
        yield url
