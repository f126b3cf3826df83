"""The storage engine in PostgreSQL: its parts, startup warnings, and problems of the database."""

from __future__ import annotations

import time

import psycopg
import pytest
from psycopg import sql

from index.errors import UnavailableError
from index.postgres import storage as module
from index.postgres.storage import PostgresStorage
from index.types import NewFace
from tests.index.people import Clock, vectors


def test_the_parts_of_a_storage_work_on_one_gallery(database_url: str, clock: Clock) -> None:
    storage = PostgresStorage.open(database_url, clock=clock)
    assert (storage.warnings(), storage.problems()) == ([], [])
    storage.gallery.create("doors", "face-embedder", "f1", 4)
    (vector,) = vectors(1)
    storage.gallery.enrol("doors", [NewFace("ada", vector)], "f1")
    (match,) = storage.searches.search("doors", vector[None])[0]
    storage.gallery.note_search("doors", [match.subject])
    assert len(storage.feedback.add("doors", "ada", vector[None])) == 1
    assert storage.reembedding_worker.waiting() == []
    assert storage.maintenance.run()
    storage.gallery.note_search("doors", [])
    storage.close()
    again = PostgresStorage.open(database_url)
    entries, _ = again.gallery.audit.read()
    assert [entry.event.action for entry in entries][-2:] == ["search", "search"]  # the last was written by `close`
    assert abs(again.gallery.clock() - time.time()) < 60
    again.close()


def test_a_database_that_refuses_changes_or_is_away(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.05)
    storage = PostgresStorage.open(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with pytest.raises(UnavailableError), storage.gallery.database.snapshot() as db:
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")  # new connections have the new setting
    deadline = time.monotonic() + 30
    while not storage.problems() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert storage.problems() == ["the database is read-only: enrolling and erasing fail until it accepts changes"]
    with pytest.raises(UnavailableError):
        storage.gallery.create("doors", "face-embedder", "f1", 4)

    def fail() -> object:
        raise UnavailableError("the database cannot be reached")

    monkeypatch.setattr(storage.gallery.database, "snapshot", fail)
    storage.check()
    assert storage.problems() == ["the gallery is not available: the database cannot be reached"]
    monkeypatch.undo()
    storage._closed.set()
    storage.gallery.database.close()
