"""Snapshots for exports while collections change, rows that another import has loaded, and checks of a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from index.postgres.storage import PostgresStorage
from index.postgres.store import collection_records
from index.records import FaceRecord
from index.types import NewFace
from tests.index.people import Clock, vectors


@pytest.fixture
def storage(database_url: str, clock: Clock) -> Iterator[PostgresStorage]:
    """The collection `doors` with a subject that has expired, one with feedback, and two faces."""
    with closing(PostgresStorage.open(database_url, clock=clock)) as storage:
        storage.gallery.create("doors", "e", "f1", 4, keep_crops=True)
        storage.gallery.enrol("doors", [NewFace(f"p{n}", vectors(3)[n], {}, b"crop") for n in range(2)], "f1")
        storage.feedback.add("doors", "p0", vectors(1, seed=1), [b"crop"])
        storage.gallery.put_subject("doors", "p1", expires_at=1001.0)
        clock.now = 2000.0
        yield storage


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_snapshot_begins_again_if_collections_change(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections, calls = storage.gallery.collections, iter(range(9))

    def outdated(*arguments: Any, **options: Any) -> Any:
        found, number = collections(*arguments, **options), next(calls)
        if number == 0:
            return [*found, replace(found[0], id=99)]  # dropped meanwhile
        return [] if number == 1 else found  # created meanwhile

    monkeypatch.setattr(storage.gallery, "collections", outdated)
    with storage.transfer.snapshot() as snapshot:
        assert [collection.name for collection in snapshot.collections()] == ["doors"]
        assert [face.subject for page in snapshot.faces(snapshot.collections()[0]) for face in page] == ["p0"]
    assert next(calls) == 3


def test_a_collection_that_is_dropped_during_an_import_is_not_searched_for_tokens(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = collection_records.page

    def with_dropped(*arguments: Any) -> Any:
        found = page(*arguments)
        return [*found, replace(found[0], id=99)]

    monkeypatch.setattr(collection_records, "page", with_dropped)
    face = FaceRecord(0, "new", None, "{}", None, "0" * 32, "{}", 5.0, vectors(1).tobytes(), None)
    assert storage.transfer.enrol(storage.gallery.collection("doors"), [face]) == 1


def test_an_undamaged_database_has_no_faults(storage: PostgresStorage) -> None:
    assert list(storage.find_faults()) == []
    assert storage.stored_bytes() > 0


def test_faults_of_a_database_are_found(storage: PostgresStorage, database_url: str) -> None:
    storage.gallery.create("trains", "e", "f1", 4)
    storage.gallery.audit.flush()
    change(
        database_url,
        "UPDATE faces_1 SET vector = vector + vector WHERE id = 1",
        "UPDATE rejections SET vector = vector + vector",
        "INSERT INTO collection_counts VALUES (2, 1, 0)",
        "UPDATE audit_lines SET line = 'x' WHERE sequence = 2",
    )
    assert [fault.partition(", the first")[0] for fault in storage.find_faults()] == [
        "doors: 1 faces have no vector of length 1",
        "doors: 1 rejected faces have no vector of length 1",
        "trains: there are 0 subjects and 0 faces, and the counts are 1 and 0",
        "audit log: entry 2: the line is malformed",
    ]
    change(database_url, "UPDATE faces_1 SET seal = '' WHERE id = 2")
    assert "doors: the rest cannot be read: a sealed value is damaged" in list(storage.find_faults())


def test_changes_during_a_verification_are_no_faults(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    collections = storage.gallery.collections()
    calls = iter(range(9))
    # The check knows the collection by an older generation: it was re-embedded meanwhile.
    monkeypatch.setattr(
        storage.gallery,
        "collections",
        lambda **_: [replace(it, generation=-1) for it in collections] if next(calls) == 0 else collections,
    )
    assert list(storage.find_faults()) == []
