"""A service in its own process with a face embedder of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.app.embedder import random_embedder
from tests.app.server.test_process import serving


@contextmanager
def serving_faces(folders: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of such a service."""
    weights = folders.mktemp("weights")
    random_embedder(weights)
    environment = {
        "VESTIBULE_WEIGHTS": str(weights),
        "VESTIBULE_STATE": str(folders.mktemp("state")),
        "VESTIBULE_DEFAULT_CLASSIFIER": "lenet5-mnist",
    }
    with serving(**environment) as (_, url, _):
        yield url
