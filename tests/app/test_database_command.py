"""`vestibule database migrate`."""

from __future__ import annotations

import psycopg
from typer.testing import CliRunner, Result

from app.cli.main import cli
from index.postgres.store import migrations


def migrate(url: str | None) -> Result:
    return CliRunner().invoke(cli, ["database", "migrate"], env={"VESTIBULE_DATABASE": url})


def test_the_schema_is_created_once(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for _ in range(2):
            outcome = migrate(database_url)
            assert (outcome.exit_code, outcome.stdout) == (0, f"the database has version {len(migrations.STEPS)}\n")
        assert connection.execute("SELECT count(*) FROM gallery").fetchall() == [(1,)]


def test_errors_are_one_line_without_the_password(database_url: str) -> None:
    refused = "postgresql://vestibule:secret@127.0.0.1:1/x"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'secret'; REVOKE ALL ON SCHEMA public FROM PUBLIC")
        try:
            guest = database_url.replace("postgres:@", "guest:secret@")
            for url, message in (
                (None, "VESTIBULE_DATABASE is not set"),
                (refused, "the database cannot be reached: connection failed"),
                (guest, "the database cannot be migrated: no schema has been selected to create in"),
            ):
                outcome = migrate(url)
                assert outcome.exit_code == 1
                assert message in outcome.stderr
                assert len(outcome.stderr.splitlines()) == 1
                assert "secret" not in outcome.output
        finally:
            connection.execute("DROP ROLE guest")


def test_a_later_schema_is_refused(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("INSERT INTO migrations SELECT max(step) + 1 FROM migrations")
    outcome = migrate(database_url)
    assert outcome.exit_code == 1
    assert f"the database is of version {len(migrations.STEPS) + 1}" in outcome.stderr
