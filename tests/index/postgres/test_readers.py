"""Readers that are no standbys of the primary answer nothing, and the storage reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql

from index.postgres import readers
from index.postgres.readers import UNREACHABLE, Reader
from index.postgres.storage import PostgresStorage
from index.postgres.store.database import Database
from index.types import NewFace
from tests.index.people import vectors


@pytest.fixture
def empty_url(database_url: str) -> Iterator[str]:
    """The address of a database without a gallery."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = sql.Identifier(f"{connection.info.dbname}_empty")
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        yield database_url.replace(f"/{connection.info.dbname}?", f"/{connection.info.dbname}_empty?")
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def test_the_primary_answers_in_place_of_readers_that_are_no_standbys(database_url: str, empty_url: str) -> None:
    away = "postgresql://127.0.0.1:1/x?connect_timeout=1"
    with closing(PostgresStorage.open(database_url, readers=[database_url, empty_url, away])) as storage:
        storage.check()
        assert storage.problems() == [
            "the reader 1 receives no log of the primary, or its user lacks pg_monitor",
            f"the reader 2 {UNREACHABLE}",
            f"the reader 3 {UNREACHABLE}",
        ]
        assert [*storage._readers.current()] == []
        (vector,) = vectors(1)
        storage.gallery.create("doors", "face-embedder", "f1", 4)
        storage.gallery.enrol("doors", [NewFace("ada", vector)], "f1")
        (matches,) = storage.searches.search("doors", vector[None])
        assert [match.subject.key for match in matches] == ["ada"]


def test_a_copy_of_another_gallery_is_no_reader(database_url: str, empty_url: str) -> None:
    with closing(Database(empty_url)), closing(PostgresStorage.open(database_url, readers=[empty_url])) as storage:
        assert storage.warnings() == ["the reader 1 does not have this gallery"]


def test_a_reader_that_is_lost_after_its_check_answers_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CONNECT_S", 0.1)
    with closing(Database(database_url)) as database:
        reader = Reader("the reader 1", "postgresql://127.0.0.1:1/x?connect_timeout=1", database)
        with closing(reader):
            assert reader.problem is None
            assert not reader.has_replayed(1, "0/0")
            assert reader.problem == f"the reader 1 {UNREACHABLE}"
