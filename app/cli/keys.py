"""`vestibule keys`: who may use the service on this machine. What is done here holds at once where it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.terminal import fail, failing, read_settings, state_of

if TYPE_CHECKING:
    from app.auth.keys import ApiKey, ApiKeys

DAY_S = 86_400

keys_cli = typer.Typer(name="keys", help="API keys: make, list, revoke; what was done to them.", no_args_is_help=True)


@keys_cli.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for, at most 64 characters; seen in `list` alone.")],
    scope: Annotated[list[str], typer.Option(help="infer, enrol or admin; give it again for another one.")],
    days: Annotated[
        float | None, typer.Option(min=0, help="How long it holds; by default until it is revoked.")
    ] = None,
    rate_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests in any minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests under way at once.")] = None,
) -> None:
    """Make a key and print it, this once. With the first one the service closes to whoever has none."""
    from app.auth.keys import SCOPES

    if unknown := set(scope) - set(SCOPES):
        fail(f"unknown scope {', '.join(sorted(unknown))}; there are {', '.join(SCOPES)}")
    if not 0 < len(name) <= 64 or not name.isprintable():
        fail("expected a name of 1 to 64 printable characters")
    with _opened(new=True) as keys:
        made, secret = keys.create(
            name,
            [known for known in SCOPES if known in scope],
            expires_at=None if days is None else time.time() + days * DAY_S,
            rate_per_minute=rate_per_minute,
            concurrency=concurrency,
        )
    typer.echo(f"The key {made.id}, {_until(made)}. It is not shown again: only its hash is kept.", err=True)
    typer.echo(secret)


@keys_cli.command("list")
def list_keys(as_json: Annotated[bool, typer.Option("--json", help="For programs; times are UTC.")] = False) -> None:
    """List the keys there ever were, without themselves."""
    with _opened() as keys:
        found = keys.all()
    if as_json:
        typer.echo(json.dumps([_described(key) for key in found], indent=2))
        return
    for key in found:
        limits = f"{key.rate_per_minute or '-'}/min {key.concurrency or '-'} at once"
        typer.echo(f"{key.id}  {','.join(sorted(key.scopes)):18} {_until(key):32} {limits:22} {key.name}")
    if not found:
        typer.echo("there is no key: the service is open to whoever reaches it")


@keys_cli.command()
def revoke(key: Annotated[str, typer.Argument(help="Its id, as `list` shows it.")]) -> None:
    """Let a key open nothing any more, from now on."""
    with _opened() as keys:
        keys.revoke(key)
    typer.echo(f"{key} is revoked")


@keys_cli.command("audit")
def show_audit() -> None:
    """Print what was done to keys and models; the exit status is 1 if a line is not what was written."""
    with _opened() as keys:
        fault, cursor = keys.audit.verify(), 0
        while fault is None:
            entries, cursor = keys.audit.read(cursor)
            for entry in entries:
                by = f" by {entry.event.actor}" if entry.event.actor else ""
                typer.echo(
                    f"{entry.sequence:>6} {_moment(entry.event.at)} {entry.event.action} {entry.event.of or '-'}{by}"
                )
            if not entries:
                return
    fail(f"entry {fault.sequence}: {fault.reason}")


def _described(key: ApiKey) -> dict[str, object]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    shown = {name: None if at is None else _moment(at) for name, at in times.items()}
    return {**key.__dict__, **shown, "scopes": sorted(key.scopes), "holds": key.is_valid(time.time())}


def _until(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_moment(key.revoked_at)}"
    if key.expires_at is None:
        return "until it is revoked"
    return f"{'until' if key.is_valid(time.time()) else 'ran out'} {_moment(key.expires_at)}"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@contextmanager
def _opened(*, new: bool = False) -> Iterator[ApiKeys]:
    """The keys in the state folder, which is created if it may be `new`."""
    from app.auth.keys import FOLDER, ApiKeys

    with failing("the keys"):
        keys = ApiKeys(state_of(read_settings(), new=new) / FOLDER)
        try:
            yield keys
        finally:
            keys.close()
