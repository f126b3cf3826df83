"""Maintenance in PostgreSQL: lease, retention, idempotency keys, and what delays the end of an erasure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from index.engine import maintenance as rounds
from index.engine.maintenance import LEASE_S
from index.errors import ConflictError, GalleryError, MaintenanceError, NotFoundError, UnavailableError
from index.postgres import hnsw
from index.postgres import maintenance as postgres_maintenance
from index.postgres.gallery import PostgresGallery
from index.postgres.maintenance import PostgresMaintenance
from index.postgres.storage import PostgresStorage
from index.postgres.store import collection_records, lease_records, scrubbing, wal_files
from index.postgres.store.database import Change, Connection, Database, scalar
from index.protocol import IDEMPOTENCY_S, Maintenance
from index.types import Collection, NewFace, Receipt
from tests.index.people import Clock, vectors

INTERFACE: type[Maintenance] = PostgresMaintenance  # mypy checks that the maintenance satisfies the interface
FACES = vectors(40)


@pytest.fixture
def gallery(database: Database) -> PostgresGallery:
    gallery = PostgresGallery(database)
    gallery.create("doors", "face-embedder", "f1", 4)
    return gallery


@pytest.fixture
def maintenance(gallery: PostgresGallery) -> PostgresMaintenance:
    return PostgresMaintenance(gallery)


def is_erased(gallery: PostgresGallery, receipt: Receipt) -> bool:
    return gallery.receipt(receipt.token).erased_at is not None


def run_until_erased(maintenance: PostgresMaintenance, receipt: Receipt) -> None:
    """Run rounds until the receipt is finished: a vacuum of the server itself may delay it."""
    deadline = time.monotonic() + 30
    while not is_erased(maintenance.gallery, receipt):
        assert time.monotonic() < deadline
        assert maintenance.run()


def test_one_process_at_a_time_does_maintenance(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, clock: Clock
) -> None:
    other = PostgresMaintenance(gallery)
    gallery.note_search("doors", [])
    assert maintenance.run()
    assert not other.run()
    assert maintenance.run()
    clock.now += LEASE_S + 1
    assert other.run()
    assert not maintenance.run()
    maintenance.release()  # it is the other's
    assert not maintenance.run()
    other.release()
    assert maintenance.run()


def test_the_lease_is_renewed_during_a_round(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    for module in (rounds, postgres_maintenance):
        monkeypatch.setattr(module, "LEASE_S", 0.2)
    other = PostgresMaintenance(gallery)

    def slow(database: Database) -> None:
        clock.now += 0.15
        time.sleep(0.3)
        clock.now += 0.15
        assert not other.run()

    monkeypatch.setattr(scrubbing, "scrub", slow)
    assert maintenance.run()


def test_a_lost_lease_is_reported(maintenance: PostgresMaintenance, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rounds, postgres_maintenance):
        monkeypatch.setattr(module, "LEASE_S", 0.2)
    take = lease_records.take

    def slow(database: Database) -> None:
        def fail(*_: object) -> bool:
            raise UnavailableError("no connection")

        monkeypatch.setattr(lease_records, "take", fail)
        time.sleep(0.3)
        monkeypatch.setattr(lease_records, "take", take)

    monkeypatch.setattr(scrubbing, "scrub", slow)
    with pytest.raises(MaintenanceError, match="lease: no connection"):
        maintenance.run()


def test_a_step_that_fails_does_not_prevent_others(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.put_subject("doors", "guest", expires_at=2000.0)
    clock.now = 3000.0

    def fail(database: Database) -> None:
        raise GalleryError("a damaged row")

    def conflict(database: Database, collection: Collection, exact_below: int) -> None:
        raise ConflictError("dropped")

    monkeypatch.setattr(scrubbing, "scrub", fail)
    monkeypatch.setattr(hnsw, "update", conflict)
    with pytest.raises(MaintenanceError, match="erasures: a damaged row") as raised:
        maintenance.run()
    assert raised.value.failures.keys() == {"erasures"}
    assert gallery.usage("doors").subjects == 0


def test_expired_subjects_are_erased_each_with_a_receipt(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database, clock: Clock
) -> None:
    gallery.create("trains", "face-embedder", "f1", 4)
    for collection in ("doors", "trains"):
        for key in ("guest", "visitor"):
            gallery.put_subject(collection, key, expires_at=2000.0)
        gallery.enrol(collection, [NewFace(key, FACES[0]) for key in ("guest", "guest", "owner")], "f1")
    clock.now = 2000.0
    assert maintenance.run()
    for collection in ("doors", "trains"):
        assert [subject.key for subject in gallery.subjects(collection)] == ["owner"]
        with pytest.raises(NotFoundError):
            gallery.remove_subject(collection, "guest")
    entries, _ = gallery.audit.read(limit=1000)
    erasures = [entry.event for entry in entries if entry.event.action == "erase"]
    assert [(event.actor, len(event.subjects)) for event in erasures] == [("retention", 1)] * 4
    assert sorted(len(event.faces) for event in erasures) == [0, 0, 2, 2]
    assert all(gallery.receipt(event.id).subjects == 1 for event in erasures)
    database.write(lambda db: maintenance._erase_expired_of(db, 10**6, [1]))  # of a dropped collection


def test_old_idempotency_keys_are_deleted(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database, clock: Clock
) -> None:
    def insert(db: Connection) -> str:
        return "Ada Lovelace's result"

    Change(insert, database).once("key", b"1", json.dumps, json.loads).submit().result()
    with database.snapshot() as db:
        assert "Ada" not in str(db.execute("SELECT * FROM idempotency_keys").fetchall())
    for passed, left in ((IDEMPOTENCY_S, 1), (1.0, 0)):
        clock.now += passed
        maintenance.run()
        with database.snapshot() as db:
            assert scalar(db, sql.SQL("SELECT count(*) FROM idempotency_keys")) == left


def test_an_older_read_delays_the_end_of_an_erasure(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database, database_url: str
) -> None:
    faces = gallery.enrol("doors", [NewFace(f"p{i % 3}", vector) for i, vector in enumerate(FACES)], "f1")
    with psycopg.connect(database_url) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        receipt = gallery.remove_faces("doors", [face.token for face in faces[:5]])
        assert maintenance.run()
        assert not is_erased(gallery, receipt)
    run_until_erased(maintenance, receipt)


def test_a_row_in_use_delays_the_end_of_an_erasure(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database_url: str
) -> None:
    """The only row that is left in its page is locked."""
    gallery.put_subject("doors", "ada")
    gallery.put_subject("doors", "bob")
    receipt = gallery.remove_subject("doors", "bob")
    with psycopg.connect(database_url) as connection:
        connection.execute("SELECT 1 FROM subjects FOR UPDATE")
        # The transaction of the lock is younger than the erasure, so that a vacuum is not delayed by it.
        assert maintenance.run()
        assert not is_erased(gallery, receipt)
    run_until_erased(maintenance, receipt)


def test_what_is_dropped_with_its_table_needs_no_vacuum(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database
) -> None:
    (face, *_) = gallery.enrol("doors", [NewFace("ada", vector) for vector in FACES], "f1")
    gallery.remove_faces("doors", [face.token])
    receipt = gallery.drop("doors")
    run_until_erased(maintenance, receipt)
    with database.snapshot() as db:
        assert scalar(db, sql.SQL("SELECT count(*) FROM scrubs")) == 0


def test_a_table_that_another_user_owns_is_reported(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database, database_url: str
) -> None:
    gallery.put_subject("doors", "ada")
    gallery.remove_subject("doors", "ada")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE tenant; GRANT SELECT ON ALL TABLES IN SCHEMA public TO tenant")
        try:
            with database.autocommit() as db:
                db.execute("SET ROLE tenant")
                try:
                    with pytest.raises(GalleryError, match="permission denied to vacuum"):
                        scrubbing._vacuum(db, sql.Identifier("subjects"))
                    obstacles = wal_files.obstacles(db)
                    with pytest.raises(GalleryError, match="GRANT pg_checkpoint TO tenant; GRANT pg_monitor TO tenant"):
                        wal_files.end_file(db)
                finally:
                    db.execute("RESET ROLE")
            assert obstacles == [
                "GRANT pg_checkpoint TO tenant",
                "GRANT pg_monitor TO tenant",
                "GRANT EXECUTE ON FUNCTION pg_switch_wal() TO tenant",
            ]
        finally:
            connection.execute("DROP OWNED BY tenant; DROP ROLE tenant")


@pytest.fixture
def recycling(database_url: str) -> Iterator[None]:
    """The server writes to deleted files of the log again."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(sql.SQL("ALTER DATABASE {} SET wal_recycle = on").format(sql.Identifier(name)))
        yield


def test_a_log_whose_files_are_used_again_prevents_the_end_of_erasures(recycling: None, database_url: str) -> None:
    storage = PostgresStorage.open(database_url, clock=Clock(1000.0))
    storage.gallery.create("doors", "face-embedder", "f1", 4)
    assert storage.warnings() == ["erasures cannot be finished on the database: run ALTER SYSTEM SET wal_recycle = off"]
    receipt = storage.gallery.drop("doors")
    with pytest.raises(MaintenanceError, match="wal_recycle = off"):
        storage.maintenance.run()
    assert not is_erased(storage.gallery, receipt)
    storage.close()


@pytest.mark.parametrize(
    ("address", "problem"),
    [("postgresql://127.0.0.1:1/none", "standby 1 cannot be reached"), ("", "standby 1 is not a standby")],
)
def test_an_erasure_waits_for_each_listed_standby(
    gallery: PostgresGallery, database_url: str, address: str, problem: str
) -> None:
    receipt = gallery.drop("doors")
    maintenance = PostgresMaintenance(gallery, [address or database_url])
    with pytest.raises(MaintenanceError, match=problem):
        maintenance.run()
    assert not is_erased(gallery, receipt)
    maintenance.release()
    run_until_erased(PostgresMaintenance(gallery), receipt)


def test_counts_are_merged_by_a_round(
    gallery: PostgresGallery, maintenance: PostgresMaintenance, database: Database
) -> None:
    for vector in FACES[:3]:
        gallery.enrol("doors", [NewFace("ada", vector)], "f1")
    maintenance.run()
    with database.snapshot() as db:
        assert scalar(db, sql.SQL("SELECT count(*) FROM collection_counts")) == 1
        assert collection_records.counts(db, gallery.collection("doors").id) == (1, 3)
