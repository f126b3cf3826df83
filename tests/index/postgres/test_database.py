"""Connections, transactions, migrations, and changes that are made at most once."""

from __future__ import annotations

import json
import threading
import time
from functools import partial

import psycopg
import pytest
from psycopg import sql

from index.errors import ConflictError, DiskFullError, GalleryError, NotFoundError, TooNewError, UnavailableError
from index.postgres.store import migrations
from index.postgres.store.database import Change, Connection, Database, scalar
from index.protocol import PlannedChange

COUNT = sql.SQL("SELECT count(*) FROM reloads")


def insert(db: Connection, model: str) -> str:
    db.execute("INSERT INTO reloads VALUES (%s, 'token')", (model,))
    return model


def rows(database: Database) -> int:
    with database.snapshot() as db:
        return int(scalar(db, COUNT))


def test_a_change_that_fails_is_undone(database: Database) -> None:
    def fail(_: str) -> None:
        raise NotFoundError("after the change")

    with pytest.raises(NotFoundError):
        Change(partial(insert, model="a"), database).then(fail).submit().result()
    assert rows(database) == 0
    assert Change(partial(insert, model="a"), database).then(str.upper).submit().result() == "A"
    assert rows(database) == 1


def test_a_snapshot_sees_one_moment_and_changes_nothing(database: Database) -> None:
    with database.snapshot() as db:
        assert scalar(db, COUNT) == 0
        database.write(partial(insert, model="a"))
        assert scalar(db, COUNT) == 0
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            insert(db, "b")
    assert rows(database) == 1


def test_a_deadlock_is_tried_again(database: Database) -> None:
    """Two transactions update two rows in opposite orders: PostgreSQL aborts one, which then runs again."""
    for model in ("a", "b"):
        database.write(partial(insert, model=model))
    both = threading.Barrier(2)
    tries = []

    def update(db: Connection, models: tuple[str, str]) -> None:
        tries.append(models)
        for model in models:
            db.execute("UPDATE reloads SET token = token || 'x' WHERE model = %s", (model,))
            if len(tries) <= 2 and model == models[0]:
                both.wait(10)

    futures = [database.submit(partial(update, models=models)) for models in (("a", "b"), ("b", "a"))]
    for future in futures:
        future.result(30)
    assert len(tries) == 3
    with database.snapshot() as db:
        assert {row[0] for row in db.execute("SELECT token FROM reloads")} == {"tokenxx"}


def test_a_change_is_given_up_after_repeated_aborts(database: Database) -> None:
    def abort(db: Connection) -> None:
        raise psycopg.errors.SerializationFailure

    with pytest.raises(UnavailableError, match="too busy"):
        database.write(abort)


def test_a_full_disk_is_reported_as_such(database: Database) -> None:
    def fill(db: Connection) -> None:
        raise psycopg.errors.DiskFull

    with pytest.raises(DiskFullError):
        database.write(fill)


def test_a_change_with_an_idempotency_key_is_made_once(database: Database) -> None:
    def change(model: str, request: bytes = b"1") -> PlannedChange[list[str]]:
        listed = Change(partial(insert, model=model), database).then(lambda name: [name])
        return listed.once("key", request, json.dumps, json.loads)

    assert change("a").submit().result() == ["a"]
    assert change("b").submit().result() == ["a"]
    assert rows(database) == 1
    with pytest.raises(ConflictError, match="another request"):
        change("b", b"2").submit().result()


def test_concurrent_changes_with_one_idempotency_key_are_made_once(database: Database) -> None:
    started = threading.Event()

    def slow(db: Connection) -> list[str]:
        started.set()
        time.sleep(0.2)
        return [insert(db, "a")]

    first = Change(slow, database).once("key", b"1", json.dumps, json.loads).submit()
    started.wait(10)
    assert Change(slow, database).once("key", b"1", json.dumps, json.loads).submit().result() == ["a"]
    assert first.result() == ["a"]
    assert rows(database) == 1


def test_a_failed_change_does_not_use_up_its_idempotency_key(database: Database) -> None:
    def fail(db: Connection) -> str:
        raise NotFoundError("no such collection")

    with pytest.raises(NotFoundError):
        Change(fail, database).once("key", b"1", json.dumps, json.loads).submit().result()
    assert Change(partial(insert, model="a"), database).once("key", b"2", str, str).submit().result() == "a"


def test_a_server_that_cannot_be_reached(database_url: str) -> None:
    with pytest.raises(UnavailableError):
        Database("postgresql://127.0.0.1:1/none?connect_timeout=1")
    database = Database(database_url)
    with pytest.raises(UnavailableError), database.snapshot() as db:
        db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    assert rows(database) == 0  # with a new connection
    database.close()


def test_the_time_is_the_databases(database_url: str) -> None:
    database = Database(database_url)
    with database.snapshot() as db:
        assert abs(database.now(db) - time.time()) < 60  # this machine is both
    database.close()


def test_migrations_run_once_and_a_newer_schema_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = connection.execute("SELECT id, secret FROM gallery").fetchall()
        migrations.migrate(connection)
        assert connection.execute("SELECT id, secret FROM gallery").fetchall() == before
        migrations.migrate(connection, (*migrations.STEPS, "CREATE TABLE later (id bigint)"))
        with pytest.raises(TooNewError, match=f"version {len(migrations.STEPS) + 1}"):
            migrations.migrate(connection)


def test_a_current_schema_needs_no_privilege_to_create_tables(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain_user; GRANT SELECT ON migrations TO plain_user; SET ROLE plain_user")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE other (id bigint)")
        migrations.migrate(connection)
        connection.execute("RESET ROLE; DROP OWNED BY plain_user; DROP ROLE plain_user")


def test_a_failed_migration_changes_nothing(database_url: str) -> None:
    steps = (*migrations.STEPS, "CREATE TABLE later (id bigint); SELECT 1 / 0")
    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            migrations.migrate(connection, steps)
        assert connection.execute("SELECT to_regclass('later')").fetchone() == (None,)
        migrations.migrate(connection)


def test_an_old_or_missing_pgvector_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        monkeypatch.setattr(migrations, "OLDEST_PGVECTOR", (99, 0, 0))
        with pytest.raises(GalleryError, match=r"99\.0\.0 or later"):
            migrations.migrate(connection)
        connection.execute("CREATE ROLE nobody_special; SET ROLE nobody_special")
        connection.execute("RESET ROLE; DROP EXTENSION vector CASCADE; SET ROLE nobody_special")
        with pytest.raises(GalleryError, match="pgvector is needed"):
            migrations.migrate(connection)
        connection.execute("RESET ROLE; DROP ROLE nobody_special")
