"""A gallery and its clock, for the tests of all parts of index/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from index.embedded.gallery import EmbeddedGallery, SearchTuning
from index.embedded.storage import EmbeddedStorage
from index.protocol import Storage
from tests.index.people import Clock

INTERFACE: type[Storage] = EmbeddedStorage  # mypy checks that the embedded engine satisfies the interface


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def gallery(tmp_path: Path, clock: Clock) -> Iterator[EmbeddedGallery]:
    """The collection `doors` of 4 dimensions. Searches probe the whole inverted file."""
    gallery = EmbeddedGallery(tmp_path / "gallery", clock=clock, tuning=SearchTuning(1000, 1000))
    gallery.create("doors", "face-embedder", "f1", 4)
    yield gallery
    gallery.close()
