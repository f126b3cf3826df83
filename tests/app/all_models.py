"""A weights folder with a classifier, an embedder and generative networks, most of them with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.embedder import random_embedder
from tests.app.generators import random_generators


def random_models(folders: pytest.TempPathFactory) -> Path:
    """Return a folder with `lenet5-mnist`, `centerface`, `mobilefacenet-triplet` and all of `generators.NETWORKS`."""
    folder, other = folders.mktemp("weights"), folders.mktemp("embedder")
    random_generators(folder)
    random_embedder(other)
    for name in ("mobilefacenet-triplet", "centerface"):
        (folder / name).symlink_to(other / name)
    return folder
