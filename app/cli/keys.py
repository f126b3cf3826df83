"""`vestibule keys`: manage the API keys of this machine, or of the database.

Changes take effect in a running service at once, in one with a database within a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.terminal import fail, prepare_state_folder, read_settings, report_state_errors

if TYPE_CHECKING:
    from app.auth.keys import ApiKeys
    from index.types import ApiKey

DAY_S = 86_400
ACTIONS = ("create_key", "revoke_key", "reload")

keys_cli = typer.Typer(name="keys", help="API keys: create, list, revoke, audit.", no_args_is_help=True)


@keys_cli.command()
def create(
    name: Annotated[str, typer.Argument(help="A name of at most 64 characters, shown only by `list`.")],
    scope: Annotated[list[str], typer.Option(help="infer, enrol, observe, review or admin; repeat it for several.")],
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; by default it does not.")] = None,
    rate_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests per minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests in flight at a time.")] = None,
) -> None:
    """Create a key and print it; it cannot be shown again. Once a key exists, the service requires one."""
    from app.auth.keys import SCOPES

    if unknown := set(scope) - set(SCOPES):
        fail(f"unknown scope {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    if not 0 < len(name) <= 64 or not name.isprintable():
        fail("expected a name of 1 to 64 printable characters")
    with _open_keys(new=True) as keys:
        key, secret = keys.create(
            name,
            [allowed for allowed in SCOPES if allowed in scope],
            expires_at=None if days is None else time.time() + days * DAY_S,
            rate_per_minute=rate_per_minute,
            concurrency=concurrency,
        )
    typer.echo(f"Key {key.id}, {_validity(key)}. It is not shown again: only its hash is stored.", err=True)
    typer.echo(secret)


@keys_cli.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="For programs; times are UTC.")] = False) -> None:
    """List all keys, including expired and revoked ones, without their secrets."""
    with _open_keys() as keys:
        rows = keys.all()
    if as_json:
        typer.echo(json.dumps([_as_json(key) for key in rows], indent=2))
        return
    for key in rows:
        limits = f"{key.rate_per_minute or '-'}/min {key.concurrency or '-'} at once"
        typer.echo(f"{key.id}  {','.join(sorted(key.scopes)):18} {_validity(key):32} {limits:22} {key.name}")
    if not rows:
        typer.echo("there are no keys: the service does not require one")


@keys_cli.command()
def revoke(key: Annotated[str, typer.Argument(help="The key's id, as `list` shows it.")]) -> None:
    """Revoke a key, effective at once."""
    with _open_keys() as keys:
        keys.revoke(key)
    typer.echo(f"{key} is revoked")


@keys_cli.command("audit")
def show_audit() -> None:
    """Print the audit log of keys and models; the exit status is 1 if a line was changed."""
    with _open_keys() as keys:
        fault, cursor = keys.audit.verify(), 0
        while fault is None:
            entries, cursor = keys.audit.read(cursor)
            for entry in entries:
                if entry.event.action not in ACTIONS:  # of the gallery, in a database's one log
                    continue
                by = f" by {entry.event.actor}" if entry.event.actor else ""
                at = _format_time(entry.event.at)
                typer.echo(f"{entry.sequence:>6} {at} {entry.event.action} {entry.event.of or '-'}{by}")
            if not entries:
                return
    fail(f"entry {fault.sequence}: {fault.reason}")


def _as_json(key: ApiKey) -> dict[str, object]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    formatted = {name: None if at is None else _format_time(at) for name, at in times.items()}
    return {**key.__dict__, **formatted, "scopes": sorted(key.scopes), "holds": key.is_valid(time.time())}


def _validity(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_format_time(key.revoked_at)}"
    if key.expires_at is None:
        return "until it is revoked"
    return f"{'until' if key.is_valid(time.time()) else 'expired'} {_format_time(key.expires_at)}"


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@contextmanager
def _open_keys(*, new: bool = False) -> Iterator[ApiKeys]:
    """Open the keys in the database or the state folder; `new`: create the folder if it is missing."""
    from app.auth.keys import ApiKeys
    from index.factory import open_keys

    with report_state_errors():
        settings = read_settings()
        url = settings.database_url()
        keys = ApiKeys(open_keys(settings.state if url else prepare_state_folder(settings, new=new), url))
        try:
            yield keys
        finally:
            keys.close()
