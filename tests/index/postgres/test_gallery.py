"""The gallery in PostgreSQL where it differs from the embedded one, and locks of reads and changes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from index.errors import ConflictError, InvalidError, NotFoundError
from index.postgres.gallery import PostgresGallery
from index.postgres.store import collection_records, face_tables
from index.postgres.store.database import Connection, Database, scalar
from index.protocol import Gallery
from index.types import NewFace
from tests.index.people import vectors

INTERFACE: type[Gallery] = PostgresGallery  # mypy checks that the gallery satisfies the interface
FACES = vectors(4)


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", 4)
    return gallery


def test_encrypted_collections_and_long_vectors_are_refused(gallery: PostgresGallery) -> None:
    with pytest.raises(InvalidError, match="use the embedded gallery"):
        gallery.create("secret", "e", "f1", 4, encrypted=True)
    with pytest.raises(InvalidError, match="at most 1500 numbers"):
        gallery.create("long", "e", "f1", 1501)
    gallery.create("longest", "e", "f1", 1500)
    (vector,) = vectors(1, 1500)
    details = {"text": "x" * 16_000}
    (face,) = gallery.enrol("longest", [NewFace("ada", vector, details, bytes(5000))], "f1")
    assert gallery.faces("longest", "ada") == [face]
    assert face.details == details


def test_numbers_beyond_64_bits(gallery: PostgresGallery) -> None:
    (face,) = gallery.enrol("doors", [NewFace("ada", FACES[0])], "f1")
    assert gallery.faces("doors", "ada", -(2**70), 2**70) == [face]
    assert gallery.faces("doors", "ada", 2**70) == []
    assert len(gallery.subjects("doors", limit=2**70)) == 1
    with pytest.raises(InvalidError, match="cannot store a value"):
        gallery.create("long", "e", "f1", -(2**40))


def test_two_galleries_follow_a_collection_that_is_created_again(gallery: PostgresGallery, database: Database) -> None:
    other = PostgresGallery(database)
    for _ in range(2):
        gallery.enrol("doors", [NewFace("ada", FACES[0])], "f1")
        assert other.subject("doors", "ada").faces == 1
        gallery.drop("doors")
        with pytest.raises(NotFoundError):
            other.subject("doors", "ada")
        gallery.create("doors", "face-embedder", "f1", 4)
        assert other.subjects("doors") == []
    gallery.drop("doors")
    gallery.create("doors", "face-embedder", "f1", 4)
    assert other.subjects("doors") == []  # without a read in between


def test_a_drop_waits_for_a_read(gallery: PostgresGallery) -> None:
    gallery.enrol("doors", [NewFace("ada", FACES[0])], "f1")
    assert gallery.subject("doors", "ada").faces == 1
    with ThreadPoolExecutor(1) as threads, gallery.reading("doors") as (db, collection):
        drop = threads.submit(gallery.drop, "doors")
        with pytest.raises(TimeoutError):
            drop.result(0.3)
        statement = sql.SQL("SELECT count(*) FROM {}").format(face_tables.faces(collection.id))
        assert scalar(db, statement) == 1
    assert drop.result(10).faces == 1


def test_an_enrolment_waits_for_a_drop_and_finds_no_collection(gallery: PostgresGallery, database: Database) -> None:
    locked, done = threading.Event(), threading.Event()

    def drop(db: Connection) -> None:
        collection_records.find(db, "doors", "update")
        locked.set()
        assert done.wait(10)
        db.execute("DELETE FROM collections")

    with ThreadPoolExecutor(2) as threads:
        dropping = threads.submit(database.write, drop)
        assert locked.wait(10)
        enrolling = threads.submit(gallery.enrol, "doors", [NewFace("ada", FACES[0])], "f1")
        with pytest.raises(TimeoutError):
            enrolling.result(0.3)
        done.set()
        dropping.result(10)
        with pytest.raises(NotFoundError):
            enrolling.result(10)


def test_two_enrolments_create_a_subject_once(gallery: PostgresGallery) -> None:
    """The second waits for the first one's new subject, and then uses it."""
    inserted, done = threading.Event(), threading.Event()

    change = gallery.enrol.planned("doors", [NewFace("ada", FACES[0])], "f1")

    def wait(faces: object) -> object:
        inserted.set()
        assert done.wait(10)
        return faces

    first = change.then(wait).submit()
    assert inserted.wait(10)
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(gallery.enrol, "doors", [NewFace("ada", FACES[1])], "f1")
        with pytest.raises(TimeoutError):
            second.result(0.3)
        done.set()
        first.result(10)
        second.result(10)
    assert gallery.subject("doors", "ada").faces == 2
    assert gallery.usage("doors").subjects == 1


def test_a_collection_that_was_replaced_meanwhile(gallery: PostgresGallery, database: Database) -> None:
    collection = gallery.collection("doors")
    with database.snapshot() as db:
        collection_records.check_current(db, collection)
    gallery.drop("doors")
    gallery.create("doors", "face-embedder", "f1", 4)
    with database.snapshot() as db, pytest.raises(ConflictError, match="dropped or re-embedded"):
        collection_records.check_current(db, collection)


def test_counts_are_merged(gallery: PostgresGallery, database: Database) -> None:
    for vector in FACES:
        gallery.enrol("doors", [NewFace("ada", vector)], "f1")
    database.write(collection_records.merge_counts)
    with database.snapshot() as db:
        assert db.execute("SELECT * FROM collection_counts").fetchall() == [(gallery.collection("doors").id, 1, 4)]
    assert gallery.size("doors") == 4


def test_the_clock_is_measured_once_a_minute(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(database_url)
    first = database.clock()
    monkeypatch.setattr(database, "snapshot", None)  # not used again
    assert 0 <= database.clock() - first < 60
    database.close()


def test_text_that_cannot_be_sent_is_replaced(database: Database) -> None:
    with database.snapshot() as db:
        assert scalar(db, sql.SQL("SELECT %s::text"), ("a\0\ud800\u00e9",)) == "a\x01?\u00e9"
        assert db.execute("SELECT %s::text[]", (["\0", "b"],)).fetchone() == (["\x01", "b"],)


def test_a_statement_that_is_wrong_is_no_error_of_the_gallery(database: Database) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn), database.snapshot() as db:
        db.execute("SELECT nothing")
