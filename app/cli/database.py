"""`vestibule database`: prepare the database that replicas share."""

from __future__ import annotations

import typer

from app.cli.terminal import fail, read_settings, report_state_errors

database_cli = typer.Typer(name="database", help="The shared database: migrate.", no_args_is_help=True)


@database_cli.callback()
def describe() -> None:
    """The database in VESTIBULE_DATABASE."""


@database_cli.command()
def migrate() -> None:
    """Create the schema, or migrate that of an earlier version; print the version.

    The service does so itself when it starts. This command is for a step before that, under a role that owns the
    tables. Running services of an earlier version must be stopped before.
    """
    url = read_settings().database_url()
    if url is None:
        fail("VESTIBULE_DATABASE is not set: without a database, there is nothing to migrate")
    from index.factory import migrate_database

    with report_state_errors():
        typer.echo(f"the database has version {migrate_database(url)}")
