from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app.gallery import reembedding
from app.gallery.bulk import enrolment


@pytest.fixture(scope="module", autouse=True)
def _short_poll_interval() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enrolment, "POLL_S", 0.05)
        patch.setattr(reembedding, "POLL_S", 0.05)
        yield


@pytest.fixture
def gallery(running: TestClient) -> Iterator[TestClient]:
    """A client of a service with the empty collection `doors`."""
    assert running.put("/collections/doors", json={"keep_crops": True}).status_code == 201
    yield running
    assert running.delete("/collections/doors").status_code == 200
