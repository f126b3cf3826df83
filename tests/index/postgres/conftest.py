"""Databases for the tests of the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from index.postgres.store.database import Database
from tests.index.people import Clock


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    """A new database whose time is the test's clock."""
    database = Database(database_url, clock=clock)
    yield database
    database.close()
